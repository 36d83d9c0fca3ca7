"""Adapter soups: baselines of a sweep that merge the adapters of its trials and train nothing.

Rewarded soups, arXiv 2306.04488. A soup is a run of the sweep like a trial, with folder and MLflow run; its
costs are those of the trials that it is made of.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from vader_ray import models
from vader_ray.orchestration.runs.run_dir import write_json
from vader_ray.orchestration.runs.summary import RunSummary
from vader_ray.orchestration.selection import INTERPOLATED
from vader_ray.orchestration.sweeps.definition import Values, trial_name
from vader_ray.orchestration.sweeps.trials import Trial, TrialSet

_ONE_WORKER = {"num_workers": 1, "shard": 1, "context_parallel": 1, "guidance_parallel": False}


def make_soups(trials: TrialSet) -> TrialSet:
    """Return the soups that compete with the trials of a sweep, ready to be evaluated; see `soup_weights`."""
    runtime = trials.config.runtime.model_copy(update=_ONE_WORKER)
    soups = replace(
        trials,
        definition=replace(trials.definition, search="random", scheduler=None),
        config=trials.config.model_copy(update={"runtime": runtime}),
        trials=[],
    )
    if trials.definition.soup_weights is None:
        return soups
    weighted = [(trial, trials.definition.soup_weights(trial.values)) for trial in trials.trials]
    single = {
        weights.index(1): summary
        for trial, weights in weighted
        if 1 in weights and (summary := trial.summary) is not None and summary.is_usable
    }
    for trial, weights in weighted:
        mixed = {index: weight for index, weight in enumerate(weights) if weight}
        if len(mixed) < 2:
            continue
        values = trial.values | {INTERPOLATED: True}
        parts = [(single[index], weight) for index, weight in mixed.items() if index in single]
        if len(parts) == len(mixed):
            soups.trials.append(_make(trials, values, parts))
        else:
            error = "there are no adapters to merge: each ingredient needs a trial with this ingredient alone"
            soups.trials.append(Trial(values, error=error))
    return soups


def _make(trials: TrialSet, values: Values, parts: Sequence[tuple[RunSummary, float]]) -> Trial:
    """Write the merged adapter and its costs to the soup's folder."""
    soup = trials.folder.path / trial_name(values) / "soup"
    shutil.rmtree(soup, ignore_errors=True)
    models.mix_adapters([(part.best_adapter, weight) for part, weight in parts], soup / "adapter")
    summaries = [part for part, _ in parts]
    costs = {
        "reward_queries": sum(part.reward_queries for part in summaries),
        "denoiser_calls": sum(part.denoiser_calls for part in summaries),
        "train_seconds": sum(part.train_seconds for part in summaries),
        "worker_seconds": 3600 * sum(part.gpu_hours for part in summaries),
    }
    write_json(soup / "costs.json", costs)
    shape = models.adapter_shape(soup / "adapter").model_dump(mode="json", exclude={"networks"})
    fields = {f"adapter.{name}": value for name, value in shape.items()}
    fields |= {f"runtime.{name}": value for name, value in _ONE_WORKER.items()}
    return trials.prepare(values, fields)
