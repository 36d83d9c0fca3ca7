"""Sampling that was stopped between two denoising steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """A scheduler between two denoising steps."""

    outputs: tuple[Tensor, ...]
    """Last return value of ``scheduler.step``, the sample first; ``batch`` or ``batch·frames`` leads. Some
    schedulers (CogVideoX's DPM) return a second tensor, which the loop passes to their next step."""
    attributes: dict[str, Any]
    """Attributes of the scheduler."""

    def of_videos(self, chosen: Sequence[int], num_videos: int) -> SchedulerState:
        """Return the state of some of the videos."""
        shape = self.outputs[0].shape
        rows = rows_of(chosen, shape[0] // num_videos)
        attributes = tree_map_only(
            Tensor, lambda tensor: tensor[rows] if tensor.shape == shape else tensor, self.attributes
        )
        return SchedulerState(tuple(output[rows] for output in self.outputs), attributes)

    @staticmethod
    def join(parts: Sequence[SchedulerState]) -> SchedulerState:
        """Concatenate the tensors of the sample's shape; everything else is equal in all states."""
        shape = parts[0].outputs[0].shape

        def join(first: Any, *others: Any) -> Any:
            is_sample = isinstance(first, Tensor) and first.shape == shape
            return torch.cat([first, *others]) if is_sample else first

        outputs = tuple(torch.cat(column) for column in zip(*(part.outputs for part in parts), strict=True))
        attributes: dict[str, Any] = tree_map(join, *(part.attributes for part in parts))
        return SchedulerState(outputs, attributes)


@dataclass(frozen=True, slots=True)
class SamplingState:
    """Sampling that was stopped before the first gradient step; one entry per video, can be sliced."""

    noise: Tensor
    """Initial noise, ``batch channels frames height width``."""
    seeds: tuple[int, ...]
    schedulers: tuple[SchedulerState, ...] = ()
    """The pipeline's scheduler and, if it makes sound, the copy of it for the sound; empty before step 0."""

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, part: slice | list[int]) -> SamplingState:
        chosen = list(range(len(self)))[part] if isinstance(part, slice) else part
        seeds = tuple(self.seeds[video] for video in chosen)
        schedulers = tuple(each.of_videos(chosen, len(self)) for each in self.schedulers)
        return SamplingState(self.noise[chosen], seeds, schedulers)

    @staticmethod
    def join(parts: Sequence[SamplingState]) -> SamplingState:
        """Concatenate states that stopped before the same denoising step."""
        if len(parts) == 1:
            return parts[0]
        noise = torch.cat([part.noise for part in parts])
        seeds = tuple(seed for part in parts for seed in part.seeds)
        columns = zip(*(part.schedulers for part in parts), strict=True)
        return SamplingState(noise, seeds, tuple(SchedulerState.join(column) for column in columns))


def rows_of(videos: Sequence[int], rows_per_video: int) -> list[int]:
    """Return the rows of some videos in a tensor with ``rows_per_video`` rows for each video."""
    return [video * rows_per_video + row for video in videos for row in range(rows_per_video)]
