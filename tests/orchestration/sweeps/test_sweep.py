"""Sweeps: scripts, results in MLflow, a killed driver, trials that cannot work, and the best trial."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from math import isnan, log10
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from ray import tune

from tests.helpers.paths import REPOSITORY
from tests.helpers.recipe import FIRING_GUARD, FOUR_PROMPTS, tiny_config, validated_on, write_tiny
from tests.helpers.runs import kill_driver, start
from tests.helpers.waiting import wait_until
from vader_ray.config import load
from vader_ray.errors import RunFailed, UserError
from vader_ray.models import mix_adapters
from vader_ray.orchestration.runs.finish import summarize
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.summary import OPTIMISTIC, RunSummary, gains_of
from vader_ray.orchestration.selection import pareto_front
from vader_ray.orchestration.sweeps import run_trial
from vader_ray.orchestration.sweeps.adapter_soup import make_soups
from vader_ray.orchestration.sweeps.definition import (
    BaseRecipe,
    SweepDefinition,
    Values,
    draw,
    overrides_of,
    trial_name,
)
from vader_ray.orchestration.sweeps.driver import run_sweep
from vader_ray.orchestration.sweeps.run_trial import keep_checkpoint, kept_checkpoints
from vader_ray.orchestration.sweeps.search import OptunaProposer
from vader_ray.orchestration.sweeps.trial_table import (
    SweepResult,
    TrialResult,
    best_of,
    describe_test,
    front_of,
)
from vader_ray.orchestration.sweeps.trials import Trial, TrialSet
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.training.events import StepEvent
from vader_ray.training.inference import evaluate_adapter
from vader_ray.training.loop import train
from vader_ray.uris import Uri

SCRIPTS = sorted((REPOSITORY / "sweeps").glob("*.py"))
SCRIPT_IDS = [path.stem for path in SCRIPTS]


def _sweep_of(path: Path) -> SweepDefinition:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep: SweepDefinition = module.SWEEP
    return sweep


@pytest.mark.parametrize("path", SCRIPTS, ids=SCRIPT_IDS)
def test_every_trial_of_a_script_is_a_valid_recipe_that_differs_from_the_others(path: Path) -> None:
    sweep = _sweep_of(path)
    assert sweep.name == path.stem
    recipe = BaseRecipe.of(sweep, None)
    trials = draw(sweep, None, recipe.load().seed)
    assert len(trials) >= 4
    if sweep.search == "tpe":
        proposed = OptunaProposer(sweep.space, num_trials=4, seed=0).next()
        assert proposed is not None
        assert proposed.keys() == trials[0].keys()
    configs = [recipe.load(overrides_of(sweep, values, recipe.load())) for values in trials]
    assert len({config.model_dump_json() for config in configs}) == len(trials)
    assert len({config.selection_metric() for config in configs}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=SCRIPT_IDS)
def test_every_script_explains_itself(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for flag in (
        "--recipe",
        "--workers-per-trial",
        "--max-concurrent",
        "--num-trials",
        "--storage",
        "--resume",
        "KEY=VALUE",
    ):
        assert flag in done.stdout


def test_draws_are_those_of_the_seed_distinct_and_named_by_their_values() -> None:
    space = {"K": tune.grid_search([1, "random"]), "lr": tune.loguniform(1e-4, 1e-2)}
    sweep = SweepDefinition(
        name="s",
        question="",
        recipe="shapes_hps",
        default_overrides=(),
        space=space,
        settings=lambda values, recipe: values,
        search="random",
    )
    trials = draw(sweep, 5, seed=1)
    assert trials == draw(sweep, 5, seed=1) != draw(sweep, 5, seed=2)
    assert [values["K"] for values in trials] == [1, "random", 1, "random", 1]
    assert all(
        1e-4 <= values["lr"] <= 1e-2 and values["lr"] == float(f"{values['lr']:.3g}") for values in trials
    )
    assert len({trial_name(values) for values in trials}) == 5
    assert trial_name({"K": 5, "lr": 0.001}) == "K=5,lr=0.001"


def test_proposals_are_distinct_follow_the_seed_and_gather_where_the_score_is_high() -> None:
    space = {"K": tune.choice([1, 2, 5]), "lr": tune.loguniform(1e-4, 1e-2)}

    def propose(seed: int) -> list[Values]:
        proposals, proposed = OptunaProposer(space, num_trials=40, seed=seed), []
        while (values := proposals.next()) is not None:
            proposed.append(values)
            proposals.complete(trial_name(values), -abs(log10(values["lr"]) + 3) - (values["K"] != 2))
        return proposed

    trials = propose(1)
    assert trials == propose(1) != propose(2)
    assert len({trial_name(values) for values in trials}) == 40
    assert all(
        1e-4 <= values["lr"] <= 1e-2 and values["lr"] == float(f"{values['lr']:.3g}") for values in trials
    )
    distance = [abs(log10(values["lr"]) + 3) for values in trials]
    assert mean(distance[-15:]) < 0.35, "blind draws are 0.5 away in the mean"
    assert [values["K"] for values in trials[-15:]].count(2) >= 8, "blind draws have it 5 times"


def test_proposals_learn_from_an_earlier_session_and_never_repeat_it() -> None:
    space = {"K": tune.choice([1, 2, 5])}
    proposals = OptunaProposer(space, num_trials=9, seed=0)
    proposals.add_known({"K": 2}, 1.0)
    proposals.add_known({"K": 5}, None)
    assert proposals.next() == {"K": 1}
    assert proposals.next() is None, "the space has three members"


def test_a_space_that_does_not_fit_its_search_is_refused() -> None:
    def define(search: Any, **space: Any) -> SweepDefinition:
        return SweepDefinition("s", "", "shapes_hps", (), space, lambda values, recipe: {}, search=search)

    with pytest.raises(UserError, match=r"'lr' is no tune\.grid_search; set search to 'random' or 'tpe'"):
        define("grid", lr=tune.loguniform(1e-4, 1e-2))
    with pytest.raises(UserError, match="'K' is a grid; give search='tpe' domains only"):
        define("tpe", K=tune.grid_search([1, 2]))


def test_the_pareto_front_holds_what_nothing_dominates() -> None:
    scores = {"a": [3, 1], "b": [1, 3], "c": [2, 2], "d": [2, 1], "f": [1, 3]}
    assert pareto_front(scores) == ["a", "b", "c", "f"]
    assert pareto_front({}) == []


def _summaries(weights: Path, tmp_path: Path) -> dict[str, RunSummary]:
    """Outcomes of a run to its end, and of one that its guard stopped."""
    summaries = {}
    for name, action in (("steady", "none"), ("hacked", "stop")):
        evaluation = {"every": 1, "num_videos": 4, "select": "eval/reward/sharpness"}
        watched = {
            "eval_rewards": [{"reward": "sharpness"}],
            "guard": FIRING_GUARD | {"action": action},
            "prompts": validated_on(FOUR_PROMPTS) | {"test": ["a green star", "a pink star"]},
        }
        config = tiny_config(weights, num_steps=3, evaluation=evaluation, **watched)
        state = train(config, on_step=lambda event: None)
        status: Any = "stopped" if state.stopped else "completed"
        summaries[name] = summarize(
            config, RunDir(tmp_path / name), MlflowRun(Uri(""), "", ""), state, status
        )
    return summaries


@pytest.mark.slow
def test_a_trial_that_its_guard_stopped_competes_with_the_adapter_that_it_keeps(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    summaries = _summaries(tiny_pipeline_folder, tmp_path)
    steady, hacked = (
        TrialResult({"name": name}, summaries[name].status, summaries[name]) for name in summaries
    )
    row = hacked.row()
    assert (row["status"], row["steps"], row["best_step"]) == ("stopped", 1, 0)
    assert row["best/sharpness"] == row["before/sharpness"] != row["after/sharpness"]
    assert row["selected"] == row["best/sharpness"]
    assert row["test/reward/sharpness"] == row["test/base/reward/sharpness"], "it keeps the base model"
    tested = summaries["steady"].results
    assert tested.split == "test"
    assert tested.before["eval/reward/sharpness"] == row["test/base/reward/sharpness"]
    assert tested.gains["eval/reward/sharpness"].mean == pytest.approx(
        tested.after["eval/reward/sharpness"] - tested.before["eval/reward/sharpness"]
    )
    line = describe_test(summaries["steady"], ["brightness", "sharpness", "not measured"])
    assert line.startswith(f"on test prompts: brightness {tested.before['eval/reward/brightness']:.4f} → ")
    without = summaries["steady"].model_copy(update={"metrics_test": {}})
    assert without.results.split == "validation"
    assert describe_test(without, ["brightness"]) == OPTIMISTIC
    assert steady.row()["selected"] == steady.row()["best/sharpness"] >= steady.row()["before/sharpness"]

    higher = {metric: value + 1 for metric, value in summaries["steady"].metrics_best.items()}
    better = summaries["hacked"].model_copy(update={"metrics_best": higher})
    winner = TrialResult({"name": "hacked"}, "stopped", better)
    assert best_of([steady, winner]) is winner
    assert front_of([steady, winner], ["sharpness", "brightness"]) == ["name=hacked"]
    by_scheduler = TrialResult({}, "stopped", better.model_copy(update={"stop_reason": None}))
    assert best_of([steady, by_scheduler]) is steady, "the scheduler's are not compared"
    assert SweepResult(tmp_path, (steady, winner)).best is better
    with pytest.raises(RunFailed, match=r"no trial of .* was completed"):
        _ = SweepResult(tmp_path, (by_scheduler,)).best


@pytest.mark.slow
def test_a_summary_survives_json(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    summary = _summaries(tiny_pipeline_folder, tmp_path)["hacked"]
    folder = RunDir(tmp_path)
    assert folder.read_summary() is None
    lowest = summary.model_copy(update={"metrics_best": {"eval/objective": float("-inf")}})
    lowest.write(folder.summary)
    assert folder.read_summary() == lowest
    of_one_prompt = gains_of({"eval/gain/brightness": 0.5})
    summary.model_copy(update={"gains": of_one_prompt}).write(folder.summary)
    again = folder.read_summary()
    assert again is not None
    assert again.gains["brightness"].mean == 0.5
    assert isnan(again.gains["brightness"].high), "one prompt has no interval"


@pytest.mark.parametrize(("action", "is_last"), [("stop", True), ("flag", False)])
def test_a_step_with_which_the_guard_ends_a_trial_is_reported_last(
    monkeypatch: pytest.MonkeyPatch, action: str, is_last: bool
) -> None:
    """Events of a trial's workers come without their state."""
    told = list[dict[str, float]]()
    monkeypatch.setattr("ray.tune.report", told.append)
    config = tiny_config(Path("unused"), guard={"action": action})
    report = run_trial._Report(config, send=lambda kind, content: None)
    metrics = {"cost/reward_queries": 4.0, "eval/objective": 0.5}
    report(StepEvent(1, metrics | {"guard/fired": 0.0}))
    report(StepEvent(2, metrics | {"guard/fired": 1.0}))
    assert (len(told), report.last is not None) == ((1, True) if is_last else (2, False))


