"""Videos of a report: of the base model and of each run, at several steps, with their scores."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vader_ray.orchestration.reporting.past_runs import PastRun, PastVideo
from vader_ray.training.media import read_mp4

MAX_PROMPTS, MAX_VIDEO_RUNS = 3, 8
"""Held-out prompts and runs whose videos are on the page."""
MAX_CLIPS = 72
"""Videos of the page; with more runs, fewer steps of each are shown."""
MAX_VIDEO_BYTES = 24_000_000
"""Size of all videos of the page."""
STILL_HEIGHT, NUM_STILLS = 128, 4
"""Height in pixels and number of the frames that replace a video in print."""


@dataclass(frozen=True)
class Clip:
    """One step of a card."""

    step: int
    note: str
    """Addition to the step's number, such as ``best adapter``."""
    mp4: str
    """The video, base64."""
    poster: str
    """First frame as JPEG, base64."""
    strip: str
    """Frames side by side as JPEG, base64; printed instead of the video."""
    scores: list[tuple[str, float, float | None]]
    """Name, value and gain over the base model of each score; no gain for the base model itself."""


@dataclass(frozen=True)
class Card:
    """Videos of a run, or of the base model, for one prompt; the page shows one of them at a time."""

    label: str
    """Name of the run, below the video."""
    clips: list[Clip]
    """By step."""


def video_rows(runs: Sequence[PastRun]) -> tuple[list[tuple[str, list[Card]]], int]:
    """Return, per prompt, the cards of the base model and of each run; and the number of runs left out.

    After `MAX_VIDEO_RUNS` runs the others are left out, whether or not they have videos.
    """
    rows: dict[str, list[Card]] = {}
    bases, spent, left_out = set[tuple[str, ...]](), 0, max(0, len(runs) - MAX_VIDEO_RUNS)
    chosen = runs[:MAX_VIDEO_RUNS]
    num_steps = max(1, MAX_CLIPS // (MAX_PROMPTS * len(chosen)) - 1) if chosen else 0
    for run in chosen:
        steps = run.video_steps()
        if not steps:
            continue
        kept = _chosen_steps(run, steps, num_steps)
        videos = {step: run.videos(step, MAX_PROMPTS) for step in ([0] if 0 in steps else []) + kept}
        while len(kept) > 1 and spent + _size(videos) > MAX_VIDEO_BYTES:
            videos.pop(kept.pop(0))
        if spent + _size(videos) > MAX_VIDEO_BYTES:
            left_out += 1
            continue
        spent += _size(videos)
        base = videos.pop(0, None)
        if base is not None and _base(run) not in bases:
            bases.add(_base(run))
            _add(rows, run, f"base model, seed {run.settings.get('seed', '0')}", {0: base}, None)
        _add(rows, run, run.name, videos, base)
    return list(rows.items()), left_out


def _chosen_steps(run: PastRun, steps: Sequence[int], count: int) -> list[int]:
    """Return at most `count` steps after 0, evenly spaced, with the last one and that of the best adapter."""
    trained = [step for step in steps if step]
    if not trained:
        return []
    spaced = {trained[round(index)] for index in np.linspace(len(trained) - 1, 0, min(count, len(trained)))}
    best = int(run.last("eval/best_step") or 0)
    return sorted(spaced | ({best} & set(trained)))


def _size(videos: dict[int, list[PastVideo]]) -> int:
    return sum(len(video.mp4) for of_step in videos.values() for video in of_step)


def _add(
    rows: dict[str, list[Card]],
    run: PastRun,
    label: str,
    videos: dict[int, list[PastVideo]],
    base: list[PastVideo] | None,
) -> None:
    """Add a card to the row of each prompt."""
    for index, prompt in enumerate(_prompts(run, max((len(found) for found in videos.values()), default=0))):
        clips = [
            _clip(run, step, found[index], base[index] if base and index < len(base) else None)
            for step, found in videos.items()
            if index < len(found)
        ]
        rows.setdefault(prompt, []).append(Card(label, clips))


def _base(run: PastRun) -> tuple[str, ...]:
    """Return the settings on which the base model's videos depend."""
    free = (
        "sampling.truncation",
        "sampling.recompute",
        "sampling.prefix",
        "sampling.guidance_interval",
        "sampling.num_endings",
    )
    kept = ("seed", "model.", "sampling.", "prompts.validation")
    return tuple(f"{field}={value}" for field, value in sorted(run.settings.items())
                 if field.startswith(kept) and not field.startswith(free))  # fmt: skip


def _prompts(run: PastRun, count: int) -> list[str]:
    """Return the texts of the first held-out prompts, repeated as evaluations repeat them."""
    prompts = run.recipe.get("prompts", {}).get("validation") or [
        f"video {index + 1}" for index in range(count)
    ]
    return [str(prompts[index % len(prompts)]).rpartition(" | ")[2] for index in range(count)]


def _clip(run: PastRun, step: int, video: PastVideo, base: PastVideo | None) -> Clip:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        path.write_bytes(video.mp4)
        frames = read_mp4(path)[: video.num_frames]
    stills = frames[np.linspace(0, len(frames) - 1, min(NUM_STILLS, len(frames))).round().astype(int)]
    before = base.scores if base else {}
    scores = [
        (name, value, value - before[name] if name in before else None)
        for name, value in video.scores.items()
    ]
    note = "best adapter" if step and step == int(run.last("eval/best_step") or 0) else ""
    encoded = base64.b64encode(video.mp4).decode()
    return Clip(step, note, encoded, _jpeg(frames[0]), _jpeg(np.concatenate(stills, axis=1)), scores)


def _jpeg(pixels: Any) -> str:
    image = Image.fromarray(pixels)
    image = image.resize((round(image.width * STILL_HEIGHT / image.height), STILL_HEIGHT))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()
