"""Seeds of all random choices: functions of (seed, step, video index), not of rank, time or worker count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")
_STREAMS = {
    "noise": 1,
    "prompt": 2,
    "truncation": 3,
    "frames": 4,
    "evaluation": 5,
    "adapter": 6,
    "algorithm": 7,
    "guard": 8,
    "reward_dropout": 9,
    "test": 10,
}
"""Number of each stream, part of its seeds: changing one changes the results of every run."""


def derive_seed(seed: int, stream: str, *indices: int) -> int:
    """Derive a 63-bit seed for one random choice, independent between streams and indices.

    Source: numpy's SeedSequence.
    """
    return int(
        np.random.SeedSequence([seed, _STREAMS[stream], *indices]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


def generator(seed: int, stream: str, *indices: int) -> torch.Generator:
    """Return a CPU generator for one random choice, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *indices))


def prompt_of(prompts: Sequence[T], seed: int, video: int) -> T:
    """Return the prompt (or given pair) of a video: all once, shuffled, before any is repeated."""
    epoch, position = divmod(video, len(prompts))
    order = torch.randperm(len(prompts), generator=generator(seed, "prompt", epoch))
    return prompts[int(order[position])]
