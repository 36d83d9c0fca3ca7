"""A sweep's cheap competitors: adapters of its trials mixed by weights, and evaluated as though a trial had come there.

Nothing is trained (rewarded soups, arXiv 2306.04488). A mix is a run of the sweep like any trial, in its folder and in MLflow,
and costs what the trials that it is made of have cost together.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from vader_ray import models
from vader_ray.orchestration.folder import write_json
from vader_ray.orchestration.members import Members, Trial
from vader_ray.orchestration.run import read_summary
from vader_ray.orchestration.space import INTERPOLATED, Values, trial_name

COSTS = ("reward_queries", "denoiser_calls", "train_seconds")


def make_mixes(members: Members) -> Members:
    """The mixes that compete with the trials of a sweep, ready to be evaluated, as `Sweep.parts` says."""
    mixes = replace(
        members,
        sweep=replace(members.sweep, learn=False, stop_early=False),
        base=members.base.model_copy(update={"machine": members.base.machine.model_copy(update={"num_workers": 1})}),
        trials=[],
    )
    for trial in members.trials:
        if parts := members.sweep.parts(trial.values) if members.sweep.parts else ():
            mixes.trials.append(_make(members, trial.values, parts))
    return mixes


def _make(members: Members, values: Values, parts: Sequence[tuple[Values, float]]) -> Trial:
    """One mix: its adapter lies in its folder, with what it cost."""
    values = values | {INTERPOLATED: True}
    trained = {trial.name: trial.folder for trial in members.trials if trial.status in ("completed", "stopped") and trial.folder}
    if missing := [name for part, _ in parts if (name := trial_name(part)) not in trained]:
        return Trial(values, error=f"there is no adapter of {', '.join(missing)} to mix")
    chosen = [(trained[trial_name(part)], weight) for part, weight in parts]
    given = members.folder.path / trial_name(values) / "given"
    shutil.rmtree(given, ignore_errors=True)
    models.mix_adapters([(folder.best_adapter, weight) for folder, weight in chosen], given / "adapter")
    summaries = [read_summary(folder) for folder, _ in chosen]
    costs = {cost: sum(summary[cost] for summary in summaries) for cost in COSTS}
    costs["worker_seconds"] = 3600 * sum(summary["gpu_hours"] for summary in summaries)
    write_json(given / "costs.json", costs)
    shape = models.adapter_shape(given / "adapter").model_dump(mode="json")
    return members.prepare(values, {f"adapter.{name}": value for name, value in shape.items()} | {"machine.num_workers": 1})
