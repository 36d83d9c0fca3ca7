"""Sweeps: their scripts, what they leave in MLflow, a killed driver, trials that cannot work, and who is best."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from ray import tune

from tests.recipe import write_tiny
from vader_ray.config import load
from vader_ray.orchestration.results import best_of, pareto_front
from vader_ray.orchestration.space import Sweep, draw, load_base, overrides_of, trial_name

SCRIPTS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.py"))
SCRIPT_IDS = [path.stem for path in SCRIPTS]


def _sweep_of(path: Path) -> Sweep:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep: Sweep = module.SWEEP
    return sweep


@pytest.mark.parametrize("path", SCRIPTS, ids=SCRIPT_IDS)
def test_every_trial_of_a_script_is_a_valid_recipe_that_differs_from_the_others(path: Path) -> None:
    sweep = _sweep_of(path)
    assert sweep.name == path.stem
    recipe, overrides, base = load_base(sweep, None, [])
    trials = draw(sweep, None, base.seed)
    assert len(trials) >= 4
    configs = [load(recipe, [*overrides, *overrides_of(sweep, values, base)]) for values in trials]
    assert len({config.model_dump_json() for config in configs}) == len(trials)
    assert len({config.selection() for config in configs}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=SCRIPT_IDS)
def test_every_script_explains_itself(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for flag in ("--recipe", "--workers-per-trial", "--max-concurrent", "--num-trials", "--storage", "--resume", "KEY=VALUE"):
        assert flag in done.stdout


def test_draws_are_those_of_the_seed_distinct_and_named_by_their_values() -> None:
    space = {"K": tune.grid_search([1, "random"]), "lr": tune.loguniform(1e-4, 1e-2)}
    sweep = Sweep(name="s", question="", recipe="world_hps", budget=(), space=space, settings=lambda values, recipe: values)
    trials = draw(sweep, 5, seed=1)
    assert trials == draw(sweep, 5, seed=1) != draw(sweep, 5, seed=2)
    assert [values["K"] for values in trials] == [1, "random", 1, "random", 1]
    assert all(1e-4 <= values["lr"] <= 1e-2 and values["lr"] == float(f"{values['lr']:.3g}") for values in trials)
    assert len({trial_name(values) for values in trials}) == 5
    assert trial_name({"K": 5, "lr": 0.001}) == "K=5,lr=0.001"


def test_the_pareto_front_holds_what_no_completed_trial_beats() -> None:
    def row(trial: str, one: float, two: float, status: str = "completed") -> dict[str, Any]:
        return {"trial": trial, "status": status, "one": one, "two": two, "selected": one}

    rows = [row("a", 3, 1), row("b", 1, 3), row("c", 2, 2), row("d", 2, 1), row("e", 9, 9, "stopped"), row("f", 1, 3)]
    assert [found["trial"] for found in pareto_front(rows, ["one", "two"])] == ["a", "b", "c", "f"]
    best = best_of(rows)
    assert best is not None
    assert best["trial"] == "a"


def _arguments(recipe: Path) -> list[str]:
    script = next(path for path in SCRIPTS if path.stem == "hps_k_sweep")
    return [sys.executable, str(script), "--recipe", str(recipe), "--num-trials", "4", "--max-concurrent", "2"]


@pytest.fixture(scope="module")
def killed(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, int], str]:
    """A sweep over K = 1, 2, 5, 10 of 5 denoising steps, killed when a trial was done, then resumed.

    Where it happened, its folder, when each trial finished before was finished, and what was printed.
    """
    folder = tmp_path_factory.mktemp("sweep")
    recipe = write_tiny(
        folder, tiny_pipeline_folder, num_steps=4, checkpoint={"every": 1}, evaluation={"every": 2, "num_videos": 2}
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(_arguments(recipe), cwd=folder, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + 240
    while not list(folder.glob("runs/*/K=*/summary.json")):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < until, (folder / "log").read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # its Ray processes notice and leave
    finished = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/K=*/summary.json")}
    done = subprocess.run([*_arguments(recipe), "--resume"], cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (folder / "runs").iterdir()
    return folder, sweep, finished, done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_resumed_sweep_repeats_no_finished_trial_and_finishes_the_others(
    killed: tuple[Path, Path, dict[str, int], str],
) -> None:
    _, sweep, finished, printed = killed
    assert 0 < len(finished) < 3
    for name, written in finished.items():
        assert (sweep / name / "summary.json").stat().st_mtime_ns == written
    for name in ("K=1", "K=2", "K=5"):
        summary = json.loads((sweep / name / "summary.json").read_text())
        assert (summary["status"], summary["steps"], summary["reward_queries"]) == ("completed", 4, 16)
    assert printed.strip().splitlines()[-1] == str(sweep)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_cannot_work_is_reported_and_the_table_holds_all(killed: tuple[Path, Path, dict[str, int], str]) -> None:
    _, sweep, _, printed = killed
    assert "K=10 failed: sampling: truncation_depth=10 is more than num_inference_steps=5" in printed
    rows = pq.read_table(sweep / "trials.parquet").to_pylist()
    assert {row["trial"]: row["status"] for row in rows} == {
        "K=1": "completed", "K=2": "completed", "K=5": "completed", "K=10": "failed",
    }  # fmt: skip
    assert all(row["gain/brightness"] == pytest.approx(row["after/brightness"] - row["before/brightness"]) for row in rows[:3])
    best = max(rows[:3], key=lambda row: row["after/brightness"])
    assert f"best by eval/objective: {best['trial']} " in printed


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_holds_parent_children_tags_and_every_step_once(killed: tuple[Path, Path, dict[str, int], str]) -> None:
    folder, sweep, _, _ = killed
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    parent = client.get_run(json.loads((sweep / "run.json").read_text())["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    assert {"trials.parquet", "trials.json", "recipe.yaml"} <= {item.path for item in client.list_artifacts(parent.info.run_id)}
    runs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_name: run.data.tags["K"] for run in runs} == {"K=1": "1", "K=2": "2", "K=5": "5"}
    for run in runs:
        assert (run.info.status, run.data.tags["status"], run.data.tags["sweep"]) == ("FINISHED", "completed", sweep.name)
        assert run.data.params["sampling.truncation_depth"] == run.data.tags["K"]
        by_step = client.get_metric_history(run.info.run_id, "train/reward_mean")
        assert [point.step for point in by_step] == [1, 2, 3, 4]


@pytest.mark.ray
@pytest.mark.slow
def test_asha_stops_the_trial_that_falls_behind_and_keeps_what_it_reached(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    rewards = {"rewards": [{"reward": "brightness"}, {"reward": "sharpness"}], "eval_rewards": [{"reward": "colorfulness"}]}
    evaluation = {"every": 1, "num_videos": 2, "select": "eval/reward/colorfulness"}
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, num_steps=4, evaluation=evaluation, **rewards)
    script = next(path for path in SCRIPTS if path.stem == "k_lr_reward_sweep")
    command = [sys.executable, str(script), "--recipe", str(recipe), "--num-trials", "3", "--max-concurrent", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    rows = pq.read_table(sweep / "trials.parquet").to_pylist()
    stopped = [row for row in rows if row["status"] == "stopped"]
    assert stopped, "the seed's third draw is the worst of the three and must not spend its budget"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for row in rows:
        run = client.get_run(row["mlflow_run_id"])
        assert (run.info.status, run.data.tags["status"]) == ("FINISHED", row["status"])
        history = {
            point.step: point.value for point in client.get_metric_history(row["mlflow_run_id"], "eval/reward/colorfulness")
        }
        assert row["selected"] == history[row["steps"]]
        assert (row["reward_queries"] < 16) == (row["status"] == "stopped")
    for row in stopped:
        at_equal_queries = [
            client.get_metric_history(other["mlflow_run_id"], "eval/reward/colorfulness")[row["steps"]].value
            for other in rows
            if other["status"] == "completed"
        ]
        assert row["selected"] < max(at_equal_queries)
