"""Models of every family on tiny pipelines, and the pipelines' own output."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf
from PIL import Image
from torch import Tensor

from tests.helpers.families import Case
from tests.helpers.nonlinear_rewards import ClipReward
from tests.helpers.tiny import adapter_gradient, randomise_adapter
from vader_ray import models
from vader_ray.config import AdapterConfig, ModelConfig, Precision, SamplingConfig
from vader_ray.models.core.conditioning import open_images
from vader_ray.types import Frames

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS = [3, 4]
STEPS = 3
STOCHASTIC = "CogVideoXDPMScheduler"


def load_case(
    case: Case,
    folder: Path,
    scheduler: str | None = None,
    precision: Precision = "float32",
    networks: tuple[str, ...] | None = None,
    **model: Any,
) -> Any:
    """The family's model with a random adapter."""
    settings = ModelConfig(
        family=case.family,
        weights=str(folder),
        precision=precision,
        decoder_precision=precision,
        **model,
    )
    sampling = SamplingConfig(**case.sampling, scheduler=scheduler)
    adapter = AdapterConfig(rank=2, alpha=4.0, networks=networks)
    built = models.build(settings, sampling, adapter, seed=0, chunk_size=2, device=torch.device("cpu"))
    randomise_adapter(built)
    return built


def encode_prompts(model: Any, images: list[Path] | None) -> Any:
    return model.encode(PROMPTS, images if model.is_image_to_video else None)


def decode_all(model: Any, latents: Tensor) -> Frames:
    state, portions = None, []
    for chunk in model.decoder.chunks(latents, range(model.decoder.num_frames(latents))):
        portion, state = model.decoder.decode(latents, state, chunk)
        portions.append(portion)
    return torch.cat(portions, dim=1)


def reseed(generators: Sequence[torch.Generator], seeds: Sequence[int], step: int) -> None:
    for generator, seed in zip(generators, seeds, strict=True):
        generator.manual_seed((seed + 7919 * (step + 1)) % 2**63)


def own_call(case: Case, model: Any, images: list[Path], videos: slice, loop: Any) -> Frames:
    """Videos by the pipeline's own call from texts and pictures, with the noise that the project
    documents."""
    opened = open_images(model.sampling, images)[videos] if case.images else None
    return call_loop(case, model, opened, videos, loop, SEEDS[videos])


def call_loop(case: Case, model: Any, opened: Any, videos: slice, loop: Any, seeds: Sequence[int]) -> Frames:
    """The same from images that are opened, or are frames, ``batch 3 height width``."""
    arguments = dict(case.sampling) | case.call
    arguments[model.frames_argument] = arguments.pop("num_frames")
    generators = [torch.Generator() for _ in seeds]
    stochastic = type(model.pipe.scheduler).__name__ == STOCHASTIC
    reseed(generators, seeds, 0 if stochastic else -2)
    if stochastic:

        def reseed_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            reseed(generators, seeds, step + 1)
            return {}

        arguments["callback_on_step_end"] = reseed_step
    if opened is not None:
        arguments["image"] = opened if model.batched else opened[0]
    if model.embeddings:
        arguments["prompt"] = PROMPTS[videos] if model.batched else PROMPTS[videos][0]
    if "negative_prompt" in arguments:  # the text encoder's last bits depend on the number of prompts
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(seeds)
    if model.guidance_argument != "guidance_scale":
        arguments[model.guidance_argument] = arguments.pop("guidance_scale")
    if hasattr(model.pipe, "guider"):
        model.pipe.guider = model.pipe.guider.new(guidance_scale=arguments.pop("guidance_scale"))
    noise = model.pack_latents(model.noise(seeds))
    if (with_image := _WITH_IMAGE.get(type(model.pipe).__name__)) is not None:
        noise = with_image(model.pipe, noise, arguments, generators)
        noise = noise if isinstance(opened, Tensor) else noise.detach()
    _decode_sound_in_float32(model.pipe)
    accepted = inspect.signature(loop).parameters
    frames: Frames = loop(
        model.pipe,
        latents=noise,
        generator=generators if model.batched else generators[0],
        output_type="pt",
        **{name: value for name, value in arguments.items() if name in accepted},
    ).frames
    return frames


