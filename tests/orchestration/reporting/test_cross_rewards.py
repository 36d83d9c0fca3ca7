"""The matrix of trained and measured rewards, and the hacking index, on numbers known in closed form."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from vader_ray.orchestration.reporting.cross_rewards import draw_cross_rewards, index_of
from vader_ray.orchestration.reporting.past_runs import PastRun
from vader_ray.orchestration.reporting.report_figures import RunGroup


def run(trained: str, seed: int = 0, **effects: float) -> PastRun:
    """A run that trained one reward; the effect sizes of its last evaluation."""
    heldout = [name for name in effects if name != trained]
    settings = {"rewards.0.reward": trained, "seed": str(seed)}
    settings |= {f"eval_rewards.{index}.reward": name for index, name in enumerate(heldout)}
    latest = {f"eval/effect_size/{name}": value for name, value in effects.items()}
    history = {name: {8: value} for name, value in latest.items()}
    client = MlflowClient("http://127.0.0.1:1")
    return PastRun(client, "id", "0", "run", "completed", 0, settings, {}, history, latest)


def test_the_index_is_that_of_all_seeds_together() -> None:
    seeds = [run("hps", 0, hps=1.0, aesthetic=-1.0, pickscore=2.0), run("hps", 1, hps=3.0, aesthetic=0.0,
             pickscore=-2.0)]  # fmt: skip
    # falls of 1, 0, 0 and 2, a mean of 0.75; gains of 1 and 3
    assert index_of(seeds) == pytest.approx(0.375)
    assert index_of(seeds[:1]) == 0.5


def test_the_matrix_has_a_row_for_each_trained_reward_and_the_index(tmp_path: Path) -> None:
    groups = [
        RunGroup("a", [run("hps", hps=1.5, aesthetic=-0.75), run("hps", 1, hps=2.5, aesthetic=-0.25)]),
        RunGroup("b", [run("aesthetic", aesthetic=4.0, pickscore=0.5)]),
        RunGroup("c", [run("aesthetic", aesthetic=4.0)]),
    ]
    (figure,) = draw_cross_rewards(groups, tmp_path)
    text = (tmp_path / "cross-rewards.svg").read_text()
    for shown in ("+2.00", "± 0.50", "−0.50", "± 0.25", "0.25", "+4.00", "0.00", "aesthetic"):
        assert f">{shown}<" in text, shown
    assert text.count(">–<") == 2, "hps and pickscore were not measured in one row each"
    assert "standard error over seeds" in figure.caption
    assert (tmp_path / "cross-rewards.png").is_file()


def test_groups_that_trained_the_same_have_their_own_labels(tmp_path: Path) -> None:
    groups = [RunGroup(f"K={depth}", [run("hps", hps=1.0, aesthetic=0.0)]) for depth in (1, 2)]
    list(draw_cross_rewards(groups, tmp_path))
    text = (tmp_path / "cross-rewards.svg").read_text()
    assert ">K=1<" in text
    assert ">K=2<" in text


def test_runs_that_measured_one_reward_have_no_matrix(tmp_path: Path) -> None:
    assert not list(draw_cross_rewards([RunGroup("a", [run("hps", hps=1.0)])], tmp_path))