def test_the_last_checkpoints_of_a_trial_are_kept(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "state.json").write_text("{}")
    root = tmp_path / "kept"
    for step in (2, 4, 6):
        keep_checkpoint(tmp_path / "made", root, step, num_kept=2)
    (root / "step-00000008").mkdir()  # a copy that lacks its state.json is still on its way
    assert [path.name for path in kept_checkpoints(root)] == ["step-00000004", "step-00000006"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_a_reward_ends_names_it_and_has_the_traceback_in_its_folder(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # the trials import the rewards from tests/
    evaluation = {"every": 1, "num_videos": 1, "num_shown": 1}
    recipe = tiny_config(
        tiny_pipeline_folder, num_steps=1, evaluation=evaluation, runtime={"max_failures": 0}
    )
    space = {"reward": tune.grid_search(["Exits", "Raises"])}

    def settings(values: Values, _: Any) -> dict[str, Any]:
        return {"rewards.0.reward": f"tests.helpers.failing_rewards.{values['reward']}"}

    with pytest.raises(RunFailed, match=r"no trial of .* succeeded"):
        run_sweep(SweepDefinition("mine", "", "", (), space, settings), recipe, max_concurrent=1)
    errors = {
        path.parent.name: str(json.loads(path.read_text())["error"])
        for path in tmp_path.glob("runs/*/*/summary.json")
    }
    assert errors["reward=Exits"].startswith(
        "its process was killed or has ended by itself while reward 'Exits' was running (a reward or a "
        "library may have ended it"
    )
    assert errors["reward=Raises"].startswith("reward 'Raises' raised IndexError: no such frame (")
    logs = {path.parent.name: path for path in tmp_path.glob("runs/*/*/error.log")}
    assert all(error.endswith(f"; the traceback is in {logs[name]}") for name, error in errors.items())
    assert 'raise IndexError("no such frame")' in logs["reward=Raises"].read_text()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_soups_of_single_reward_adapters_compete_without_training_and_are_evaluated_once(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    rewards = [{"reward": "brightness"}, {"reward": "sharpness"}, {"reward": "colorfulness"}]
    evaluation = {"every": 2, "num_videos": 2, "num_shown": 1}
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, num_steps=2, evaluation=evaluation, rewards=rewards)
    script = next(path for path in SCRIPTS if path.stem == "reward_mix_sweep")
    command = [
        sys.executable,
        str(script),
        "--recipe",
        str(recipe),
        "--num-trials",
        "4",
        "--max-concurrent",
        "1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    rows = {row["trial"]: row for row in pq.read_table(sweep / "trials.parquet").to_pylist()}
    mix, singles = rows["mix=1:1:0,interpolated=True"], [rows["mix=1:0:0"], rows["mix=0:1:0"]]
    assert (len(rows), mix["status"], mix["steps"]) == (5, "completed", 2)
    assert mix["reward_queries"] == sum(row["reward_queries"] for row in singles) == 16
    assert mix["denoiser_calls"] == sum(row["denoiser_calls"] for row in singles)
    assert mix["before/brightness"] == singles[0]["before/brightness"]

    mix_adapters([(Path(row["folder"]) / "best_adapter", 0.5) for row in singles], tmp_path / "mixed")
    trained = load(str(sweep / "mix=1:1:0" / "recipe.yaml"))
    alone = evaluate_adapter(trained, tmp_path / "mixed")
    assert [mix[f"after/{name}"] for name in ("brightness", "sharpness")] == [
        alone[f"eval/reward/{name}"] for name in ("brightness", "sharpness")
    ]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run, parent = (
        client.get_run(json.loads((folder / "run.json").read_text())["mlflow_run_id"])
        for folder in (sweep / mix["trial"], sweep)
    )
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.data.tags["interpolated"], run.data.metrics["cost/reward_queries"]) == ("True", 16)
    assert "mix=1:1:0,interpolated=True" in done.stdout.partition("Pareto front of")[0]
    assert (
        "interpolated=True" in (sweep / "report_figures" / "trade-off-brightness-sharpness.svg").read_text()
    )

    written = {path: path.stat().st_mtime_ns for path in sweep.glob("mix=*/summary.json")}
    metadata = json.loads((sweep / "run.json").read_text())
    assert metadata["completed"]  # as though the driver had been lost at the very end:
    (sweep / "run.json").write_text(json.dumps(metadata | {"completed": False}))
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert written == {path: path.stat().st_mtime_ns for path in sweep.glob("mix=*/summary.json")}


def test_a_soup_whose_ingredients_were_not_all_trained_alone_is_reported(tmp_path: Path) -> None:
    weights = {"a": [1.0, 0.0], "b": [0.5, 0.5]}
    sweep = SweepDefinition(
        "s",
        "",
        "shapes_hps",
        (),
        {},
        lambda values, recipe: {},
        soup_weights=lambda values: weights[values["mix"]],
    )
    recipe = BaseRecipe.of(sweep, None)
    trials = TrialSet(sweep, recipe, recipe.load(), RunDir(tmp_path), MlflowRun(Uri("sqlite://"), "0", "1"))
    trials.trials = [Trial({"mix": "a"}, error="cannot work"), Trial({"mix": "b"}, error="cannot work")]
    (soup,) = make_soups(trials).trials
    assert (soup.name, soup.status) == ("mix=b,interpolated=True", "failed")
    assert "needs a trial with this ingredient alone" in soup.error


def _arguments(recipe: Path) -> list[str]:
    script = next(path for path in SCRIPTS if path.stem == "hps_k_sweep")
    return [
        sys.executable,
        str(script),
        "--recipe",
        str(recipe),
        "--num-trials",
        "4",
        "--max-concurrent",
        "2",
    ]


@pytest.fixture(scope="module")
def killed(
    tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, int], str]:
    """A sweep over K = 1, 2, 5, 10 of 5 denoising steps, killed when a trial was done, then resumed.

    Where it happened, its folder, when each trial finished before was finished, and what was printed.
    """
    folder = tmp_path_factory.mktemp("sweep")
    recipe = write_tiny(
        folder,
        tiny_pipeline_folder,
        num_steps=4,
        checkpoint={"every": 1},
        evaluation={"every": 2, "num_videos": 2},
    )
    log = folder / "log"
    process = start(_arguments(recipe), folder, log)
    wait_until(lambda: list(folder.glob("runs/*/K=*/summary.json")), process=process, explain=log.read_text)
    kill_driver(process)
    finished = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/K=*/summary.json")}
    done = subprocess.run(
        [*_arguments(recipe), "--resume"], cwd=folder, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (folder / "runs").iterdir()
    return folder, sweep, finished, done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_resumed_sweep_repeats_no_finished_trial_and_finishes_the_others(
    killed: tuple[Path, Path, dict[str, int], str],
) -> None:
    _, sweep, finished, printed = killed
    assert 0 < len(finished) < 3, "the driver was not killed in the middle of the sweep"
    for name, written in finished.items():
        assert (sweep / name / "summary.json").stat().st_mtime_ns == written
    for name in ("K=1", "K=2", "K=5"):
        summary = json.loads((sweep / name / "summary.json").read_text())
        assert (summary["status"], summary["steps"], summary["reward_queries"]) == ("completed", 4, 16)
    assert printed.strip().splitlines()[-1] == str(sweep)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_cannot_work_is_reported_and_the_table_holds_all(
    killed: tuple[Path, Path, dict[str, int], str],
) -> None:
    _, sweep, _, printed = killed
    assert "K=10 failed: sampling: truncation_depth=10 is more than num_inference_steps=5" in printed
    rows = pq.read_table(sweep / "trials.parquet").to_pylist()
    assert {row["trial"]: row["status"] for row in rows} == {
        "K=1": "completed", "K=2": "completed", "K=5": "completed", "K=10": "failed",
    }  # fmt: skip
    assert all(
        row["gain/brightness"] == pytest.approx(row["after/brightness"] - row["before/brightness"])
        for row in rows[:3]
    )
    best = max(rows[:3], key=lambda row: row["best/brightness"])
    assert f"best by eval/objective of 3 trials: {best['trial']} " in printed


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_holds_parent_children_tags_and_every_step_once(
    killed: tuple[Path, Path, dict[str, int], str],
) -> None:
    folder, sweep, _, _ = killed
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    parent = client.get_run(json.loads((sweep / "run.json").read_text())["mlflow_run_id"])
    assert parent.info.status == "FINISHED"
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"trials.parquet", "trials.json", "recipe.yaml", "report.html", "report_figures"} <= artifacts
    figures = {Path(item.path).name for item in client.list_artifacts(parent.info.run_id, "report_figures")}
    assert {"reward-brightness-reward_queries.svg", "effect-K-brightness.png"} <= figures
    page = (sweep / "report.html").read_text()
    assert all(name in page for name in ("K=1", "K=2", "K=5", "K=10"))
    assert re.search(r"<pre[^>]*>python \S*sweeps/hps_k_sweep\.py ", page), "the command, with its options"
    assert "truncation_depth=10 is more than num_inference_steps=5" in page
    runs = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {run.info.run_name: run.data.tags["K"] for run in runs} == {"K=1": "1", "K=2": "2", "K=5": "5"}
    for run in runs:
        assert (run.info.status, run.data.tags["status"], run.data.tags["sweep"]) == (
            "FINISHED",
            "completed",
            sweep.name,
        )
        assert run.data.params["sampling.truncation_depth"] == run.data.tags["K"]
        by_step = client.get_metric_history(run.info.run_id, "train/reward_mean")
        assert [point.step for point in by_step] == [1, 2, 3, 4]


@pytest.mark.ray
@pytest.mark.slow
def test_asha_stops_the_trial_that_falls_behind_and_keeps_what_it_reached(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    rewards = {
        "rewards": [{"reward": "brightness"}, {"reward": "sharpness"}],
        "eval_rewards": [{"reward": "colorfulness"}],
    }
    evaluation = {"every": 1, "num_videos": 2, "select": "eval/reward/colorfulness"}
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, num_steps=4, evaluation=evaluation, **rewards)
    script = next(path for path in SCRIPTS if path.stem == "k_lr_reward_sweep")
    command = [
        sys.executable,
        str(script),
        "--recipe",
        str(recipe),
        "--num-trials",
        "5",
        "--max-concurrent",
        "1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    rows = pq.read_table(sweep / "trials.parquet").to_pylist()
    stopped = [row for row in rows if row["status"] == "stopped"]
    assert stopped, "one of the seed's five draws is worse than those before it and must not spend its budget"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for row in rows:
        run = client.get_run(row["mlflow_run_id"])
        assert (run.info.status, run.data.tags["status"]) == ("FINISHED", row["status"])
        history = {
            point.step: point.value
            for point in client.get_metric_history(row["mlflow_run_id"], "eval/reward/colorfulness")
        }
        assert row["selected"] == row["best/colorfulness"] == history[row["best_step"]]
        assert (row["reward_queries"] < 16) == (row["status"] == "stopped")
    for row in stopped:
        at_equal_queries = [
            client.get_metric_history(other["mlflow_run_id"], "eval/reward/colorfulness")[row["steps"]].value
            for other in rows
            if other["status"] == "completed"
        ]
        assert row["after/colorfulness"] < max(at_equal_queries)
