"""Linear layers without activations behind an image's embedding: the head of several published scorers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from vader_ray.errors import UserError
from vader_ray.weights import load_strictly

LAION_INDICES = (0, 2, 4, 6, 7)
"""Indices of the linear layers in the files of LAION's and ImageReward's heads."""


class LinearHead(nn.Module):
    """Linear layers without activations, named as in the published file.

    The file's dropouts are off in eval mode and left out.

    Args:
        sizes: numbers of features, from input to output.
        indices: indices of the linear layers in the published file; the others are dropouts.
    """

    def __init__(self, sizes: Sequence[int], indices: Sequence[int] = LAION_INDICES) -> None:
        super().__init__()
        self.num_features = sizes[0]
        pairs = zip(indices, sizes, sizes[1:], strict=False)
        self.layers = nn.Sequential(
            OrderedDict((str(index), nn.Linear(wide, narrow)) for index, wide, narrow in pairs)
        )

    def forward(self, features: Float[Tensor, "n features"]) -> Float[Tensor, "n 1"]:
        """Return the rating of each feature vector."""
        ratings: Tensor = self.layers(features)
        return ratings


def load_linear_head(
    state: Mapping[str, Tensor], source: Path, sizes: Sequence[int], indices: Sequence[int] = LAION_INDICES
) -> LinearHead:
    """Load a head from its weights ``layers.N.…``; the sizes are read from them.

    Args:
        state: weights of the head by name.
        source: file of the weights, for messages.
        sizes: of the published head, used if ``state`` is of another network: loading then reports it.
        indices: as of `LinearHead`.
    """
    names = [f"layers.{index}.weight" for index in indices]
    if all(name in state and state[name].ndim == 2 for name in names):
        sizes = (state[names[0]].shape[1], *(state[name].shape[0] for name in names))
    head = LinearHead(sizes, indices)
    load_strictly(head, state, source)
    return head


def check_fits(num_taken: int, head: Path | str, num_given: int, encoder: Path) -> None:
    """Check that a head was trained on an encoder.

    Args:
        num_taken: features that the head takes.
        head: its file, for the message.
        num_given: features that the encoder gives.
        encoder: its folder, for the message.

    Raises:
        UserError: the numbers differ.
    """
    if num_taken != num_given:
        raise UserError(
            f"the head {head} takes {num_taken} features but the encoder {encoder} gives {num_given}; give a "
            "head that was trained on this encoder"
        )
