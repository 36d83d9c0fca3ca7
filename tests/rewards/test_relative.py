"""The relative reward against its formula, by the wrapped reward's own scores and finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.reward_inputs import PROMPTS, checked_gradient, random_images, refused
from tests.helpers.tiny_rewards import build_reward as build
from tests.helpers.tiny_rewards import make_clip
from vader_ray import rewards
from vader_ray.config import RewardConfig, validate
from vader_ray.preflight.remote_rewards import counted_rewards

TEXTS: dict[str, Any] = {"positive": "Realistic photo. {prompt}", "negative": "CG render. {prompt}"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("relative") / "clip")


@pytest.mark.parametrize("k", [0.0, 0.25])
def test_it_is_the_formula_of_the_wrapped_scores(clip_folder: Path, k: float) -> None:
    wrapped = {"reward": "pickscore", "weights": str(clip_folder)}
    relative, plain = build("relative", of=wrapped, k=k, **TEXTS), build(**_named(wrapped))
    frames = random_images(2, 3, 3, 24, 40)
    positive = plain(frames, [f"Realistic photo. {prompt}" for prompt in PROMPTS])
    negative = plain(frames, [f"CG render. {prompt}" for prompt in PROMPTS])
    assert (positive - negative).abs().min() > 1e-3, "the reward must read the text"
    assert torch.equal(relative(frames, PROMPTS), (1 + k) * positive - negative)
    assert relative.granularity == plain.granularity == "frame"
    assert relative.resizing(96, 160) == plain.resizing(96, 160)


def _named(settings: dict[str, str]) -> dict[str, Any]:
    return {"name" if key == "reward" else key: value for key, value in settings.items()}


def test_its_gradient_is_its_finite_difference(clip_folder: Path) -> None:
    wrapped = {"reward": "clip_score", "weights": str(clip_folder)}
    reward = build("relative", of=wrapped, dtype=torch.float64, **TEXTS)
    frames = random_images(1, 2, 3, 40, 64, low=0.3, high=0.7, dtype=torch.float64)
    checked_gradient(reward, frames, atol=1e-7)


def test_its_networks_have_the_recipes_precision_and_need_no_weights_on_meta() -> None:
    wrapped = {"reward": "hps", "weights": "shapes:hps"}
    spec = RewardConfig(reward="relative", of=wrapped, precision="bfloat16", **TEXTS)
    assert {each.dtype for each in _parameters(spec, "cpu")} == {torch.bfloat16}
    assert {each.device.type for each in _parameters(spec, "meta")} == {"meta"}


def _parameters(spec: RewardConfig, device: str) -> list[torch.nn.Parameter]:
    reward: Any = rewards.build(spec, device=device)
    return list(reward.parameters())


def test_a_recipe_resolves_the_wrapped_paths_beside_itself(clip_folder: Path) -> None:
    given = RewardConfig(reward="relative", of={"reward": "pickscore", "weights": "./clip"}, **TEXTS)
    checked = rewards.check(given, folder=clip_folder.parent)
    assert checked.options["of"] == {"reward": "pickscore", "weights": str(clip_folder)}
    again = RewardConfig.model_validate_json(checked.model_dump_json())
    assert rewards.check(again) == again == checked
    by_name = rewards.check(RewardConfig(reward="relative", of="brightness", **TEXTS))
    assert by_name.options["of"] == {"reward": "brightness"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "relative.of: is required"),
        ({"of": "no_such"}, "relative.of: reward: there is no 'no_such'; "),
        ({"of": {"weights": "x"}}, "relative.of: give the name of a reward, or a section with `reward`"),
        ({"of": {"reward": "brightness", "gain": 2}}, "relative.of: brightness: there is no option 'gain'"),
        (
            {"of": {"reward": "brightness", "weight": 2}},
            "relative.of: weight is a setting of the whole reward; write it beside `of`",
        ),
        (
            {"of": "brightness", "positive": "a photo"},
            r"relative.positive: 'a photo' has no \{prompt\}; write",
        ),
        ({"of": "brightness", "k": -1}, "relative.k: Input should be greater than or equal to 0"),
        (
            {"of": "brightness", "negative": TEXTS["positive"]},
            "relative: positive and negative are both .* whose difference is 0; change one",
        ),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    refused("relative", message, **(TEXTS | options))


def test_the_estimate_of_a_reward_in_actors_knows_it(tiny_pipeline_folder: Path) -> None:
    from tests.helpers.recipe import tiny_document

    settings = {"reward": "relative", "of": "brightness", "placement": {"actor": "a"}, **TEXTS}
    document = tiny_document(tiny_pipeline_folder, rewards=[settings])
    assert list(counted_rewards(validate(document))) == ["relative"]
