"""Sharpness: the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), a common estimate of focus."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from vader_ray.types import Frames, Granularity, Scores

WHITE = 255.0
"""Value of white: the usual scale is that of 8-bit images."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601), as in OpenCV."""
LAPLACIAN = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


class SharpnessReward:
    """The mean over frames of the variance of the 3 × 3 Laplacian of the grey image.

    The same as ``cv2.Laplacian(grey, CV_64F).var()``.

    It is 0 for a uniform frame, below about 100 for a blurred photograph, and thousands for a sharp or noisy
    one. It is not bounded above, so give it a ``target`` in training. The border is mirrored; the prompts
    have no influence.
    """

    granularity: Granularity = "frame"
    unit = "variance of the Laplacian of 8-bit grey, 0 uniform, above 100 sharp"
    default_weights = ""
    licence = ""

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video."""
        grey = torch.einsum("bfchw,c->bfhw", WHITE * frames, frames.new_tensor(GREY))
        padded = functional.pad(grey, (1, 1, 1, 1), mode="reflect").flatten(0, 1)[:, None]
        edges = functional.conv2d(padded, frames.new_tensor(LAPLACIAN)[None, None])
        return edges.flatten(1).var(dim=1, correction=0).view(grey.shape[:2]).mean(dim=1)
