"""The videos of one step on one worker, and the batch sizes that bound its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vader_ray.config import MatmulPrecision
from vader_ray.types import Sliceable, Trajectory


@dataclass(frozen=True, slots=True)
class Rollout:
    """The videos of one step on one worker: one entry per video in every field."""

    prompts: Sequence[str]
    """Text of each video's prompt."""
    conditioning: Sliceable
    """Encoded prompts, with images for image-to-video."""
    seeds: Sequence[int]
    """Noise seed of each video."""
    frame_indices: Sequence[Sequence[Sequence[int]]]
    """Indices of the frames that a reward scores, for each term of the objective and each video."""
    draw_seeds: Sequence[int] = ()
    """Seed of each video's other random choices, such as Diffusion-DPO's timesteps."""
    given: Trajectory | None = None
    """Finished videos in place of sampled ones: pairs, the preferred video first."""

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, stop: int) -> Rollout:
        """Return the videos ``start`` to ``stop − 1``."""
        cut = slice(start, stop)
        return Rollout(
            self.prompts[cut],
            self.conditioning[cut],
            self.seeds[cut],
            [indices[cut] for indices in self.frame_indices],
            self.draw_seeds[cut],
            None if self.given is None else self.given[cut],
        )

    def parts(self, size: int) -> Iterator[Rollout]:
        """Iterate over all videos in batches of ``size``; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.part(start, min(start + size, len(self)))

    def wanted_frames(self) -> list[int]:
        """Return the ascending indices of all frames that any reward scores in any video."""
        return sorted({frame for indices in self.frame_indices for row in indices for frame in row})


@dataclass(frozen=True, slots=True)
class Batching:
    """Numbers of videos and frames in memory at once, on which results depend by summation order alone, and
    the precision of frozen networks."""

    prefix: int = 1
    """Videos that are sampled together without gradient."""
    micro: int = 1
    """Videos whose gradient steps are in memory together."""
    chunk: int = 1
    """Frames that are decoded and scored with gradient together."""
    matmul_precision: MatmulPrecision = "tf32"
    """Precision of float32 products in decoder and rewards on GPUs."""
