"""What evaluations say beside rewards, and the guard over them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.helpers.recipe import tiny_config, tiny_document
from tests.training.test_loop import Keeper
from vader_ray.config import ConfigError, validate
from vader_ray.metrics.statistics import distances, draw_resamples, interval, speeds, spread, thumbnails
from vader_ray.rewards.motion import MotionReward as Motion
from vader_ray.training import guard
from vader_ray.training.checkpoint import State
from vader_ray.training.evaluation import Evaluation, compare
from vader_ray.training.loop import train


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_thumbnails_are_area_means_of_evenly_spaced_frames() -> None:
    small = thumbnails(noise(2, 33, 3, 64, 96))
    assert (small.shape, small.dtype) == ((2, 16, 3, 32, 48), torch.uint8)
    expected = noise(2, 33, 3, 64, 96)[:, -1].unflatten(3, (48, 2)).unflatten(2, (32, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(
        small[:, -1].float() / 255, expected, atol=0.51 / 255, rtol=0
    )  # half a step of 8 bits
    assert thumbnails(noise(1, 3, 3, 8, 8)).shape == (1, 3, 3, 8, 8)


def test_distance_and_spread_of_flat_videos_are_the_difference_of_their_greys() -> None:
    grey = torch.tensor([0.0, 0.2, 0.6])[:, None, None, None, None].expand(3, 4, 3, 8, 8)
    seen = thumbnails(grey)  # float32 sums of 768 squares: 1e-5
    assert distances(seen, seen) == [0.0] * 3
    assert distances(seen, seen.flip(0)) == pytest.approx([0.6, 0.0, 0.6], abs=1e-5)
    assert spread(seen, ["a", "b", "c"]) == pytest.approx(
        [0.4, 0.3, 0.5], abs=1e-5
    )  # no prompt has another: all others
    assert spread(seen, ["a", "a", "b"]) == pytest.approx([0.2, 0.2, 0.5], abs=1e-5)
    assert spread(seen[:1], ["a"]) == [0.0]


def test_speed_is_the_motion_of_the_whole_clip_and_nothing_in_one_frame() -> None:
    frames = noise(2, 5, 3, 16, 16)
    assert speeds(frames) == pytest.approx(Motion()(frames, ["", ""]).tolist(), rel=1e-5)
    assert speeds(frames[:, :1]) == [0.0, 0.0]


def test_the_bootstrap_interval_is_that_of_scipy_and_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, 40)
    low, high = interval(values.tolist(), draw_resamples(40, torch.Generator().manual_seed(3)))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    spread_of_a_bound = 0.05 * (theirs.high - theirs.low)  # of 2000 resamples, measured over seeds: below 3 %
    assert (low, high) == pytest.approx(tuple(theirs), abs=spread_of_a_bound)
    assert (low, high) == interval(values.tolist(), draw_resamples(40, torch.Generator().manual_seed(3)))


def test_gains_lie_inside_their_interval_which_is_paired() -> None:
    before = {"objective": [1.0, 5.0, 9.0, 2.0]}
    metrics = compare(
        before,
        {"objective": [value + 0.5 for value in before["objective"]]},
        torch.Generator().manual_seed(0),
    )
    assert metrics == {
        "eval/gain/objective": 0.5, "eval/gain_standard_error/objective": 0.0,
        "eval/gain_low/objective": 0.5, "eval/gain_high/objective": 0.5,
    }  # fmt: skip


def test_every_evaluation_tells_the_evidence_and_starts_at_the_base(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    keeper = Keeper(tmp_path)
    train(tiny_config(tiny_pipeline_folder, num_steps=3), report=keeper)
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
    one = train(config, report=straight)
    two = train(config, report=resumed, resume_from=tmp_path / "straight" / "2")
    assert one.step == two.step == 3
    assert one.stopped == two.stopped == straight.reports[-1].alarms[0] == resumed.reports[-1].alarms[0]
    assert "eval/distance_to_base rose to" in one.stopped
    assert "at those of steps 1, 2, 3" in one.stopped
    assert straight.reports[-1].is_kept
    assert straight.reports[-1].checkpoint is not None
    evaluated = [[report.metrics[name] for name in report.metrics if name.startswith(("eval/", "guard/"))]
                 for report in (straight.reports[-1], resumed.reports[-1])]  # fmt: skip
    assert evaluated[0] == evaluated[1]
    ended = train(config, report=resumed, resume_from=tmp_path / "straight" / "3")
    assert ended.step == 3
    assert len(resumed.reports) == 1


def seen(**values: list[float]) -> Evaluation:
    return Evaluation({}, values, {}, (), torch.zeros(0, 1, 3, 1, 1, dtype=torch.uint8))


def sequence(
    config: Any, evaluations: list[list[float]]
) -> tuple[State, list[list[str]], list[dict[str, float]]]:
    state, told, metrics = State(), [], []
    for step, values in enumerate(evaluations):
        state.step = step
        measured, messages = guard.watch(config, seen(colorfulness=values), state)
        told.append(messages)
        metrics.append(measured)
        state = State(**json.loads(json.dumps(asdict(state))))  # as if resumed at each step
    return state, told, metrics


def guard_metrics(tiny_pipeline_folder: Path, **watched: Any) -> Any:
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


def test_without_a_guard_nothing_is_watched(tiny_pipeline_folder: Path) -> None:
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
    with pytest.raises(ConfigError, match=message):
        guarded(tiny_pipeline_folder, **watched)


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
            report=Keeper(tmp_path / action),
        )
    assert kept["none"].best_step > 0  # brightness rises
    assert kept["flag"].best_step == 0
