"""VBench's consistency of a video (arXiv 2311.17982): how alike the embeddings of its frames are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from vader_ray.types import Scores


def consistency(embeddings: Float[Tensor, "batch frames features"]) -> Scores:
    """Return the mean cosine of each frame but the first with the frame before it and with the first.

    Negative cosines count as 0. A single frame is consistent: 1.
    """
    if embeddings.shape[1] < 2:
        return embeddings.new_ones(len(embeddings))
    unit = functional.normalize(embeddings, dim=-1)
    later = unit[:, 1:]
    before, first = ((later * other).sum(dim=-1).clamp_min(0) for other in (unit[:, :-1], unit[:, :1]))
    return torch.stack([before, first]).mean(dim=(0, 2))
