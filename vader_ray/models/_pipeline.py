"""One adapter that drives any diffusers video pipeline through the pipeline's own loop, with gradient where asked.

The pipeline's own no-gradient output is the oracle: `PipelineModel.sample` gives the same latents bit for bit in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from PIL import Image
from torch import Tensor, nn

from vader_ray.config import ActivationCheckpointing, AdapterConfig, ModelConfig, SamplingConfig
from vader_ray.models import _adapter, _export, _levers
from vader_ray.models._loading import fetch_pipeline
from vader_ray.models._tape import DecoderReached, Midway, PrefixDone, Tape, cast, frozen_dtype
from vader_ray.types import Codec, Latents, Noise, Plan

_ENCODED_AT_ONCE = 8
"""Prompts that a text encoder sees together: a recipe may hold thousands."""
_LOOPS_OWN = -2
"""The step of `Tape.generators` whose noise the loop draws itself: image augmentation, a decoder's noise."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Arguments of a pipeline call with one row per video: tensors, or lists of images."""

    tensors: dict[str, Tensor | list[Any]]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, part: slice | list[int]) -> Conditioning:
        return Conditioning({name: _take(column, part) for name, column in self.tensors.items()})


def _take(column: Tensor | list[Any], part: slice | list[int]) -> Tensor | list[Any]:
    if isinstance(column, Tensor):
        return column[part]
    return column[part] if isinstance(part, slice) else [column[row] for row in part]


def _shared(column: Tensor) -> Tensor:
    """The same rows; equal ones, as those of the negative prompt, occupy memory once."""
    return column[:1].clone().expand_as(column) if bool((column == column[:1]).all()) else column


