"""Videos for people: mp4 files for every browser, and contact sheets."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vader_ray.files import atomic_write
from vader_ray.training.events import Video
from vader_ray.training.web import number, signed

PixelFrames = NDArray[np.uint8]
"""One video, ``frames height width 3``, in 0…255."""

BT709 = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
"""ffmpeg filter that declares the colour space in full: players guess what is not declared."""
PLAYER_SIDE = 256
"""Short side, in pixels, below which a video is enlarged so that a player shows something."""
TILE_SIDE = 160
"""Short side of a frame on a sheet, in pixels."""
SHORT_SECONDS, NUM_LOOPS = 3.0, 3
"""Duration below which a clip is written several times in a row, and how often: most players show it once."""
NUM_SHEET_FRAMES = 8
"""Largest number of frames of a video on a sheet."""
MARGIN, GAP, ROW_GAP = 28, 4, 26
"""Space around a sheet, between frames, and between rows, in pixels."""
INK, GREY, RISE, FALL, PAPER = "#1a1a1a", "#6b6b6b", "#1a8f42", "#c93a30", "#ffffff"
"""Colours of text, scores, gains, losses and background."""


class Strip(NamedTuple):
    """One row of frames on a sheet, with its heading and scores on the left."""

    heading: str
    scores: list[Image.Image]
    frames: PixelFrames


# ---- video


def write_mp4(frames: PixelFrames, path: Path, frames_per_second: float) -> None:
    """Write H.264, yuv420p, index first: what browsers and phones play.

    Small videos are enlarged by a whole factor without smoothing; an odd side gets one more row or column of
    its edge.
    """
    pixels = _even(_enlarge(frames, PLAYER_SIDE))
    height, width = pixels.shape[1:3]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y"]
    command += [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        str(frames_per_second),
        "-i",
        "-",
    ]
    command += [
        "-vf",
        f"scale=out_color_matrix=bt709:out_range=tv,format=yuv420p,{BT709}",
        "-c:v",
        "libx264",
        "-crf",
        "16",
    ]
    command += ["-movflags", "+faststart", "-f", "mp4"]
    with atomic_write(path) as unfinished:
        done = subprocess.run(  # noqa: S603 (a list, no shell)
            [*command, str(unfinished)], input=pixels.tobytes(), capture_output=True, check=False
        )
        if done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            if (full := os.strerror(errno.ENOSPC)) in message:
                raise OSError(errno.ENOSPC, full, str(path))
            raise RuntimeError(f"ffmpeg could not write {path}: {message}")


def repeat_short(frames: PixelFrames, frames_per_second: float) -> PixelFrames:
    """Return the frames of a clip, `NUM_LOOPS` times in a row if it is shorter than `SHORT_SECONDS`."""
    is_short = len(frames) / frames_per_second < SHORT_SECONDS
    return np.concatenate([frames] * NUM_LOOPS) if is_short else frames


def read_mp4(path: Path) -> PixelFrames:
    """Read all frames of a video file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += [
        "-f",
        "image2pipe",
        "-c:v",
        "ppm",
        "-",
    ]  # each frame with its size in front: P6, width and height, 255
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 (a list, no shell)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"ffmpeg could not read {path}: {done.stderr.decode(errors='replace').strip()}")
    header = b"\n".join(done.stdout.split(b"\n", 3)[:3]) + b"\n"
    width, height = map(int, header.split()[1:3])
    images = np.frombuffer(done.stdout, np.uint8).reshape(-1, len(header) + width * height * 3)
    return images[:, len(header) :].reshape(-1, height, width, 3)


