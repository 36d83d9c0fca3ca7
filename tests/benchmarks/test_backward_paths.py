"""The comparison of backward paths: its tables from a small file, its choice of updates, and a real run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import backward_paths
from benchmarks.backward_path_tables import gradient_table, hacking_table, training_table
from benchmarks.estimates import Estimate
from benchmarks.training_runs import REWARDS, Job, models_digest

SPREAD = {"hps": 0.5, "aesthetic": 2.0, "pickscore": 4.0}


def run(path: str, seed: int, *, hps: float, aesthetic: float, pickscore: float) -> dict[str, Any]:
    """Return a finished run that trained hps, with the given changes of the scores."""
    before = {"eval/diversity": 0.2, "eval/motion": 0.5}
    after = {"eval/diversity": 0.1, "eval/motion": 0.6}
    changes = {"hps": hps, "aesthetic": aesthetic, "pickscore": pickscore}
    before |= {f"eval/reward/{name}": 1.0 for name in changes}
    after |= {f"eval/reward/{name}": 1.0 + change for name, change in changes.items()}
    job = Job("training", path, "shapes_wan", {}, seed=seed, num_updates=12)
    evaluations = [{"step": 0, **before}, {"step": 12, **after}]
    return {"job": asdict(job), "evaluations": evaluations, "spread": SPREAD}


def cost(path: str, flops: float) -> dict[str, Any]:
    return {"job": asdict(Job("cost", path, "shapes_wan", {})), "denoiser_flops": flops}


ROWS = [
    cost("last", 10.0),
    cost("sparse", 15.0),
    run("last", 0, hps=0.5, aesthetic=1.0, pickscore=-4.0),
    run("last", 1, hps=1.5, aesthetic=1.0, pickscore=-4.0),
    run("sparse", 0, hps=1.0, aesthetic=0.0, pickscore=0.0),
    run("sparse", 1, hps=2.5, aesthetic=2.0, pickscore=4.0),
]


def test_the_table_has_means_and_students_interval_over_seeds() -> None:
    header, first, second = training_table(ROWS)
    rows = {row[0]: dict(zip(header, row, strict=True)) for row in (first, second)}
    assert first[0] == "`sparse`"  # the larger gain is above
    # gains of 1 and 3, of 2 and 5 standard deviations; Student's t for two values is 12.706 · |a − b| / 2
    assert rows["`last`"]["trained reward"] == "+2.00 ± 12.71"
    assert rows["`sparse`"]["trained reward"] == "+3.50 ± 19.06"
    assert rows["`sparse`"]["less that of `last`"] == "+1.50 ± 6.35"  # 1 and 2, seed by seed
    assert rows["`sparse`"]["runs above `last`"] == "2 of 2"
    assert rows["`sparse`"]["FLOPs of an update"] == "1.50"
    # the held-out rewards of `last` change by +0.5 and −1: the rise does not hide the fall
    assert rows["`last`"]["held-out rewards"] == "-0.25 ± 0.00"
    assert rows["`last`"]["hacking index"] == "0.25"  # a mean fall of 0.5 for a gain of 2
    assert rows["`sparse`"]["hacking index"] == "0.00"
    assert rows["`last`"]["diversity"] == "-0.50 ± 0.00"
    assert rows["`last`"]["motion"] == "+0.20 ± 0.00"


def test_a_seed_that_is_not_finished_does_not_count() -> None:
    started = run("last", 2, hps=9.0, aesthetic=0.0, pickscore=0.0)
    assert training_table([*ROWS, started]) == training_table(ROWS)


def test_a_single_seed_has_no_interval() -> None:
    assert Estimate.over_seeds([1.5]).text() == "+1.50"


def test_the_variance_is_compared_at_equal_flops() -> None:
    def gradient(path: str, variance: float, flops: float) -> dict[str, Any]:
        job = Job("gradients", path, "shapes_wan", {}, tags={"scheduler": "Euler"})
        measured = {"cosine": 0.5, "cosine_of_mean": 0.75, "variance": variance}
        return {"job": asdict(job), "denoiser_flops": flops, **measured}

    table = gradient_table([gradient("last", 8.0, 10.0), gradient("leap", 2.0, 20.0)])
    assert table[2] == ["`leap`", "0.50, 0.75, 0.50"]  # a quarter of the variance at twice the cost


def test_the_lowest_heldout_score_counts_and_not_the_last_one() -> None:
    def hacked(path: str, prior: str, aesthetic: float, hps: list[float]) -> dict[str, Any]:
        evaluations = [
            {"eval/reward/aesthetic": 4.0 + aesthetic * index / 2, "eval/reward/hps": score}
            | {"eval/reward/pickscore": 18.0}
            for index, score in enumerate(hps)
        ]
        job = Job("hacking", path, "shapes_hps", {}, reward="aesthetic", tags={"prior": prior})
        return {"job": asdict(job), "evaluations": evaluations}

    rows = [hacked("last", "0", 5.0, [0.8, 0.7, 0.85]), hacked("last", "10", 4.0, [0.8, 0.8, 0.85])]
    _, free, held = hacking_table(rows)
    assert free[-2] == "0.800, 0.700, 0.850"
    assert held[3:6] == ["4.00 → 8.00", "80 %", "**0.800, 0.800, 0.850**"]


def test_the_command_reads_its_files_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {**row, "job": {**row["job"], "reward": reward}} if row["job"]["part"] == "training" else row
        for reward in REWARDS
        for row in ROWS
    ]
    lines = [json.dumps(row | {"models": models_digest()}) + "\n" for row in rows]
    (tmp_path / "training.jsonl").write_text("".join(lines))
    backward_paths.main(tmp_path, part=["training"], table=True, figures=tmp_path / "figures")
    assert capsys.readouterr().out.count("| `sparse` |") == 2  # over all rewards, and by reward
    assert (tmp_path / "figures/training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_second_start_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backward_paths, "TRAINED", ("last",))
    monkeypatch.setattr(backward_paths, "REWARDS", ("hps",))
    monkeypatch.setattr(backward_paths, "NUM_UPDATES", 1)
    short = {"sampling.num_inference_steps": 2, "evaluation.num_videos": 2, "videos_per_step": 1}
    monkeypatch.setattr(backward_paths, "TRAINING", backward_paths.TRAINING | short)
    backward_paths.main(tmp_path, part=["training"], num_seeds=1)
    written = (tmp_path / "training.jsonl").read_text()
    cost_row, training_row = map(json.loads, written.splitlines())
    assert cost_row["denoiser_flops"] > 0
    before, after = training_row["evaluations"]
    assert before["eval/reward/hps"] != after["eval/reward/hps"]
    assert training_row["reward_queries"] == 1
    backward_paths.main(tmp_path, part=["training"], num_seeds=1)
    assert (tmp_path / "training.jsonl").read_text() == written
