"""The videos that one worker makes in one step, and how many of them are in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vader_ray.types import Sliceable, Trajectory


@dataclass(frozen=True, slots=True)
class Rollout:
    """The videos that one worker makes in one step."""

    prompts: Sequence[str]
    conditioning: Sliceable
    seeds: Sequence[int]
    """Noise seed of each video."""
    seen: Sequence[Sequence[Sequence[int]]]
    """For each term and each video, the frames that its reward looks at."""
    draws: Sequence[int] = ()
    """For each video, the seed of what an algorithm draws beside its noise."""
    given: Trajectory | None = None
    """Finished videos that are not to be made: pairs, the better one first."""

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int) -> Rollout:
        """The videos ``start`` to ``stop``."""
        cut = slice(start, stop)
        return Rollout(
            self.prompts[cut],
            self.conditioning[cut],
            self.seeds[cut],
            [chosen[cut] for chosen in self.seen],
            self.draws[cut],
            None if self.given is None else self.given[cut],
        )

    def parts(self, size: int) -> Iterator[Rollout]:
        """All videos, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.part(start, min(start + size, len(self)))


@dataclass(frozen=True, slots=True)
class Batching:
    """How many videos and frames are in memory at once; changes no result beyond summation order."""

    prefix: int = 1
    micro: int = 1
    chunk: int = 1
    """Frames decoded and scored with gradient at once."""
