"""Every packaged recipe of published weights states the card that it needs, as a command that can be run."""

from __future__ import annotations

import pytest

from benchmarks.recipe_memory import CARDS, names, stated
from vader_ray.config import load


@pytest.mark.parametrize("name", names())
def test_a_recipe_states_one_card(name: str) -> None:
    """`python -m benchmarks.recipe_memory` counts whether it is the smallest, which takes minutes."""
    said = stated(name)
    assert said.size_gb in CARDS
    load(name, said.settings)
    assert f"{said.size_gb} GB GPU" in load(name).description


def test_recipes_of_embedded_weights_are_left_out() -> None:
    assert "wan_1_3b_hps" in names()
    assert not any("shapes:" in str(load(name).model.weights) for name in names())
