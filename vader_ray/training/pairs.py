"""Files of given preference pairs for Diffusion-DPO: two videos of one prompt, one of them preferred."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import torch

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.types import Frames

_COLUMNS = ("prompt", "winner", "loser")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two videos of one prompt."""

    prompt: str
    """Text of the prompt."""
    winner: Path
    """File of the preferred video."""
    loser: Path
    """File of the other video."""


def read_pairs(file: str) -> tuple[Pair, ...]:
    """Read the pairs of a Parquet or JSON lines file; relative paths of videos start at its folder.

    Raises:
        UserError: a column is missing, or a video does not exist.
    """
    path = Path(file)
    try:
        rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else _read_lines(path)
        pairs = tuple(
            Pair(row["prompt"], path.parent / row["winner"], path.parent / row["loser"]) for row in rows
        )
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"algorithm.pairs: {path} needs {', '.join(_COLUMNS)} in every row "
            f"({type(error).__name__}: {error})"
        ) from None
    if missing := [video for pair in pairs for video in (pair.winner, pair.loser) if not video.is_file()]:
        raise UserError(f"algorithm.pairs: the video {missing[0]} of {path} does not exist; correct its path")
    if not pairs:
        raise UserError(f"algorithm.pairs: {path} holds no pair; give one row per pair")
    return pairs


def _read_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_frames(path: Path, sampling: SamplingConfig) -> Frames:
    """Read the frames of one video, without batch dimension, in [0, 1].

    Raises:
        UserError: the file cannot be read, or its shape is not the recipe's.
    """
    pixels = np.load(path) if path.suffix == ".npy" else _decode(path, sampling)
    expected = (sampling.num_frames, sampling.height, sampling.width, 3)
    if pixels.shape != expected or pixels.dtype != np.uint8:
        raise UserError(
            f"algorithm.pairs: {path} holds {pixels.dtype} {pixels.shape}, the recipe's sampling makes uint8 "
            f"{expected} (frames, height, width, 3); convert the video, or change sampling"
        )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def _decode(path: Path, sampling: SamplingConfig) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Decode all frames of an mp4, scaled to the recipe's height and width."""
    scale = f"scale={sampling.width}:{sampling.height}:flags=area"
    only_files = ("-protocol_whitelist", "file", "-i", f"file:{path}")  # a video that names a URL is refused
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *only_files, "-vf", scale]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 (a list, no shell)
    if done.returncode:
        raise UserError(
            f"algorithm.pairs: {path} cannot be read as a video: "
            f"{done.stderr.decode(errors='replace').strip()}"
        )
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, sampling.height, sampling.width, 3).copy()