def _decode_sound_in_float32(pipe: Any) -> None:
    """Kandinsky's decoder of sound cannot compute in float64; nothing reads what it returns."""
    for name in ("audio_vae", "vocoder"):
        if (network := getattr(pipe, name, None)) is not None:
            network.to(torch.float32)


def _ltx_noise(pipe: Any, noise: Tensor, call: dict[str, Any], generators: list[torch.Generator]) -> Tensor:
    pixels = pipe.video_processor.preprocess(call["image"], height=call["height"], width=call["width"])
    encoded = torch.cat(
        [
            pipe.vae.encode(image[None, :, None].to(pipe.vae.dtype)).latent_dist.sample(generator)
            for image, generator in zip(pixels, generators, strict=True)
        ]
    )
    encoded = pipe._normalize_latents(encoded, pipe.vae.latents_mean, pipe.vae.latents_std)
    tokens = encoded.shape[-1] * encoded.shape[-2]
    return torch.cat([pipe._pack_latents(encoded, 1, 1), noise[:, tokens:]], dim=1)


def _ltx2_noise(pipe: Any, noise: Tensor, call: dict[str, Any], _: list[torch.Generator]) -> Tensor:
    """The pipeline compresses images as H.264, and scales latents itself."""
    image = Image.fromarray(apply_image_conditioning_crf(np.array(call["image"]), 33))
    pixels = pipe.video_processor.preprocess(image, height=call["height"], width=call["width"])
    encoded = pipe.vae.encode(pixels[:, :, None].to(pipe.vae.dtype)).latent_dist.mode()
    return torch.cat([encoded, noise[:, :, 1:]], dim=2)


def _kandinsky5_noise(
    pipe: Any, noise: Tensor, call: dict[str, Any], generators: list[torch.Generator]
) -> Tensor:
    size = call["height"], call["width"], call["num_frames"]
    prepared = pipe.prepare_latents(
        call["image"], 1, 4, *size, dtype=noise.dtype, device=noise.device, generator=generators[0]
    )
    return torch.cat([prepared[:, :1], torch.cat([noise[..., :4], prepared[..., 4:]], dim=-1)[:, 1:]], dim=1)


_WITH_IMAGE = {
    "LTXImageToVideoPipeline": _ltx_noise,
    "LTX2ImageToVideoPipeline": _ltx2_noise,
    "Kandinsky5I2VPipeline": _kandinsky5_noise,
}
"""Latents with the image for pipelines that expect it in latents that they are given."""


def one_graph(case: Case, model: Any, images: list[Path], graded: tuple[int, ...]) -> Tensor:
    """Gradient by plain autograd through the pipeline's own loop and the library's own decoder.

    No hook, no checkpoint, no chunk.
    """
    with cut_behind_denoiser(case, model, graded):
        frames = own_call(case, model, images, slice(0, 1), inspect.unwrap(type(model.pipe).__call__))
    objective = -ClipReward()(frames, PROMPTS[:1]).sum()
    return adapter_gradient(model, objective).double()


@contextmanager
def cut_behind_denoiser(case: Case, model: Any, graded: tuple[int, ...]) -> Iterator[None]:
    """Cut off the predictions of the steps that are not graded, as Algorithm 1 says, in one sampling."""
    calls, per_step = [0], case.calls_per_step

    def cut(layer: Any, inputs: Any, output: Any) -> Any:
        step = calls[0] // per_step
        calls[0] += 1
        return output if step in graded else tuple(item.detach() for item in output)

    def cut_named(layer: Any, inputs: Any, output: Any) -> Any:
        return (
            cut(layer, inputs, output)
            if isinstance(output, tuple)
            else type(output)(*cut(layer, inputs, (output.sample,)))
        )

    hooks = [denoiser.register_forward_hook(cut_named) for denoiser in model.denoisers().values()]
    yield
    for hook in hooks:
        hook.remove()
    assert calls[0] == STEPS * per_step


def parts_of(model: Any) -> list[slice]:
    return [slice(0, 2)] if model.batched else [slice(0, 1), slice(1, 2)]


def plain_pipe(folder: Path, model: Any) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = model.pipe.scheduler
    pipe.set_progress_bar_config(disable=True)
    return freeze(pipe)


def freeze(pipe: Any) -> Any:
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False)
    return pipe
