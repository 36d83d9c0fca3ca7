"""A sweep's cheap competitors: adapters of its trials mixed by weights, and evaluated as though a trial had come there.

Nothing is trained (rewarded soups, arXiv 2306.04488). A mix is a run of the sweep like any trial, in its folder and in MLflow,
and costs what the trials that it is made of have cost together.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from vader_ray import models
from vader_ray.orchestration.runs.launch import read_summary
from vader_ray.orchestration.runs.run_dir import RunDir, write_json
from vader_ray.orchestration.sweeps.definition import INTERPOLATED, Values, trial_name
from vader_ray.orchestration.sweeps.trials import Trial, TrialSet

COSTS = ("reward_queries", "denoiser_calls", "train_seconds")


def make_mixes(members: TrialSet) -> TrialSet:
    """The mixes that compete with the trials of a sweep, ready to be evaluated, as `SweepDefinition.shares` says."""
    mixes = replace(
        members,
        sweep=replace(members.sweep, learn=False, stop_early=False),
        base=members.base.model_copy(
            update={"runtime": members.base.runtime.model_copy(update={"num_workers": 1})}
        ),
        trials=[],
    )
    if members.sweep.shares is None:
        return mixes
    shared = [(trial, members.sweep.shares(trial.values)) for trial in members.trials]
    alone = {
        shares.index(1): trial.folder for trial, shares in shared if 1 in shares and trial.score is not None
    }
    for trial, shares in shared:
        mixed = {place: share for place, share in enumerate(shares) if share}
        if len(mixed) > 1:
            values = trial.values | {INTERPOLATED: True}
            parts = [(folder, share) for place, share in mixed.items() if (folder := alone.get(place))]
            if len(parts) == len(mixed):
                mixes.trials.append(_make(members, values, parts))
            else:
                mixes.trials.append(
                    Trial(values, error="no adapter to mix: each share needs a trial that has it alone")
                )
    return mixes


def _make(members: TrialSet, values: Values, parts: Sequence[tuple[RunDir, float]]) -> Trial:
    """One mix: its adapter lies in its folder, with what it cost."""
    given = members.folder.path / trial_name(values) / "given"
    shutil.rmtree(given, ignore_errors=True)
    models.mix_adapters([(folder.best_adapter, weight) for folder, weight in parts], given / "adapter")
    summaries = [read_summary(folder) for folder, _ in parts]
    costs = {cost: sum(summary[cost] for summary in summaries) for cost in COSTS}
    costs["worker_seconds"] = 3600 * sum(summary["gpu_hours"] for summary in summaries)
    write_json(given / "costs.json", costs)
    shape = models.adapter_shape(given / "adapter").model_dump(mode="json")
    return members.prepare(
        values, {f"adapter.{name}": value for name, value in shape.items()} | {"runtime.num_workers": 1}
    )
