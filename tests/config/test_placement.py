"""Where rewards are computed, in a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.placed_rewards import CLIP, config_of, placed_reward
from tests.helpers.recipe import tiny_document
from vader_ray.config import validate
from vader_ray.errors import UserError


def test_placements_that_cannot_work_are_refused_at_load() -> None:
    with pytest.raises(UserError, match=r"two rewards have placement\.actor='pool'"):
        config_of(placed_reward(CLIP), placed_reward("brightness"))
    document = tiny_document(Path("unused"), rewards=[placed_reward(CLIP, num_replicas=0)])
    with pytest.raises(UserError, match=r"rewards\.0\.placement\.num_replicas"):
        validate(document)


def test_where_a_reward_is_computed_is_not_what_a_run_is() -> None:
    assert config_of({"reward": CLIP}).fingerprint() == config_of(placed_reward(CLIP)).fingerprint()
    assert (
        config_of({"reward": CLIP}).fingerprint()
        != config_of(placed_reward(CLIP, transport="float16")).fingerprint()
    )
