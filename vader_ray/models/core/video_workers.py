"""Compute one video on several workers: a part of its tokens on each, or one branch of guidance.

All workers of a video hold the same latents to the last bit: the denoiser's output is gathered on each of
them, and whatever is outside the denoiser is computed by all. Within the denoiser a worker computes its own
tokens (context parallelism, diffusers' plans and Ulysses attention, arXiv 2309.14509) or its own branch. Its
gradients of the adapter are then a part of those of the video: their sum over the workers is exact, a mean
would be too small. Gradients of the latents, which flow on to earlier denoising steps, are summed where they
leave the denoiser.

gloo has every collective that is used: ``all_reduce``, ``all_gather_into_tensor``, ``all_to_all_single``.
Ring attention is not offered: it needs the sums within attention, which diffusers' backend for CPUs does not
give, so it could not be tested. In the backward pass diffusers' Ulysses computes attention once more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ParallelConfig
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import wait_tensor
from torch.distributed.device_mesh import DeviceMesh

from vader_ray.models.core.denoiser_calls import as_output, predictions, rows_of_branch, with_predictions
from vader_ray.types import VIDEO_MESH

_TEXT_INPUTS = ("encoder_hidden_states", "encoder_attention_mask")
_CROSS_ATTENTION = ".attn2"
"""End of the names of layers that attend to the text, which every worker keeps whole: diffusers' Ulysses
attention divides the heads and not the heads of a mask, so that LTX's masked text could not be divided."""


@dataclass(frozen=True, slots=True)
class VideoWorkers:
    """The workers that compute the same videos, from the point of view of one of them."""

    mesh: DeviceMesh
    """All workers of the run, with the dimensions `VIDEO_MESH`."""
    all: ProcessGroup
    """The workers of one video."""
    branches: ProcessGroup
    """The workers with the same tokens: one, or one for each branch of guidance."""
    branch: int
    """Branch that this worker computes, if each of two computes one."""

    @classmethod
    def of(cls, mesh: DeviceMesh) -> VideoWorkers:
        """Create the process groups; all workers of the run call it together."""
        together = mesh[VIDEO_MESH[1:]]._flatten()
        return cls(mesh, together.get_group(), mesh.get_group("guidance"), mesh.get_local_rank("guidance"))

    @property
    def num_branches(self) -> int:
        """Number of workers that compute different branches of guidance."""
        return self.mesh["guidance"].size()

    @property
    def num_token_parts(self) -> int:
        """Number of workers that compute different tokens."""
        return self.mesh["ulysses"].size()

    def split_tokens(self, denoiser: Any) -> None:
        """Let every call of a denoiser compute this worker's tokens alone; its output has all of them.

        diffusers' ``enable_parallelism`` does the same, but only on machines with an accelerator.
        """
        settings = ContextParallelConfig(ulysses_degree=self.num_token_parts, mesh=self.mesh)
        config = ParallelConfig(context_parallel_config=settings)
        device = torch.device(self.mesh.device_type)
        config.setup(distributed.get_rank(), distributed.get_world_size(), device, mesh=self.mesh)
        for name, module in denoiser.named_modules():
            processor: Any = getattr(module, "processor", None)
            if hasattr(processor, "_parallel_config") and not name.endswith(_CROSS_ATTENTION):
                processor._parallel_config = config
        apply_context_parallel(denoiser, settings, _without_text(denoiser._cp_plan))

    def sum_gradient(self, latents: Tensor) -> Tensor:
        """Return the same latents; their gradient is summed over the workers of the video."""
        if not latents.requires_grad:
            return latents
        summed: Tensor = _SumGradient.apply(latents, self.all)
        return summed

    def gather_branches(self, own: Tensor) -> list[Tensor]:
        """Return the predictions of both branches; gradients flow into this worker's alone."""
        gathered = torch.ops._c10d_functional.all_gather_into_tensor(
            own.detach().contiguous(), self.num_branches, self.branches.group_name
        )
        parts = list(wait_tensor(gathered).chunk(self.num_branches))
        parts[self.branch] = own
        return parts


class GuidanceBranches:
    """The guidance branches of one denoising loop, of which this worker computes one.

    A pipeline computes both in one call, one after the other in the batch, or in two calls.
    """

    def __init__(self, workers: VideoWorkers, num_videos: int) -> None:
        self._workers, self._num_videos = workers, num_videos
        self._first: Tensor | None = None
        """Prediction of the first of two calls."""

    def call(
        self, denoiser: Any, predict: Callable[[dict[str, Any]], Any], name: str, inputs: dict[str, Any]
    ) -> Any:
        """Return the denoiser's output for all inputs, of which this worker computes its branch.

        Args:
            denoiser: the network.
            predict: its call.
            name: of the argument with the latents.
            inputs: arguments of the denoiser by name.
        """
        num_rows = len(inputs[name])
        if num_rows == self._num_videos:
            unknown = _unknown(inputs[name], denoiser.config.out_channels)
            return self._one_of_two_calls(predict, unknown, inputs)
        branch = self._workers.branch
        own = {key: rows_of_branch(value, num_rows, branch) for key, value in inputs.items()}
        output = predict(own)
        gathered = [torch.cat(self._workers.gather_branches(each)) for each in predictions(output)]
        return with_predictions(output, gathered)

    def _one_of_two_calls(
        self, predict: Callable[[dict[str, Any]], Any], unknown: Tensor, inputs: dict[str, Any]
    ) -> Any:
        """Compute one of the calls; the other returns numbers that arrive with the second call.

        Pipelines read neither prediction before the second call.
        """
        first, self._first = self._first, None
        is_own = self._workers.branch == int(first is not None)
        output = predict(inputs) if is_own else as_output([unknown], inputs)
        (own,) = predictions(output)
        if first is None:
            self._first = own
            return output
        both = self._workers.gather_branches(own if is_own else first)
        if is_own:
            first.data.copy_(both[0])
            return output
        return with_predictions(output, [both[1]])


class _SumGradient(torch.autograd.Function):
    """Identity whose backward pass sums the gradient over workers."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        name = ctx.group.group_name
        total = torch.ops._c10d_functional.all_reduce(gradient.contiguous(), "sum", name)
        return wait_tensor(total), None


def _without_text(plan: dict[str, Any]) -> dict[str, Any]:
    """Return diffusers' plan with the text whole on every worker."""
    return {
        part: {name: rule for name, rule in rules.items() if name not in _TEXT_INPUTS}
        if isinstance(rules, dict)
        else rules
        for part, rules in plan.items()
    }


def _unknown(latents: Tensor, num_channels: int) -> Tensor:
    """Return a prediction whose numbers are not known yet."""
    wide = torch.promote_types(latents.dtype, torch.float32)
    return latents.new_full((len(latents), num_channels, *latents.shape[2:]), torch.nan, dtype=wide)
