"""Jobs of benchmarks: a second start measures what is missing, and results of other models are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.cross_rewards import REWARDS, recipe_of, training_jobs
from benchmarks.training_runs import Job, Results, measure_training

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
