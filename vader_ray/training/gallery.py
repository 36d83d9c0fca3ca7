"""HTML page of held-out videos before and after training, in one file."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vader_ray.training import web
from vader_ray.training.events import Video
from vader_ray.training.media import pair_videos, repeat_short, write_mp4


@dataclass(frozen=True)
class _Clip:
    """One video of the page."""

    label: str
    mp4: str
    """The video, base64."""
    scores: list[tuple[str, float, float | None]]
    """Name, value and gain of each score; no gain before training."""


def gallery_html(
    before: Sequence[Video], after: Sequence[Video], *, title: str, frames_per_second: float
) -> str:
    """Return an HTML page on which the videos before and after play side by side, in step."""
    pairs = pair_videos(before, after)
    return web.render(
        Path(web.__file__).with_name("gallery.html.j2"),
        title=title,
        means=_means(pairs),
        pairs=[
            (old.prompt, old.noise_seed,
             [_clip(old, None, frames_per_second), _clip(new, old, frames_per_second)])
            for old, new in pairs
        ],
    )  # fmt: skip


def _means(pairs: list[tuple[Video, Video]]) -> list[tuple[str, float, float]]:
    """Return the name of each score, its mean before and its mean after."""
    return [
        (
            name,
            float(np.mean([before.scores[name] for before, _ in pairs])),
            float(np.mean([after.scores[name] for _, after in pairs])),
        )
        for name in (pairs[0][0].scores if pairs else ())
    ]


def _clip(video: Video, earlier: Video | None, frames_per_second: float) -> _Clip:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_mp4(repeat_short(video.frames, frames_per_second), path, frames_per_second)
        mp4 = base64.b64encode(path.read_bytes()).decode()
    scores = [
        (name, score, score - earlier.scores[name] if earlier else None)
        for name, score in video.scores.items()
    ]
    return _Clip("after" if earlier else "before", mp4, scores)
