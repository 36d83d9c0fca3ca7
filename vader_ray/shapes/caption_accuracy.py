"""Caption accuracy: whether a video of the shapes data set shows what its prompt names.

A metric for recipes: ``eval_metrics: [{metric: vader_ray.shapes.caption_accuracy}]`` logs
``eval/caption_accuracy/shape``, ``…/colour``, ``…/direction``, ``…/speed`` and ``…/landmark``. It was trained
independently of every reward, so it exposes reward hacking.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vader_ray.shapes.caption_classifier import load_caption_classifier
from vader_ray.shapes.data import ATTRIBUTES
from vader_ray.types import Frames, Scores


class CaptionAccuracyMetric(nn.Module):
    """For each attribute of the caption 1 where `CaptionClassifier` finds it in the video, else 0."""

    unit = "share of videos that show what their prompt names, 0 to 1"
    higher_is_better = True
    parts = tuple(ATTRIBUTES)

    def __init__(self) -> None:
        super().__init__()
        self.classifier = load_caption_classifier()

    def forward(self, frames: Frames, prompts: Sequence[str], /) -> dict[str, Scores]:
        """Score each video for each attribute.

        Raises:
            UserError: a prompt does not name exactly one shape, colour and direction.
        """
        follows: dict[str, Tensor] = self.classifier.follows(frames, list(prompts))
        return {attribute: right.float() for attribute, right in follows.items()}
