"""The end of a comparison of methods: who is best, how soon another gets there, what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from vader_ray.orchestration.reporting.data_efficiency import (
    Curve,
    best_curves,
    curves,
    efficiency,
    show_curves,
)
from vader_ray.orchestration.reporting.past_runs import PastRun
from vader_ray.orchestration.reporting.report_figures import CALLS, QUERIES, SECONDS


def _run(
    method: str,
    setting: str,
    values: list[float],
    *,
    seed: int = 0,
    per_point: float = 16,
    status: str = "completed",
) -> PastRun:
    """A trial that was evaluated at the steps 0, 2, 4 …; MLflow has its costs at every step."""
    steps = range(2 * len(values))
    costs = {QUERIES: per_point / 2, SECONDS: 1.5, CALLS: 50.0}
    history = {cost: {step: step * each for step in steps} for cost, each in costs.items()}
    history["eval/reward/hps"] = {2 * index: float(value) for index, value in enumerate(values)}
    swept = {"reward": "hps", "method": method, "setting": setting, "seed": str(seed)}
    latest = {name: points[max(points)] for name, points in history.items()}
    tags = swept | {"trial": ",".join(f"{name}={value}" for name, value in swept.items())}
    return PastRun(MlflowClient("http://127.0.0.1:1"), "id", "0", "run", status, 0, {}, tags, history, latest)


def _curve(method: str, setting: str, values: list[list[float]], per_point: float = 16) -> Curve:
    return Curve(
        "hps",
        method,
        setting,
        [_run(method, setting, row, seed=seed, per_point=per_point) for seed, row in enumerate(values)],
    )


def test_curves_gather_the_seeds_of_completed_trials() -> None:
    runs = [
        _run("dpo", "b", [0.8, 1.0, 1.2]),
        _run("dpo", "a", [0.0]),
        _run("dpo", "b", [1.8, 2.0, 2.2], seed=1),
    ]
    both, _ = curves([*runs, _run("dpo", "b", [9.0], seed=2, status="failed")])
    assert both.runs == [runs[0], runs[2]]
    costs, rewards = both.against(QUERIES)
    assert costs == [0, 16, 32]
    assert rewards == pytest.approx([1.3, 1.5, 1.7])


def test_the_best_setting_is_that_with_the_highest_end_among_those_with_all_seeds() -> None:
    low, high = _curve("ddpo", "low", [[0, 1], [0, 2]]), _curve("ddpo", "high", [[0, 2], [7, 10]])
    lucky, other = _curve("ddpo", "lucky", [[0, 9]]), _curve("dpo", "low", [[0, 1], [0, 0]])
    assert best_curves([low, other, high, lucky]) == [high, other], (
        "a method keeps its place, and so its colour"
    )
    assert best_curves([]) == []


def test_efficiency_is_read_where_the_curve_first_reaches_the_best_other_end() -> None:
    vader, ddpo = _curve("vader", "a", [[0, 0.4, 0.6, 0.5]], 4), _curve("ddpo", "a", [[0, 0.2, 0.3, 0.5]], 32)
    dpo = _curve("dpo", "a", [[0, 0.1, 0.1, 0.1]], 32)
    (line,) = efficiency([vader, ddpo, dpo], "vader")
    assert line == (
        "hps: vader reaches ddpo's 0.5 after 96 reward queries after 8: 1/12 of the reward queries, "
        "1/1.5 of the denoiser calls, 1/1.5 of the seconds"
    )
    (line,) = efficiency([dpo, ddpo], "dpo")
    assert line == "hps: dpo does not reach ddpo's 0.5 after 96 reward queries"
    (line,) = efficiency([vader, _curve("ddpo", "a", [[0, -0.1]])], "vader")
    assert "none of the reward queries" in line, "a rival that ends below the start"


def test_every_setting_is_told_and_the_best_ones_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        *_curve("vader", "a", [[0, 2], [7, 10]]).runs,
        *_curve("vader", "z", [[0, 0], [7, 7]]).runs,
        *_curve("dpo", "b", [[0, 1], [0, 0]]).runs,
    ]
    files = show_curves(runs, tmp_path / "curves")
    first, second, *_ = capsys.readouterr().out.splitlines()
    # gains of 2 and 3: deviation √½ over √2
    assert first == "hps vader (a): 3.5 → 6, a gain of +2.5 ± 0.5 over 2 seeds, 100 denoiser calls, 3 s"
    assert second.startswith("hps vader (z): 3.5 → 3.5, a gain of +0 ± 0 over 2 seeds")
    names = {
        f"reward-hps-{cost}.{kind}"
        for cost in ("reward_queries", "denoiser_calls", "train_seconds")
        for kind in ("png", "svg")
    }
    assert {path.name for path in files} == names
    page = (tmp_path / "curves" / "reward-hps-reward_queries.svg").read_text()
    assert "vader (a)" in page
    assert "vader (z)" not in page
    with Image.open(tmp_path / "curves" / "reward-hps-reward_queries.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 200, "each method has its line"
