"""The guard against reward hacking, and the metrics of evaluations during training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.guard import Kind, false_alarms, power
from tests.helpers.recipe import FIRING_GUARD, FOUR_PROMPTS, tiny_config, tiny_document, validated_on
from tests.helpers.training import Keeper
from vader_ray import rewards
from vader_ray.config import load, validate
from vader_ray.errors import UserError
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import build
from vader_ray.training.guard import apply_guard, cannot_fire, check_guard, evaluation_share
from vader_ray.training.loop import train


@pytest.mark.slow
def test_every_evaluation_logs_the_default_metrics_and_starts_at_the_base(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    keeper = Keeper(tmp_path)
    train(tiny_config(tiny_pipeline_folder, num_steps=3), on_step=keeper)
    first, last = keeper.reports[0].metrics, keeper.reports[-1].metrics
    for name in ("eval/diversity", "eval/motion", "eval/distance_to_base", "eval/gain_low/brightness"):
        assert name in first
        assert name in last
    assert first["eval/distance_to_base"] == 0.0
    assert last["eval/distance_to_base"] > 0
    assert (
        last["eval/gain_low/brightness"] <= last["eval/gain/brightness"] <= last["eval/gain_high/brightness"]
    )


GUARDED: dict[str, Any] = {
    "num_steps": 6,
    "evaluation": {"every": 1, "num_videos": 4, "num_shown": 2},
    "eval_rewards": [{"reward": "colorfulness"}],
}


@pytest.mark.slow
def test_a_resumed_run_is_stopped_where_the_straight_one_is(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    changes = GUARDED | {
        "guard": FIRING_GUARD | {"action": "stop", "bound": 0.005},
        "prompts": validated_on(FOUR_PROMPTS),
        "checkpoint": {"every": 1},
    }
    config = tiny_config(tiny_pipeline_folder, **changes)
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    one = train(config, on_step=straight)
    assert one.step == 2, "the bound is between the distances of steps 1 and 2"
    two = train(config, on_step=resumed, resume_from=tmp_path / "straight" / "1")
    assert two.step == 2
    assert one.stopped == two.stopped == straight.reports[-1].alarms[0] == resumed.reports[-1].alarms[0]
    assert "eval/distance_to_base rose to" in one.stopped
    assert "from the base model's 0.0000 (p = 0.062," in one.stopped
    assert straight.reports[-1].is_kept
    assert straight.reports[-1].checkpoint is not None
    evaluated = [[report.metrics[name] for name in report.metrics if name.startswith(("eval/", "guard/"))]
                 for report in (straight.reports[-1], resumed.reports[-1])]  # fmt: skip
    assert evaluated[0] == evaluated[1]
    ended = train(config, on_step=resumed, resume_from=tmp_path / "straight" / "2")
    assert ended.step == 2
    assert len(resumed.reports) == 1


def seen(**values: list[float]) -> Evaluation:
    by_name = {f"eval/{name}": each for name, each in values.items()}
    return Evaluation({}, {}, {}, by_name, (), {}, frozenset({"eval/flicker"}))


def sequence(
    config: Any, evaluations: Sequence[Sequence[float] | NDArray[np.float64]], metric: str = "colorfulness"
) -> tuple[State, list[list[str]], list[dict[str, float]]]:
    state, told, metrics = State(), [], []
    for step, values in enumerate(evaluations):
        state.step = step
        measured, messages = apply_guard(config, seen(**{metric: list(values)}), state)
        told.append(messages)
        metrics.append(measured)
        state = State(**json.loads(json.dumps(asdict(state))))  # as if resumed at each step
    return state, told, metrics


def guarded(weights: Path, num_evaluations: int = 6, **watched: Any) -> Any:
    changes = GUARDED | {"num_steps": num_evaluations}
    return validate(tiny_document(weights, **changes, guard={"metrics": ["eval/colorfulness"]} | watched))


SPREAD = np.linspace(-1.0, 1.0, 10)


def test_the_guard_fires_once_and_again_after_a_recovery(tiny_pipeline_folder: Path) -> None:
    config = guarded(tiny_pipeline_folder, num_evaluations=8)
    high, low = 3 + SPREAD, 2 + SPREAD + 0.1 * np.sin(np.arange(10))
    _, told, metrics = sequence(config, [2 + SPREAD, high, low, low, high, low])
    assert [len(messages) for messages in told] == [0, 0, 1, 0, 0, 1]
    assert [measured["guard/fired"] for measured in metrics] == [0, 0, 1, 1, 0, 1]
    assert metrics[2]["guard/p_value/colorfulness"] == 2.0**-10
    assert metrics[2]["guard/fall/colorfulness"] == pytest.approx(np.mean(high - low))
    assert told[2] == [
        f"guard: eval/colorfulness fell to {np.mean(low):.4f} from that of step 1, 3.0000 "
        "(p = 0.00098, this evaluation's share of the rate is 0.0056)"
    ]


def test_a_rise_counts_for_a_metric_that_is_better_when_low(tiny_pipeline_folder: Path) -> None:
    config = guarded(tiny_pipeline_folder, metrics=["eval/flicker"])
    _, told, _ = sequence(config, [2 + SPREAD, 1 + SPREAD, 2 + SPREAD], "flicker")
    assert [len(messages) for messages in told] == [0, 0, 1]
    assert told[2][0].startswith("guard: eval/flicker rose to 2.0000 from that of step 1, 1.0000")


def test_a_fall_within_the_bound_is_tolerated(tiny_pipeline_folder: Path) -> None:
    fallen, deviation = [4 + SPREAD, 3 + SPREAD], SPREAD.std(ddof=1)
    for unit, bound, fires in (
        ("absolute", 0.99, True),
        ("absolute", 1.01, False),
        ("relative", 0.24, True),
        ("relative", 0.26, False),
        ("effect_size", 0.99 / deviation, True),
        ("effect_size", 1.01 / deviation, False),
    ):
        _, told, _ = sequence(guarded(tiny_pipeline_folder, unit=unit, bound=bound), fallen)
        assert bool(told[1]) == fires, (unit, bound)


def test_against_the_base_model_a_peak_in_between_does_not_count(tiny_pipeline_folder: Path) -> None:
    peak = [1 + SPREAD, 5 + SPREAD, 2 + SPREAD]
    assert sequence(guarded(tiny_pipeline_folder, reference="base"), peak)[1] == [[], [], []]
    assert sequence(guarded(tiny_pipeline_folder, reference="any"), peak)[1][2]


def test_a_metric_that_is_not_a_number_has_fallen_and_is_compared_with_nothing(
    tiny_pipeline_folder: Path,
) -> None:
    config = guarded(tiny_pipeline_folder)
    broken = [nan, *SPREAD[1:]]
    state, told, metrics = sequence(config, [broken, 1 + SPREAD, broken, 1.5 + SPREAD])
    assert [len(messages) for messages in told] == [1, 0, 1, 0]
    assert "guard: eval/colorfulness fell to nan" in told[2][0]
    assert [measured["guard/fired"] for measured in metrics] == [1, 0, 1, 0]
    assert list(state.guard_values["eval/colorfulness"]) == ["1", "3"]


@pytest.mark.parametrize(("num_steps", "every"), [(6, 1), (7, 3), (5, 10)])
def test_the_evaluations_of_a_run_spend_equal_shares_and_leave_one(num_steps: int, every: int) -> None:
    document = tiny_document(Path("unused"), num_steps=num_steps, evaluation={"every": every})
    config = validate(document | {"model": {"family": "modelscope", "weights": "owner/name"}})
    steps = [step for step in range(1, num_steps + 1) if step % every == 0 or step == num_steps]
    spent = 0.0
    for step in steps:
        share = evaluation_share(config, step, spent)
        assert share == pytest.approx(0.05 / (len(steps) + 1))
        spent += share
    longer = config.model_copy(update={"num_steps": 2 * num_steps})
    assert 0 < evaluation_share(longer, num_steps + every, spent) < 0.05 - spent


@pytest.mark.parametrize("kind", ["normal", "exponential"])
@pytest.mark.parametrize(
    ("num_evaluations", "num_prompts", "num_runs"), [(5, 8, 800), (20, 9, 400), (50, 11, 150)]
)
def test_without_a_fall_the_guard_fires_in_at_most_5_of_100_runs(
    num_evaluations: int, num_prompts: int, num_runs: int, kind: Kind
) -> None:
    rate = false_alarms(num_runs, num_evaluations, num_prompts, kind, num_metrics=2)
    assert rate <= 0.05 + 2 * (0.05 * 0.95 / num_runs) ** 0.5  # two standard errors of the simulation


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_a_fall_of_the_size_of_the_provoked_run_is_noticed_within_two_evaluations(kind: Kind) -> None:
    assert power(50, 30, kind, num_metrics=3) >= 0.9


def test_too_few_prompts_to_notice_a_fall_are_named() -> None:
    enough = load("shapes_hps")
    assert cannot_fire(enough) is None
    few = load("shapes_hps", ["evaluation.num_videos=5"])
    problem = cannot_fire(few)
    assert problem is not None
    assert "on 5 validation prompts no fall is significant" in problem
    assert "evaluate at least 6 prompts" in problem
    assert cannot_fire(load("shapes_hps", ["evaluation.num_videos=6"])) is None


@pytest.mark.parametrize(("bad_steps", "best_step"), [((0,), 2), ((2,), 1), ((0, 1, 2), 0)])
def test_an_adapter_whose_score_is_not_a_number_never_becomes_the_best(
    tiny_pipeline_folder: Path, tmp_path: Path, bad_steps: tuple[int, ...], best_step: int
) -> None:
    """The held-out reward, by which the best adapter is chosen, is 1, 2, 3 in the evaluations, or NaN."""
    steps = list[int]()  # of the evaluations so far; empty while the reward is loaded and checked

    def rising(frames: Tensor, prompts: Sequence[str]) -> Tensor:
        step = steps[-1] if steps else 0
        value = nan if steps and step in bad_steps else step + 1.0
        return frames.mean(dim=(1, 2, 3, 4)) + 2 * value

    name = rewards.register_function(rising)
    config = tiny_config(
        tiny_pipeline_folder,
        num_steps=2,
        eval_rewards=[{"reward": name, "label": "rising"}],
        evaluation={"every": 1, "num_videos": 2, "num_shown": 1},
    )
    experiment = build(config)
    steps.append(0)
    keeper = Keeper(tmp_path)

    def on_step(event: StepEvent) -> None:
        keeper(event)
        steps.append(event.step + 1)

    state = train(config, experiment, on_step=on_step)
    assert state.best_step == best_step
    said = [report.alarms for report in keeper.reports]
    for step in range(3):
        expected = f"eval/reward/rising is nan in the evaluation of step {step}"
        assert any(expected in alarm for alarm in said[step]) == (step in bad_steps)


def test_without_a_guard_nothing_is_compared(tiny_pipeline_folder: Path) -> None:
    assert sequence(guarded(tiny_pipeline_folder, action="none"), [1 + SPREAD, SPREAD])[1:] == (
        [[], []],
        [{}, {}],
    )


@pytest.mark.parametrize(
    ("watched", "message"),
    [
        (
            {"metrics": ["eval/reward/hps"]},
            "'eval/reward/hps' is never measured; choose of eval/objective, eval/reward/brightness",
        ),
        (
            {"metrics": ["eval/distance_to_base"], "unit": "relative"},
            r"starts at 0, so its bound cannot be relative; set guard.unit=absolute",
        ),
        ({"bound": -1}, r"guard.bound: Input should be greater than or equal to 0"),
    ],
)
def test_a_guard_that_cannot_work_is_refused(
    tiny_pipeline_folder: Path, watched: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_guard(guarded(tiny_pipeline_folder, **watched))


@pytest.mark.slow
def test_an_adapter_beyond_the_bound_never_becomes_the_best(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    kept = {}
    for action in ("none", "flag"):
        changes = GUARDED | {"num_steps": 3, "guard": FIRING_GUARD | {"action": action}}
        changes |= {"prompts": validated_on(FOUR_PROMPTS)}
        evaluation = GUARDED["evaluation"] | {"select": "eval/reward/brightness"}
        kept[action] = train(
            tiny_config(tiny_pipeline_folder, **(changes | {"evaluation": evaluation})),
            on_step=Keeper(tmp_path / action),
        )
    assert kept["none"].best_step > 0  # brightness rises
    assert kept["flag"].best_step == 0
