"""Relative reward: another reward for a positive text minus the same reward for a negative one (SRPO, arXiv
2509.06942).

The part of a score that does not depend on the text, such as a liking for saturated colours, is in both
scores, and k times of it is left. The rest rises only where a video fits the positive text better than the
negative one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BeforeValidator, Field

from vader_ray import rewards
from vader_ray.config import RewardConfig, section
from vader_ray.errors import UserError
from vader_ray.plugin_options import check_options
from vader_ray.rewards.base import FrozenNetworks
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.types import Frames, Granularity, Reward, Scores

PLACEHOLDER = "{prompt}"
"""Part of a template that stands for the video's prompt."""


def _check_wrapped(given: Any, info: Any) -> dict[str, Any]:
    """Return the settings of the wrapped reward with absolute paths, as plain values."""
    settings = {"reward": given} if isinstance(given, str) else given
    if not isinstance(settings, Mapping) or not isinstance(settings.get("reward"), str):
        raise ValueError(
            "give the name of a reward, or a section with `reward` and the options of this reward"
        )
    if outer := sorted(settings.keys() & (RewardConfig.model_fields.keys() - {"reward"})):
        raise ValueError(f"{outer[0]} is a setting of the whole reward; write it beside `of`, not in it")
    spec = section(RewardConfig, settings, "")
    checked = rewards.check(spec, folder=(info.context or {}).get("folder"))
    return {"reward": checked.reward, **checked.options}


def _check_template(template: str) -> str:
    if PLACEHOLDER not in template:
        raise ValueError(f"{template!r} has no {PLACEHOLDER}; write it where the video's prompt belongs")
    return template


Wrapped = Annotated[dict[str, Any], BeforeValidator(_check_wrapped)]
"""A reward's name, or a section with ``reward`` and the reward's options."""
Template = Annotated[str, AfterValidator(_check_template)]
"""A text with ``{prompt}`` in the place of the video's prompt."""


class RelativeReward(FrozenNetworks):
    """(1 + k) · f(positive text) − f(negative text), for any reward f that reads the prompt.

    Costs two passes of the wrapped reward, whose activations are in memory together.

    Args:
        of: the reward f: its name, or a section with ``reward`` and its options.
        positive: text that is desired, e.g. ``"Realistic photo. {prompt}"``.
        negative: text that is not, e.g. ``"CG render. {prompt}"``; ``"{prompt}"`` is the prompt alone.
        k: weight of f(positive text) beyond the difference; with 0 both texts count alike. SRPO's runs use
            0.1 to 0.25 in its denoising branch.

    Raises:
        UserError: the two texts are the same.
    """

    granularity: Granularity = "clip"
    unit = "(1 + k) · score − score of the reward `of`, with its networks"
    default_weights = ""
    licence = ""

    def __init__(
        self,
        *,
        of: Wrapped,
        positive: Template,
        negative: Template,
        k: Annotated[float, Field(ge=0.0)] = 0.1,
    ) -> None:
        super().__init__()
        if positive == negative:
            raise UserError(f"positive and negative are both {positive!r}, whose difference is 0; change one")
        spec = RewardConfig.model_validate(of)
        kind = rewards.resolve(spec.reward)
        self.reward = cast(Reward, kind(**check_options(kind, spec)))
        self.granularity = self.reward.granularity
        self.unit = f"{1 + k:g} · score − score; {self.reward.unit}"
        self.positive, self.negative, self.k = positive, negative, k

    def resizing(self, height: int, width: int) -> Resizing:
        """Return how the wrapped reward resizes frames of this size, and which part it uses."""
        resizing: Resizing = getattr(self.reward, "resizing", whole)(height, width)
        return resizing

    def forward(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return one score per video, differentiable in the frames ``batch frames 3 height width``."""
        positive, negative = (
            self.reward(frames, [template.replace(PLACEHOLDER, prompt) for prompt in prompts])
            for template in (self.positive, self.negative)
        )
        return (1 + self.k) * positive - negative
