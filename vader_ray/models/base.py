"""The base class of model families: construction, adapters, memory.

The base class of sampling is in `vader_ray.models.core.sampling`.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from vader_ray.config import (
    ActivationCheckpointing,
    AdapterConfig,
    ModelConfig,
    RuntimeConfig,
    SamplingConfig,
    check_seed,
    locate,
    section,
)
from vader_ray.errors import UserError
from vader_ray.files import give_ordinary_mode
from vader_ray.models.adapters import export, lora
from vader_ray.models.adapters.files import DENOISERS, FIRST, TEXT_ENCODERS, saved_networks
from vader_ray.models.core import memory_optimizations
from vader_ray.models.core.clips import ClipsPipeline
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.endings import EndingsPipeline
from vader_ray.models.core.loading import components_of, fetch_pipeline, load_pipeline
from vader_ray.models.core.sampling import class_names
from vader_ray.models.core.sharding import ShardedNetwork, outer_blocks
from vader_ray.models.core.trajectories import TrajectoryPipeline
from vader_ray.models.core.video_workers import VideoWorkers

Number = TypeVar("Number", int, float)
CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Ends of the names of attention projections in transformers' CLIP, the layers that diffusers' training
scripts adapt with ``--train_text_encoder``."""


class VideoModel(TrajectoryPipeline, EndingsPipeline, ClipsPipeline):
    """A diffusers video pipeline with a trainable adapter; each family of models is a subclass."""

    adapter_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the denoisers' layers that get an adapter by default."""
    text_adapter_targets: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of the text encoders' layers that get an adapter if a recipe chooses text encoders;
    without any, they get none: diffusers' loader of the pipeline takes an adapter of the denoiser alone."""
    loads_in_comfyui: ClassVar[bool] = True
    """Whether ComfyUI has the denoiser, so that an adapter can be exported to it."""
    stock_loader: ClassVar[bool] = False
    """Whether diffusers' ``load_lora_weights`` works for the pipeline; adapters are then saved in diffusers'
    format."""

    @classmethod
    def fetch(cls, model: ModelConfig) -> Path:
        """Return the folder of the weights; those of a hub id are downloaded first."""
        return fetch_pipeline(model)

    @classmethod
    def load(
        cls, model: ModelConfig, sampling: SamplingConfig, *, chunk_size: int, device: torch.device
    ) -> VideoModel:
        """Load pretrained weights to a device, without an adapter.

        Raises:
            UserError: the weights cannot be loaded, or the pipeline does not support a setting.
        """
        pipe = load_pipeline(cls.pipeline_classes, model, sampling, device)
        return cls(pipe, sampling, DecoderOptions.of(model, chunk_size))

    @classmethod
    def networks_of(cls, model: ModelConfig) -> list[str]:
        """Return the names of the pipeline's networks that can get an adapter; reads no weights.

        Raises:
            UserError: the pipeline's index cannot be read or downloaded.
        """
        return cls._adaptable(components_of(locate(model.weights)))

    @classmethod
    def _adaptable(cls, components: Collection[str]) -> list[str]:
        """Return those of a pipeline's components that can get an adapter."""
        names = dict.fromkeys((cls.denoiser_name, *DENOISERS))
        if cls.text_adapter_targets:
            names |= dict.fromkeys(TEXT_ENCODERS)
        return [name for name in names if name in components]

    @classmethod
    def denoisers_of_steps(cls, model: ModelConfig, sampling: SamplingConfig) -> list[str]:  # noqa: ARG003
        """Return the name of the denoiser of each denoising step, the noisiest first; reads no weights.

        Raises:
            UserError: the pipeline's index or its scheduler cannot be read or downloaded.
        """
        return [cls.denoiser_name] * sampling.num_inference_steps

    def denoisers_of_own_steps(self) -> list[str]:
        """Return the name of the denoiser of each denoising step of this model, the noisiest first."""
        return [next(iter(self.denoisers()))] * self.sampling.num_inference_steps

    @classmethod
    def from_pipeline(  # noqa: PLR0913
        cls,
        pipe: Any,
        *,
        num_frames: int,
        height: int,
        width: int,
        num_clips: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str = "",
        lora_rank: int = 16,
        lora_alpha: float | None = None,
        target_modules: Sequence[str] | None = None,
        networks: Sequence[str] | None = None,
        decode_chunk_size: int | None = None,
        seed: int = 0,
    ) -> VideoModel:
        """Wrap a loaded diffusers video pipeline, with a fresh LoRA adapter that is ready for training.

        The family is found by the pipeline's class; a family outside this package is used by calling the
        method on its own class. The pipeline is used, not copied: its networks are frozen and set to eval
        mode, its progress bar is switched off, and the denoiser gets the adapter. Devices and dtypes stay as
        they are; the adapter is float32. Offloading by diffusers, if any, must be set up before.

        Args:
            pipe: any pipeline of a known family, loaded by ``from_pretrained`` and moved to its device.
            num_frames: frames of a video, or of one clip of it.
            height: of a frame in pixels.
            width: of a frame in pixels.
            num_clips: clips of a video, each of which continues the last frame of the one before; above 1
                for pipelines that make videos from images.
            num_inference_steps: denoising steps of a sampling; by default the pipeline's own default.
            guidance_scale: classifier-free guidance, 1 switches it off; by default the pipeline's own
                default.
            negative_prompt: of every video.
            lora_rank: rank of the adapter.
            lora_alpha: the adapter's update is multiplied by ``lora_alpha / lora_rank``; by default equal to
                the rank.
            target_modules: ends of the names of the adapted layers; by default the attention projections.
            networks: names of the pipeline's networks that get an adapter; by default every denoiser.
            decode_chunk_size: frames that the autoencoder decodes at once, where it decodes frames
                independently (exact) or in chunks (Stable Video Diffusion; by default all frames together, as
                chunks leave seams).
            seed: of the adapter's initial values.

        Raises:
            UserError: the class of the pipeline is unknown, a network has an adapter of another program, no
                layer matches ``target_modules``, the pipeline has no such network, or it cannot make videos
                of this size.
        """
        family = cls if class_names(pipe) & set(cls.pipeline_classes) else _family_of(pipe)
        defaults = inspect.signature(type(pipe).__call__).parameters
        check_seed(seed)
        settings = {
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "num_clips": num_clips,
            "num_inference_steps": _given(num_inference_steps, defaults["num_inference_steps"].default),
            "guidance_scale": _given(guidance_scale, defaults[family.guidance_argument].default),
            "negative_prompt": negative_prompt,
            "eta": defaults["eta"].default if "eta" in defaults else 0.0,
        }
        sampling = section(SamplingConfig, settings, "from_pipeline")
        section(RuntimeConfig, {"decode_chunk_size": _given(decode_chunk_size, 1)}, "from_pipeline")
        options = DecoderOptions(chunk_size=_given(decode_chunk_size, 1), temporal_frames=decode_chunk_size)
        adapter = section(
            AdapterConfig,
            {
                "rank": lora_rank,
                "alpha": _given(lora_alpha, lora_rank),
                "target_modules": target_modules,
                "networks": networks,
            },
            "from_pipeline: adapter",
        )
        lora.refuse_foreign_adapters(pipe, adapter.networks or DENOISERS)
        model = family(pipe, sampling, options)
        model.latent_shape()  # refuses a number of frames that the pipeline would round
        model.add_adapter(adapter, seed)
        return model

    # ---- the adapter

    def add_adapter(self, adapter: AdapterConfig, seed: int) -> None:
        """Add a trainable adapter whose update is zero; replaces an earlier one.

        Raises:
            UserError: the pipeline has no such network, or no layer has one of the names.
        """
        for network in self.adapted_networks().values():
            lora.remove(network)
        networks = self.denoisers() | self.text_encoders()
        self.chosen_networks = adapter.networks
        self.adapted = adapter.networks or tuple(self.denoisers())
        check_networks(self.adapted, self._adaptable(networks), type(self.pipe).__name__)
        for index, (name, network) in enumerate(networks.items()):
            if name in self.denoisers():
                targets = adapter.target_modules or self.adapter_targets
            else:
                targets = self.text_adapter_targets
            if name in self.adapted:
                lora.inject(network, adapter, targets, seed + index)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Switch the adapter off inside a ``with`` block: the model is the pretrained one there."""
        with lora.disabled(self.adapted_networks().values()):
            yield

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters, always in the same order."""
        return [
            parameter
            for network in self.adapted_networks().values()
            for parameter in lora.parameters(network)
        ]

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in diffusers' format if its loader works, else in peft's.

        See `vader_ray.models.adapters.files` for the files of several networks.
        """
        networks = self._networks_as_saved()
        if self.stock_loader:
            lora.save_for_diffusers(networks, folder, type(self.pipe), self.denoiser_name)
            return
        for name, network in networks.items():
            lora.save(network, folder / name)

    def load_adapter(self, folder: Path) -> None:
        """Read an adapter that `save_adapter` wrote.

        Raises:
            UserError: the folder has no adapter, or one of another model, rank or alpha, or of other
                networks.
        """
        networks, found = self._networks_as_saved(), saved_networks(folder)
        if set(found) != set(networks):
            first = next(iter(self.denoisers()))
            theirs, ours = (", ".join(name or first for name in names) for names in (found, networks))
            raise UserError(
                f"the adapter in {folder} is one of {theirs}, the model's is one of {ours}; set "
                "adapter.networks to the file's"
            )
        for name, network in networks.items():
            lora.load(network, folder, name)

    def _networks_as_saved(self) -> dict[str, nn.Module]:
        """Return the networks with an adapter by their names in a saved adapter."""
        first = next(iter(self.denoisers()))
        return {FIRST if name == first else name: each for name, each in self.adapted_networks().items()}

    def save_merged(self, folder: Path) -> list[Path]:
        """Merge the adapter into the networks that have one, and write these in the libraries' own format.

        Each network gets a subfolder of its name.

        Raises:
            UserError: a network is neither a diffusers nor a transformers model.
        """
        folders = []
        for name, network in self.adapted_networks().items():
            if not isinstance(network, ModelMixin | PreTrainedModel):
                raise UserError(
                    f"the network {type(network).__module__}.{type(network).__name__} is not a model of "
                    "diffusers or transformers and cannot be saved as one; keep the adapter"
                )
            export.merge(network)
            network.save_pretrained(folder / name)
            give_ordinary_mode((folder / name).glob("*.safetensors"))
            folders.append(folder / name)
        return folders

    # ---- memory

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of the denoisers, each of which can be recomputed or compiled by itself."""
        return [block for denoiser in self.denoisers().values() for block in self.denoiser_blocks(denoiser)]

    @staticmethod
    def denoiser_blocks(denoiser: nn.Module) -> list[nn.Module]:
        """Return the blocks of one denoiser; none contains another."""
        return memory_optimizations.blocks(denoiser)

    def apply_memory_optimizations(
        self, activation_checkpointing: ActivationCheckpointing, *, compile_blocks: bool
    ) -> None:
        """Apply activation checkpointing and compilation (`vader_ray.config.RuntimeConfig`); call it once."""
        if compile_blocks:
            memory_optimizations.compile_blocks(self.blocks())
        memory_optimizations.apply_activation_checkpointing(self.blocks(), activation_checkpointing)
        if activation_checkpointing != "none":
            self.decoder.recompute_blocks()
        self.recomputes_blocks = activation_checkpointing != "none"

    def compute_with(self, mesh: DeviceMesh) -> None:
        """Compute every video together with other workers, each a part of the tokens or one guidance branch.

        Call it once, before `shard`.

        Args:
            mesh: all workers of the run, with the dimensions `vader_ray.types.VIDEO_MESH`.

        Raises:
            UserError: the model's tokens or attention heads cannot be divided by the number of workers.
        """
        workers = VideoWorkers.of(mesh)
        if (parts := workers.num_token_parts) > 1:
            for denoiser in self.denoisers().values():
                self._check_divides(parts, "tokens of a video", self.num_tokens())
                heads: Any = denoiser.config.num_attention_heads  # type: ignore[union-attr]
                self._check_divides(parts, "attention heads of the denoiser", heads)
                workers.split_tokens(denoiser)
        self.video_workers = workers

    def num_tokens(self) -> int:
        """Return the number of tokens of one video in the denoiser, if `splits_tokens`."""
        _, *sizes = self.latent_shape()
        patch: Any = self.denoiser.config.patch_size  # type: ignore[union-attr]
        tokens: int = math.prod(size // each for size, each in zip(sizes, patch, strict=True))
        return tokens

    @staticmethod
    def _check_divides(parts: int, what: str, number: int) -> None:
        if number % parts:
            raise UserError(
                f"runtime.context_parallel={parts} does not divide the {number} {what}; choose a divisor of "
                f"{number}, or another size of the video"
            )

    def sharded_networks(self) -> list[ShardedNetwork]:
        """Return the networks whose frozen weights `shard` divides: text encoders and denoisers.

        Text encoders that are trained are whole on each worker: batches of different sizes call them
        differently often.
        """
        encoders = [] if self.trains_text else list(self.text_encoders().values())
        denoisers = self.denoisers().values()
        return [
            *(ShardedNetwork(each, outer_blocks(each)) for each in encoders),
            *(ShardedNetwork(each, self.denoiser_blocks(each)) for each in denoisers),
        ]

    def shard(self, mesh: DeviceMesh, device: torch.device, *, offload: bool) -> None:
        """Divide the frozen weights over a group of workers, and move everything to a device.

        Call it last, once: the adapter can no longer be replaced.

        Args:
            mesh: the group's workers, one-dimensional.
            device: of this worker.
            offload: keep this worker's share in host memory (`vader_ray.config.RuntimeConfig`).
        """
        sharded = self.sharded_networks()
        for each in sharded:
            each.shard(mesh, device, offload=offload)
        for network in self.modules():
            if not any(network is each.network for each in sharded):
                network.to(device)


def check_networks(chosen: Collection[str], known: Collection[str], kind: str) -> None:
    """Check names of networks that shall get an adapter.

    Raises:
        UserError: one cannot get one; the message names those that can.
    """
    if unknown := [name for name in chosen if name not in known]:
        reason = "diffusers loads no adapter of a text encoder for it" if unknown[0] in TEXT_ENCODERS else ""
        raise UserError(
            f"adapter.networks: {kind} has no network {unknown[0]} that can get an adapter"
            f"{reason and f' ({reason})'}; choose from {', '.join(known)}"
        )


def _given(value: Number | None, default: Number) -> Number:
    return default if value is None else value


def _family_of(pipe: Any) -> type[VideoModel]:
    """Return the family whose `pipeline_classes` have the pipeline's class or a base class of it."""
    from vader_ray import models  # the registry imports families, which import this file

    if (family := models.family_of_pipeline(kind.__name__ for kind in type(pipe).__mro__)) is not None:
        found: type[VideoModel] = models.resolve(family)
        return found
    known = ", ".join(sorted(models.pipelines()))
    raise UserError(
        f"from_pipeline: {type(pipe).__name__} is not a known video pipeline; give one of {known}"
    )
