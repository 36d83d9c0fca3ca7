"""Video files as ffmpeg decodes them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray


def decode(path: Path) -> tuple[str, NDArray[np.uint8]]:
    """Return ffmpeg's description of the stream, and its frames. (imageio_ffmpeg's own reader leaves pipes
    open.)"""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    stream = re.search(r"Stream #0:0.*Video: (.*)", done.stderr.decode())
    assert stream is not None
    size = re.search(r", (\d+)x(\d+)", stream[1])
    assert size is not None
    return stream[1], np.frombuffer(done.stdout, np.uint8).reshape(-1, int(size[2]), int(size[1]), 3)
