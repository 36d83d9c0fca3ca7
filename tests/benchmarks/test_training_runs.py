"""Jobs of benchmarks: a second start measures what is missing, and results of other models are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer

from benchmarks.cross_rewards import REWARDS, recipe_of, training_jobs
from benchmarks.training_runs import Job, Results, measure_training
from tests.helpers.paths import REPOSITORY

SMALL = {
    "sampling.num_inference_steps": 2,
    "videos_per_step": 1,
    "evaluation.num_videos": 2,
    "evaluation.num_test_videos": 3,
}


def job(seed: int = 0) -> Job:
    return Job("training", "small", "shapes_hps", SMALL, seed=seed, num_updates=1, every=1, prompts="test",
               more_prompts="train")  # fmt: skip


def seed_of(job: Job) -> dict[str, Any]:
    return {"measured": job.seed}


def test_a_second_start_measures_what_is_missing(tmp_path: Path) -> None:
    first = Results(tmp_path, "training")
    assert first.get(job(0), seed_of)["measured"] == 0
    again = Results(tmp_path, "training")
    assert again.found([job(1), job(0)]) == first.rows
    assert again.run([job(0)], measure_training), "nothing is left to do"
    assert not again.run([job(0), job(1)], measure_training, deadline=0.0), "the time is over before a start"
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(("field", "message"), [("models", "other models"), ("recipe", "another version")])
def test_results_of_other_models_or_recipes_are_refused(tmp_path: Path, field: str, message: str) -> None:
    Results(tmp_path, "training").get(job(), seed_of)
    file = tmp_path / "training.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: "other"}) + "\n")
    with pytest.raises(typer.BadParameter, match=message):
        Results(tmp_path, "training").find(job())


@pytest.mark.slow
def test_jobs_run_in_other_processes_and_measure_both_sets_of_prompts(tmp_path: Path) -> None:
    results = Results(tmp_path, "training")
    assert results.run([job(0), job(1)], measure_training, processes=2)
    for each in results.found([job(0), job(1)]):
        first, last = each["evaluations"]
        assert first["eval/reward/hps"] != last["eval/reward/hps"]
        assert {
            name: len(last["prompts"][name]) for name in ("eval/reward/hps", "train/reward/aesthetic")
        } == {
            "eval/reward/hps": 3,
            "train/reward/aesthetic": 2,
        }
        assert (last["reward_queries"], first["reward_queries"]) == (1, 0)
        assert last["train_cpu_seconds"] > first["train_cpu_seconds"] == 0
    assert results.rows[0]["evaluations"] != results.rows[1]["evaluations"], "the seeds differ"


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from benchmarks.training_runs import start_process\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    with ProcessPoolExecutor(1, context, initializer=start_process) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        pool.submit(time.sleep, 1000).result()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
        worker.wait(timeout=60)


def test_every_reward_is_trained_alone_by_the_recipe_that_does_so() -> None:
    assert {name: recipe_of(name) for name in REWARDS} == {
        "hps": "shapes_hps",
        "aesthetic": "shapes_hps",
        "pickscore": "shapes_pickscore",
        "vjepa": "shapes_vjepa",
        "video_reward": "shapes_video_reward",
    }
    for each in training_jobs(1, short=False):
        config = each.config()
        assert [reward.name for reward in config.rewards] == [each.reward]
        assert {reward.name for reward in config.eval_rewards} == set(REWARDS) - {each.reward}
