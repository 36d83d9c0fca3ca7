"""Curves of a comparison of methods: who is best, how soon another gets there, and what is drawn."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from vader_ray.orchestration.curves import CALLS, QUERIES, SECONDS, Curve, best_curves, draw_curves, efficiency, read_curves
from vader_ray.orchestration.results import Row


def _curve(method: str, setting: str, values: list[list[float]], per_point: float = 16) -> Curve:
    points = np.arange(len(values[0]), dtype=float)
    return Curve(
        "hps", method, setting, np.array(values), {QUERIES: points * per_point, SECONDS: points * 3, CALLS: points * 100}
    )


def test_the_best_setting_is_that_with_the_highest_end_among_those_with_all_seeds() -> None:
    low, high = _curve("ddpo", "low", [[0, 1], [0, 2]]), _curve("ddpo", "high", [[0, 2], [7, 10]])
    lucky = _curve("ddpo", "lucky", [[0, 9]])
    assert best_curves([low, high, lucky]) == [high]
    assert high.mean.tolist() == [3.5, 6]
    assert high.standard_error.tolist() == pytest.approx([0, 0.5])  # gains of 2 and 3: deviation √½ over √2
    assert lucky.standard_error.tolist() == [0, 0]


def test_efficiency_is_read_where_the_curve_first_reaches_the_best_other_end() -> None:
    vader, ddpo = _curve("vader", "a", [[0, 0.4, 0.6, 0.5]], 4), _curve("ddpo", "a", [[0, 0.2, 0.3, 0.5]], 32)
    dpo = _curve("dpo", "a", [[0, 0.1, 0.1, 0.1]], 32)
    (line,) = efficiency([vader, ddpo, dpo], "vader")
    assert line == (
        "hps: vader is at ddpo's 0.5 after 96 reward queries after 8: 1/12 of the reward queries, "
        "1/1.5 of the denoiser calls, 1/1.5 of the seconds"
    )
    (line,) = efficiency([dpo, ddpo], "dpo")
    assert line == "hps: dpo does not reach ddpo's 0.5 after 96 reward queries"


def test_curves_come_from_the_histories_of_completed_trials(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client, rows = MlflowClient(uri), list[Row]()
    experiment, now = client.create_experiment("sweep"), int(time.time() * 1000)
    for seed in (0, 1):
        run = client.create_run(experiment).info.run_id
        points = [Metric("eval/reward/hps", 0.8 + seed + step / 10, now, step) for step in (4, 0, 2)]
        spent = [Metric(name, step * 16.0, now, step) for step in range(5) for name in (QUERIES, SECONDS, CALLS)]
        client.log_batch(run, metrics=points + spent)
        rows.append({"status": "completed", "mlflow_run_id": run, "reward": "hps", "method": "dpo", "setting": "b", "seed": seed})
    (curve,) = read_curves([*rows, rows[0] | {"status": "failed"}], uri)
    assert curve.values == pytest.approx(np.array([[0.8, 1.0, 1.2], [1.8, 2.0, 2.2]]))
    assert curve.costs[QUERIES].tolist() == [0, 32, 64]


def test_the_figure_is_drawn_in_both_formats(tmp_path: Path) -> None:
    curves = [_curve("vader", "a", [[0, 0.4], [0, 0.5]]), _curve("dpo", "b", [[0, 0.1], [0, 0.0]])]
    png, svg = draw_curves(curves, tmp_path / "curves", title="sweep")
    with Image.open(png) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 200, "each method has its line"
    assert svg.read_text().count("<svg") == 1
