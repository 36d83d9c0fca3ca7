"""Where the shape and the landmark are in each frame, for the weights of losses."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vader_ray.shapes.data import LANDMARK_HALF_SIDE, Scenes


def around_shape(scenes: Scenes, num_cells: int) -> Bool[Tensor, "scenes frames num_cells num_cells"]:
    """Mark the cells of each frame, ``num_cells`` a side, within 1.2 radii of the shape's centre, as a
    square."""
    distance = (_cells(num_cells) - scenes.centre[:, :, None, None]).abs().amax(-1)
    return distance < 1.2 * scenes.radius[:, None, None, None]


def around_objects(scenes: Scenes, num_cells: int) -> Bool[Tensor, "scenes frames num_cells num_cells"]:
    """Mark the cells around the shape, and those of the landmark."""
    distance = (_cells(num_cells) - scenes.landmark_centre[:, None, None, None]).abs().amax(-1)
    landmark = (distance < 1.1 * LANDMARK_HALF_SIDE) & (scenes.landmark > 0)[:, None, None, None]
    return around_shape(scenes, num_cells) | landmark


def _cells(num_cells: int) -> Float[Tensor, "num_cells num_cells 2"]:
    middles = (torch.arange(num_cells) + 0.5) * 2 / num_cells - 1
    return torch.stack(torch.meshgrid(middles, middles, indexing="xy"), -1)
