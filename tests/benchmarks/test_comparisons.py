"""Tables and figures of the comparisons of several seeds, from rows whose numbers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import cross_rewards, few_steps, learning_rates, memory_table, resolution, truncation_depth
from benchmarks.data_efficiency import LEARNING_RATES, chosen_rates
from benchmarks.estimates import Row
from benchmarks.training_runs import Job
from vader_ray.config import load

BASE = [0.0, 1.0, 2.0]
"""Value of each prompt with the base model: a standard deviation of 1."""


def row(job: Job, gains: dict[str, float], **more: Any) -> Row:
    """Return a run with an evaluation every ``job.every`` steps, in which rewards grow in equal parts."""
    steps = sorted({0, *range(job.every, job.num_updates, job.every), job.num_updates})

    def evaluation(step: int) -> dict[str, Any]:
        part = step / job.num_updates
        gained = {f"{prompts}/reward/{name}": part * gain for name, gain in gains.items() for prompts in (
            "eval", "train")}  # fmt: skip
        gained |= dict.fromkeys(("eval/diversity", "eval/motion"), 0.0)
        gained |= {f"eval/caption_accuracy/{each}": 0.0 for each in cross_rewards.CAPTIONS}
        prompts = {name: [value + gain for value in BASE] for name, gain in gained.items()}
        costs = {"reward_queries": 4 * step, "denoiser_calls": step, "train_cpu_seconds": float(step)}
        return {
            "step": step,
            "prompts": prompts,
            **costs,
            **{name: 1 + gain for name, gain in gained.items()},
        }

    return {"job": job.key(), "evaluations": [evaluation(step) for step in steps], **more}


def test_every_depth_trains_as_long_as_the_largest(tmp_path: Path) -> None:
    costs = []
    for job, seconds in zip(truncation_depth.cost_jobs(short=False), (2.0, 4.0, 10.0, 20.0), strict=True):
        cost = row(job, {})
        cost["evaluations"][-1]["train_cpu_seconds"] = seconds
        costs.append(cost)
    jobs = list(truncation_depth.training_jobs(costs, 2, short=False))
    steps = truncation_depth.NUM_STEPS
    assert {job.label: job.num_updates for job in jobs} == {
        "K = 1": 10 * steps,
        "K = 2": 5 * steps,
        "K = 5": 2 * steps,
        "K = 10": steps,
    }
    assert [job.seed for job in jobs] == [0] * 12 + [1] * 12, "seed by seed"
    rows = [row(job, {"hps": 10.0, "aesthetic": 2.0, "pickscore": 4.0}) for job in jobs]
    header, first, *_ = truncation_depth.depth_table(rows, steps)
    cells = dict(zip(header, first, strict=True))
    assert (cells["K"], cells["reward"], cells["steps in equal time"]) == ("K = 1", "hps", str(10 * steps))
    assert cells[f"gain after {steps} steps"] == "+1.00 (+1.00 to +1.00)", "a tenth of the steps"
    assert cells["gain"] == "+10.00 (+10.00 to +10.00)"
    assert cells["gain of the other rewards"] == "+3.00 (+3.00 to +3.00)"
    truncation_depth.draw(rows, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"step", "reward_queries", "train_cpu_seconds"}


def test_the_matrix_of_rewards_has_the_hacking_index(tmp_path: Path) -> None:
    gains = {"hps": 2.0, "aesthetic": -1.0, "pickscore": 0.0, "vjepa": 1.0, "video_reward": -3.0}
    rows = [row(job, gains) for job in cross_rewards.training_jobs(2, short=False)]
    header, first, second, *_ = cross_rewards.reward_table(rows)
    cells = dict(zip(header, first, strict=True))
    assert cells["gain on test prompts"] == "+2.000 (+2.000 to +2.000)"
    assert cells["hacking index"] == "0.50"  # falls of 1, 0, 0 and 3, a mean of 1, and a gain of 2
    assert dict(zip(header, second, strict=True))["hacking index"] == "no gain"
    cross_rewards.draw(rows, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"cross_rewards", "unseen_prompts"}


def test_sizes_are_those_of_the_recipe_and_the_gap_is_in_the_table(tmp_path: Path) -> None:
    sampling = load("shapes_hps").sampling
    sizes = resolution.sizes(short=False)
    assert list(sizes)[1] == f"{sampling.height} × {sampling.width}"
    assert len(sizes) == len(resolution.SCALES)
    tuning = [row(job, {job.reward: 1 / float(job.tags["learning rate"])}) for job in
              resolution.all_tuning_jobs(short=False)]  # fmt: skip
    rates = chosen_rates(tuning)
    assert set(rates.values()) == {min(LEARNING_RATES)}
    elements = {size: index for index, size in enumerate(sizes, start=1)}
    rows = []
    for job in resolution.training_jobs(rates, 2, short=False):
        number = elements[job.tags["size"]]
        gain = float(number) if job.label == "VADER" else 1.0
        rows.append(row(job, dict.fromkeys(resolution.REWARDS, gain), latent_elements=64 * number))
    header, *body = resolution.size_table(rows)
    assert [line[header.index("gap")] for line in body[: len(sizes)]] == [
        f"{gap:+.2f} ({gap:+.2f} to {gap:+.2f})" for gap in range(len(sizes))
    ]
    resolution.draw(rows, tmp_path / "resolution.png")
    assert (tmp_path / "resolution.png").stat().st_size > 10_000


def test_the_gain_of_a_distilled_model_is_divided_by_its_seconds(tmp_path: Path) -> None:
    jobs = list(few_steps.jobs_of(3, short=False))
    assert len(jobs) == 3 * 2 * 3
    assert all(job.config().sampling.num_inference_steps in (4, 20) for job in jobs)
    rows = [row(job, {"hps": 1.0, "aesthetic": 2.0, "pickscore": 4.0}) for job in jobs]
    header, *body = few_steps.few_steps_table(rows)
    cells = [dict(zip(header, line, strict=True)) for line in body]
    assert [each["gain for 100 CPU seconds"] for each in cells[:3]] == ["+6.250", "+12.500", "+25.000"]
    assert {each["gain"] for each in cells[::3]} == {"+1.000 (+1.000 to +1.000)"}
    assert [each["updates"] for each in cells] == ["16"] * 3 + ["32"] * 3
    few_steps.draw(rows, tmp_path)
    assert (tmp_path / "few_steps.png").stat().st_size > 10_000


def test_each_learning_rate_is_a_whole_run_of_the_recipe() -> None:
    jobs = list(learning_rates.jobs_of(["shapes_hps", "shapes_vjepa"], (2e-3, 1e-3), short=False))
    for job in jobs:
        recipe, config = load(job.recipe), job.config()
        assert config.optimizer.learning_rate == float(job.tags["learning_rate"])
        assert config.rewards == recipe.rewards
        assert config.eval_rewards == recipe.eval_rewards
        assert job.num_updates == recipe.num_steps
        assert job.prompts == "validation", "test prompts choose nothing"
    rows = [row(job, dict.fromkeys(job.rewards, 1.0)) for job in jobs]
    header, *body = learning_rates.rates_table(rows)
    cells = [dict(zip(header, line, strict=True)) for line in body]
    assert [each["learning rate"] for each in cells] == ["0.001", "0.002"] * 2
    assert cells[0]["rewards"].startswith("hps 1.000 → 1.500 → 2.000, aesthetic")


@pytest.mark.parametrize("recipe", ["shapes_hps", "modelscope_hps"])
def test_rows_of_the_memory_table_are_valid_settings(recipe: str) -> None:
    for overrides in memory_table.rows_of(load(recipe)).values():
        assert load(recipe, list(overrides)).sampling.truncation_depth >= 1