class PipelineModel:
    """A `vader_ray.types.VideoModel` over a diffusers pipeline; a family overrides what differs and no more."""

    denoiser_name = "transformer"
    adapter_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    stock_loader = False
    """Whether diffusers' ``load_lora_weights`` works for this pipeline: adapters are then saved in its format."""
    embeddings: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    """Names under which the pipeline takes what its ``encode_prompt`` returns, in that order."""
    takes_images = False
    batched = True
    """Whether the pipeline can make several videos at once."""

    def __init__(self, pipe: Any, sampling: SamplingConfig, codec: Codec) -> None:
        self.pipe = pipe
        self.sampling = sampling
        self.codec = codec
        self.denoiser_calls = 0
        pipe.set_progress_bar_config(disable=True)
        for module in self.networks():
            module.requires_grad_(False).eval()
        self._check_scheduler()
        _levers.check_cache(sampling.prefix_cache, list(self.denoisers().values()))

    @property
    def denoiser(self) -> nn.Module:
        """The network that predicts noise, velocity or flow; the first, where there are several."""
        return next(iter(self.denoisers().values()))

    def denoisers(self) -> dict[str, nn.Module]:
        """Every denoiser by its name in the pipeline."""
        return {self.denoiser_name: getattr(self.pipe, self.denoiser_name)}

    def compression(self) -> tuple[int, int]:
        """Frames per latent frame and pixels per latent pixel."""
        raise NotImplementedError

    def latent_channels(self) -> int:
        """Channels of the latents."""
        channels: int = self.denoiser.config.in_channels  # type: ignore[union-attr,assignment]
        return channels

    @classmethod
    def fetch(cls, model: ModelConfig) -> Path:
        """The folder of the weights, after their download where they are on the hub."""
        return fetch_pipeline(model)

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, height, width of one video's noise.

        Raises:
            ValueError: the pipeline would round the number of frames.
        """
        (per_frame, per_pixel), sampling = self.compression(), self.sampling
        frames, rest = divmod(sampling.num_frames - 1, per_frame)
        if rest:
            near = [frames * per_frame + 1, (frames + 1) * per_frame + 1]
            raise ValueError(f"sampling.num_frames={sampling.num_frames} is impossible here; choose {near[0]} or {near[1]}")
        return self.latent_channels(), frames + 1, sampling.height // per_pixel, sampling.width // per_pixel

    def call_arguments(self) -> dict[str, Any]:
        """Settings of the pipeline call that are not tensors."""
        sampling = self.sampling
        return {
            "num_frames": sampling.num_frames,
            "height": sampling.height,
            "width": sampling.width,
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
        }

    def arrange(self, noise: Noise) -> Tensor:
        """The noise in the layout that the pipeline takes."""
        return noise

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], images: Sequence[Path] | None = None) -> Conditioning:
        """The conditioning of each video, as the encoders give it.

        Raises:
            ValueError: the family makes videos from images and there are none.
        """
        columns = self._encode_texts(list(prompts)) if self.embeddings else {}
        if self.takes_images:
            columns["image"] = self._open(images)
        return Conditioning(columns)

    def _encode_texts(self, prompts: list[str]) -> dict[str, Tensor | list[Any]]:
        groups = [prompts[start : start + _ENCODED_AT_ONCE] for start in range(0, len(prompts), _ENCODED_AT_ONCE)]
        rows = [self._encode_group(group) for group in groups]
        named = dict(zip(self.embeddings, zip(*rows, strict=True), strict=True))
        return {name: _shared(torch.cat(column)) for name, column in named.items() if column[0] is not None}

    def _encode_group(self, prompts: list[str]) -> tuple[Tensor | None, ...]:
        guided = self.sampling.guidance_scale > 1
        call, accepted = inspect.signature(type(self.pipe).__call__).parameters, inspect.signature(self.pipe.encode_prompt)
        arguments = {
            "device": self.pipe.device,
            "do_classifier_free_guidance": guided,
            "negative_prompt": [self.sampling.negative_prompt] * len(prompts) if guided else None,
            "num_images_per_prompt": 1,
            "max_sequence_length": call["max_sequence_length"].default if "max_sequence_length" in call else None,
        }
        encoded: tuple[Tensor | None, ...] = self.pipe.encode_prompt(
            prompts, **{name: value for name, value in arguments.items() if name in accepted.parameters}
        )
        return encoded

    def _open(self, images: Sequence[Path] | None) -> list[Any]:
        """The images at the size of the video, squashed where their shape differs, as the library's examples do."""
        if not images:
            raise ValueError("prompts: this model makes videos from images; write each prompt as `path/to/image.png | text`")
        size = self.sampling.width, self.sampling.height
        return [Image.open(path).convert("RGB").resize(size, Image.Resampling.LANCZOS) for path in images]

    def noise(self, seeds: Sequence[int]) -> Noise:
        """The initial noise of each video, drawn on the CPU from its seed so that every device agrees."""
        shape = self.latent_shape()
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.pipe.device, self._sampling_dtype())

    @torch.no_grad()
    def sample(self, conditioning: Conditioning, seeds: Sequence[int]) -> Latents:
        """Whole sampling without gradient."""
        noise = self.noise(seeds)
        parts = self._parts(len(seeds))
        return torch.cat([self._drive(noise[part], conditioning[part], Tape(seeds[part], plan=None)) for part in parts])

    def blocks(self) -> list[nn.Module]:
        """The parts of the denoisers that are recomputed or compiled one by one."""
        return [block for denoiser in self.denoisers().values() for block in _levers.blocks(denoiser)]

    def apply_levers(self, activation_checkpointing: ActivationCheckpointing, *, compile_blocks: bool) -> None:
        """Trade time against memory, see `vader_ray.config.MachineConfig`; to be called once."""
        if compile_blocks:
            _levers.compiled(self.blocks())
        _levers.recompute(self.blocks(), activation_checkpointing)

    @torch.no_grad()
    def prefix(self, conditioning: Conditioning, plan: Plan, seeds: Sequence[int]) -> Midway:
        """Sampling without gradient up to the first graded denoising step."""
        parts = self._parts(len(seeds))
        return Midway.join([self._prefix(conditioning[part], plan, seeds[part]) for part in parts])

    def _prefix(self, conditioning: Conditioning, plan: Plan, seeds: Sequence[int]) -> Midway:
        noise, first = self.noise(seeds), plan.graded[0]
        if first == 0:
            return Midway(noise, tuple(seeds), None, {})
        tape = Tape(seeds, plan=None, stop_before=first)
        try:
            with _levers.cached(self.sampling.prefix_cache, list(self.denoisers().values())):
                self._drive(noise, conditioning, tape)
        except PrefixDone:
            return Midway(noise, tuple(seeds), tape.outputs, tape.scheduler_state)
        raise AssertionError("the pipeline ended before its first graded denoising step")

    def finish(self, midway: Midway, conditioning: Conditioning, plan: Plan) -> Latents:
        """The rest of the sampling, differentiable in the adapter."""
        parts = self._parts(len(midway))
        return torch.cat([self._finish(midway[part], conditioning[part], plan) for part in parts])

    def _finish(self, midway: Midway, conditioning: Conditioning, plan: Plan) -> Latents:
        resume = midway if midway.outputs is not None else None
        with torch.enable_grad():
            return self._drive(midway.noise, conditioning, Tape(midway.seeds, plan=plan, resume=resume))

    def _parts(self, num_videos: int) -> Iterator[slice]:
        size = num_videos if self.batched else 1
        return (slice(start, start + size) for start in range(0, num_videos, size))

    def _drive(self, noise: Noise, conditioning: Conditioning, tape: Tape) -> Latents:
        """Run the pipeline's own loop under a tape; what its decoder would have got, ``batch channels frames h w``."""
        loop = inspect.unwrap(type(self.pipe).__call__)
        dtype = self._sampling_dtype()  # some loops keep the latents in that of the embeddings
        tensors = {name: cast(column, dtype) for name, column in conditioning.tensors.items()}
        arguments = tensors | self.call_arguments() | {"generator": tape.generators(_LOOPS_OWN, len(noise))}
        try:
            with tape.attached(list(self.denoisers().values()), self.pipe.scheduler, self.pipe.vae):
                loop(self.pipe, latents=self.arrange(noise), **arguments)
        except DecoderReached as reached:
            self._check_steps(tape.index)
            return _with_frames(reached.latents, len(noise))
        finally:
            self.denoiser_calls += tape.denoiser_calls
        raise AssertionError("the pipeline ended without decoding")

    def _check_steps(self, taken: int) -> None:
        if taken != self.sampling.num_inference_steps:
            raise ValueError(
                f"{type(self.pipe.scheduler).__name__} took {taken} denoising steps for sampling.num_inference_steps="
                f"{self.sampling.num_inference_steps}; choose a first-order scheduler"
            )

    def _check_scheduler(self) -> None:
        accepts_eta = "eta" in inspect.signature(self.pipe.scheduler.step).parameters
        if self.sampling.eta and not accepts_eta:
            raise ValueError(
                f"sampling.eta={self.sampling.eta} means nothing to {type(self.pipe.scheduler).__name__}; set it to 0"
            )

    def _sampling_dtype(self) -> torch.dtype:
        return torch.promote_types(frozen_dtype(self.denoiser), torch.float32)

    def add_adapter(self, adapter: AdapterConfig, seed: int) -> None:
        """Add a trainable adapter that changes nothing yet."""
        for place, denoiser in enumerate(self.denoisers().values()):
            _adapter.inject(denoiser, adapter, adapter.target_modules or self.adapter_targets, seed + place)

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in an order that never changes."""
        return [parameter for denoiser in self.denoisers().values() for parameter in _adapter.parameters(denoiser)]

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter: in diffusers' format where its loader works, else in peft's; a second denoiser's beneath."""
        for (name, denoiser), place in zip(self.denoisers().items(), _adapter.folders(folder, self.denoisers()), strict=True):
            if self.stock_loader:
                _adapter.save_for_diffusers(denoiser, place, type(self.pipe), name.removesuffix("_2"))
            else:
                _adapter.save(denoiser, place)

    def load_adapter(self, folder: Path) -> None:
        """Read an adapter that `save_adapter` wrote."""
        for denoiser, place in zip(self.denoisers().values(), _adapter.folders(folder, self.denoisers()), strict=True):
            _adapter.load(denoiser, place)

    def save_merged(self, folder: Path) -> list[Path]:
        """Fold the adapter into the denoisers and write each in the library's format, in a folder of its name.

        Raises:
            ValueError: a denoiser is not the library's.
        """
        places = []
        for name, denoiser in self.denoisers().items():
            if not isinstance(denoiser, ModelMixin):
                raise ValueError(
                    f"{type(denoiser).__module__} is no network of diffusers and cannot be saved as one; keep the adapter"
                )
            _export.merge(denoiser)
            denoiser.save_pretrained(folder / name)
            places.append(folder / name)
        return places

    def networks(self) -> list[nn.Module]:
        """All that occupies memory."""
        return [module for module in self.pipe.components.values() if isinstance(module, nn.Module)]

    def free_text_encoders(self) -> None:
        """Drop the text encoders; `encode` cannot be called afterwards. Image encoders stay: the loop calls them."""
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(self.pipe, name, None) is not None:
                setattr(self.pipe, name, None)


def _with_frames(latents: Tensor, batch: int) -> Latents:
    """Framewise autoencoders get ``batch·frames channels h w``; everyone else already has a frame dimension."""
    return latents if latents.ndim == 5 else latents.unflatten(0, (batch, -1)).transpose(1, 2)