def _enlarge(frames: PixelFrames, side: int) -> PixelFrames:
    """Enlarge frames to a short side of at least `side`, each pixel repeated a whole number of times."""
    factor = -(-side // min(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else frames


def _even(frames: PixelFrames) -> PixelFrames:
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


# ---- sheets


def contact_sheet(videos: Sequence[Video], *, title: str = "", num_frames: int = 8) -> Image.Image:
    """Draw one row per video: its prompt, its scores and `num_frames` evenly spaced frames."""
    rows = [(video.prompt, [Strip("", _score_lines(video), video.frames)]) for video in videos]
    return draw_sheet(rows, title, num_frames)


def before_after_sheet(before: Sequence[Video], after: Sequence[Video], *, title: str = "") -> Image.Image:
    """Draw for each prompt the video before training above the one after it, with scores and gains.

    Both were made from the same noise.
    """
    rows = [
        (
            old.prompt,
            [
                Strip("before", _score_lines(old), old.frames),
                Strip("after", _gain_lines(old, new), new.frames),
            ],
        )
        for old, new in pair_videos(before, after)
    ]
    return draw_sheet(rows, title, NUM_SHEET_FRAMES)


def pair_videos(before: Sequence[Video], after: Sequence[Video]) -> list[tuple[Video, Video]]:
    """Pair the videos before and after training, which have the same prompts and noise."""
    made_from = [[(video.prompt, video.noise_seed) for video in videos] for videos in (before, after)]
    assert made_from[0] == made_from[1], "before and after show different prompts or noise"
    return list(zip(before, after, strict=True))


def _score_lines(video: Video) -> list[Image.Image]:
    return [draw_text(f"{name} {number(score)}", 15, colour=GREY) for name, score in video.scores.items()]


def _gain_lines(old: Video, new: Video) -> list[Image.Image]:
    """Draw the scores of `new`, each followed by its gain."""
    gains = [draw_text(signed(gain), 15, colour=_gain_colour(gain)) for gain in _gains(old, new).values()]
    return [_row([line, gain], gap=10) for line, gain in zip(_score_lines(new), gains, strict=True)]


def _gains(old: Video, new: Video) -> dict[str, float]:
    return {name: score - old.scores[name] for name, score in new.scores.items()}


def _gain_colour(gain: float) -> str:
    return RISE if gain > 0 else FALL if gain < 0 else GREY


def draw_sheet(rows: list[tuple[str, list[Strip]]], title: str, num_frames: int) -> Image.Image:
    """Draw rows with their captions below each other; a row has strips of at most `num_frames` frames."""
    labels = [
        _stack([draw_text(strip.heading, 17, bold=True), *strip.scores])
        for _, strips in rows
        for strip in strips
    ]
    gutter = max((label.width for label in labels), default=0) + 20
    blocks = [draw_text(title, 24, bold=True)] if title else []
    for prompt, strips in rows:
        drawn = [_draw_strip(strip, gutter, num_frames) for strip in strips]
        caption = draw_text(prompt, 19, width=max(image.width for image in drawn))
        blocks.append(_stack([caption, *drawn], gap=2 * GAP))
    body = _stack(blocks, gap=ROW_GAP)
    sheet = Image.new("RGB", (body.width + 2 * MARGIN, body.height + 2 * MARGIN), PAPER)
    sheet.paste(body, (MARGIN, MARGIN))
    return sheet


def _stack(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Join images from top to bottom, flush left."""
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    stack = Image.new("RGB", (max(image.width for image in images), height), PAPER)
    top = 0
    for image in images:
        stack.paste(image, (0, top))
        top += image.height + gap
    return stack


def _row(images: Sequence[Image.Image], gap: int = 0) -> Image.Image:
    """Join images from left to right, flush at the top."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), PAPER)
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def _draw_strip(strip: Strip, gutter: int, num_frames: int) -> Image.Image:
    heading = [draw_text(strip.heading, 17, bold=True)] if strip.heading else []
    label = _stack([*heading, *strip.scores, Image.new("RGB", (gutter, 1), PAPER)])
    tiles = [_tile(frame) for frame in _evenly_spaced(strip.frames, num_frames)]
    return _row([label, _row(tiles, gap=GAP)])


def _evenly_spaced(frames: PixelFrames, num_frames: int) -> PixelFrames:
    """Choose at most `num_frames` of the frames, the first and the last among them."""
    chosen: PixelFrames = frames[
        np.linspace(0, len(frames) - 1, min(num_frames, len(frames))).round().astype(int)
    ]
    return chosen


def _tile(frame: NDArray[np.uint8]) -> Image.Image:
    """Resize a frame to a short side of about `TILE_SIDE`: enlarged without smoothing, or reduced."""
    image = Image.fromarray(frame)
    scale = TILE_SIDE / min(image.size)
    if scale >= 1:
        return image.resize(
            (image.width * round(scale), image.height * round(scale)), Image.Resampling.NEAREST
        )
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def draw_text(
    text: str, size: int, *, bold: bool = False, colour: str = INK, width: float = float("inf")
) -> Image.Image:
    """Draw text as an image as wide as its longest line; longer lines than `width` are broken."""
    font = _font(size, bold=bold)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    pitch = round(size * 1.35)
    widest = min(max(font.getlength(line) for line in lines), width)
    image = Image.new("RGB", (max(1, int(widest) + 1), pitch * len(lines)), PAPER)
    for index, line in enumerate(lines):
        ImageDraw.Draw(image).text((0, index * pitch), line, font=font, fill=colour)
    return image


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
