"""The guard against reward hacking, and the metrics of evaluations during training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats
from torch import Tensor

from tests.helpers.recipe import tiny_config, tiny_document
from tests.helpers.training import Keeper
from vader_ray import rewards
from vader_ray.config import validate
from vader_ray.errors import UserError
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import build
from vader_ray.training.guard import apply_guard, check_guard
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
    watched = {
        "action": "stop",
        "metrics": ["eval/distance_to_base"],
        "unit": "absolute",
        "bound": 1e-9,
        "patience": 3,
    }
    config = tiny_config(tiny_pipeline_folder, **(GUARDED | {"guard": watched}))
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    one = train(config, on_step=straight)
    two = train(config, on_step=resumed, resume_from=tmp_path / "straight" / "2")
    assert one.step == two.step == 3
    assert one.stopped == two.stopped == straight.reports[-1].alarms[0] == resumed.reports[-1].alarms[0]
    assert "eval/distance_to_base rose to" in one.stopped
    assert "at those of steps 1, 2, 3" in one.stopped
    assert straight.reports[-1].is_kept
    assert straight.reports[-1].checkpoint is not None
    evaluated = [[report.metrics[name] for name in report.metrics if name.startswith(("eval/", "guard/"))]
                 for report in (straight.reports[-1], resumed.reports[-1])]  # fmt: skip
    assert evaluated[0] == evaluated[1]
    ended = train(config, on_step=resumed, resume_from=tmp_path / "straight" / "3")
    assert ended.step == 3
    assert len(resumed.reports) == 1


def seen(**values: list[float]) -> Evaluation:
    return Evaluation({}, values, {}, (), {}, frozenset())


def sequence(
    config: Any, evaluations: list[list[float]]
) -> tuple[State, list[list[str]], list[dict[str, float]]]:
    state, told, metrics = State(), [], []
    for step, values in enumerate(evaluations):
        state.step = step
        measured, messages = apply_guard(config, seen(colorfulness=values), state)
        told.append(messages)
        metrics.append(measured)
        state = State(**json.loads(json.dumps(asdict(state))))  # as if resumed at each step
    return state, told, metrics


def guarded(tiny_pipeline_folder: Path, **watched: Any) -> Any:
    return validate(tiny_document(tiny_pipeline_folder, **(GUARDED | {"guard": watched})))


def test_the_guard_fires_once_after_its_patience_and_again_after_a_recovery(
    tiny_pipeline_folder: Path,
) -> None:
    config = guarded(tiny_pipeline_folder, unit="absolute", bound=0.5, patience=2)
    rise, low, high = [2.0, 3.0], [1.0, 2.0], [2.0, 3.0]
    _, told, metrics = sequence(config, [[1.0, 2.0], rise, low, low, low, high, low, low])
    assert [len(messages) for messages in told] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert [measured["guard/fired"] for measured in metrics] == [0, 0, 0, 1, 1, 0, 0, 1]
    assert [measured["guard/fall/reward/colorfulness"] for measured in metrics] == [0, 0, 1, 1, 1, 0, 1, 1]
    assert told[3] == [
        "guard: eval/reward/colorfulness fell to 1.5000 from its best at step 1, 2.5000 "
        "(1 in its own unit, the bound is 0.5) at those of steps 2, 3"
    ]


def test_standard_errors_are_those_of_a_paired_test(tiny_pipeline_folder: Path) -> None:
    before, after = [3.0, 1.0, 4.0, 1.5], [2.5, 0.9, 3.0, 1.4]
    t = stats.ttest_rel(before, after).statistic
    for bound, fires in ((t * 0.99, True), (t * 1.01, False)):
        _, told, _ = sequence(guarded(tiny_pipeline_folder, bound=float(bound)), [before, after])
        assert bool(told[1]) == fires
    _, told, _ = sequence(guarded(tiny_pipeline_folder, unit="relative", bound=0.2), [before, after])
    assert bool(told[1]) == (1 - fmean(after) / fmean(before) > 0.2)


def test_against_the_base_model_a_peak_in_between_does_not_count(tiny_pipeline_folder: Path) -> None:
    peak = [[1.0, 1.1], [5.0, 5.1], [2.0, 2.2]]
    assert sequence(guarded(tiny_pipeline_folder, reference="base"), peak)[1] == [[], [], []]
    assert sequence(guarded(tiny_pipeline_folder, reference="best"), peak)[1][2]


@pytest.mark.parametrize("unit", ["standard_errors", "absolute", "relative"])
def test_a_metric_that_is_not_a_number_is_beyond_every_bound(tiny_pipeline_folder: Path, unit: str) -> None:
    config = guarded(tiny_pipeline_folder, unit=unit, bound=0.5)
    state, told, metrics = sequence(config, [[1.0, 2.0], [nan, 2.0], [1.0, 2.5]])
    assert [len(messages) for messages in told] == [0, 1, 0]
    assert "guard: eval/reward/colorfulness fell to nan from" in told[1][0]
    assert [measured["guard/fired"] for measured in metrics] == [0, 1, 0]
    assert state.guard_reference["eval/reward/colorfulness"] == [1.0, 2.5]


def test_a_finite_value_replaces_a_reference_that_is_not_a_number(tiny_pipeline_folder: Path) -> None:
    state, told, _ = sequence(guarded(tiny_pipeline_folder, bound=0.5), [[nan, 1.0], [1.0, 2.0], [1.0, 2.0]])
    assert [len(messages) for messages in told] == [1, 0, 0]
    assert state.guard_reference_step["eval/reward/colorfulness"] == 1


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
    assert sequence(guarded(tiny_pipeline_folder, action="none"), [[1.0, 1.0], [0.0, 0.0]])[1:] == (
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
            {"metrics": ["eval/distance_to_base"]},
            r"starts at 0, so its bound cannot be standard_errors; set guard.unit=absolute",
        ),
        ({"bound": -1}, r"guard.bound: Input should be greater than 0"),
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
    watched = {"metrics": ["eval/distance_to_base"], "unit": "absolute", "bound": 1e-9}
    kept = {}
    for action in ("none", "flag"):
        changes = GUARDED | {"num_steps": 3, "guard": watched | {"action": action}}
        evaluation = GUARDED["evaluation"] | {"select": "eval/reward/brightness"}
        kept[action] = train(
            tiny_config(tiny_pipeline_folder, **(changes | {"evaluation": evaluation})),
            on_step=Keeper(tmp_path / action),
        )
    assert kept["none"].best_step > 0  # brightness rises
    assert kept["flag"].best_step == 0
