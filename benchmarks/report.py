"""CPU seconds and size of the report over a large sweep, whose runs are written to an MLflow database here.

python benchmarks/report.py --num-runs 300
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from vader_ray.config import ExperimentConfig, load
from vader_ray.orchestration.reporting.html_report import write_report
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.mlflow_client import Metric, MlflowClient

EXPERIMENT = "benchmark"


def write_run(config: ExperimentConfig, index: int) -> None:
    """Write one run with eleven evaluations of all metrics that training logs."""
    run = mlflow_runs.start_run(config, f"run-{index:03d}", "name: benchmark\n")
    draw, client = random.Random(index), MlflowClient(tracking_uri=run.uri)
    names = [spec.name for spec in (*config.rewards, *config.eval_rewards)]
    kinds = ["reward/", "gain/", "gain_low/", "gain_high/", "gain_standard_error/"]
    metrics = [f"eval/{kind}{name}" for kind in kinds for name in names]
    metrics += ["eval/objective", "eval/motion", "eval/diversity", "eval/distance_to_base", "eval/best_step"]
    metrics += ["cost/reward_queries", "cost/denoiser_calls", "cost/train_seconds", "guard/fired"]
    for step in range(0, 110, 10):
        values = {name: draw.random() for name in metrics} | {"eval/best_step": 100.0, "guard/fired": 0.0}
        values |= {"cost/reward_queries": 4.0 * step, "cost/denoiser_calls": 80.0 * step}
        client.log_batch(run.run_id, [Metric(name, value, 0, step) for name, value in values.items()])
    client.set_tag(run.run_id, "status", "completed")
    client.set_terminated(run.run_id)


def main(num_runs: Annotated[int, typer.Option(min=1)] = 300) -> None:
    """Write the runs and their report."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        shared = [f"tracking.uri={uri}", f"tracking.experiment={EXPERIMENT}"]
        for index in range(num_runs):
            rate = 1e-4 * 1.01**index
            write_run(load("shapes_hps", [*shared, f"optimizer.learning_rate={rate:.6g}"]), index)
        started = time.process_time()
        page = write_report([EXPERIMENT], Path(folder) / "report.html", uri)
        seconds = time.process_time() - started
        print(f"{num_runs} runs: {seconds:.1f} CPU seconds, {page.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    typer.run(main)
