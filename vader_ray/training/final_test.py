"""The evaluation on test prompts at the end of a run: of the base model, and of the adapter that was kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vader_ray.config import ExperimentConfig
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate, paired_gains
from vader_ray.training.experiment import Experiment
from vader_ray.types import SamplingModel


def is_test_due(config: ExperimentConfig, state: State) -> bool:
    """Whether a run has ended, has test prompts, and has not been tested."""
    has_ended = state.step >= config.num_steps or bool(state.stopped)
    return config.prompts.test is not None and has_ended and not state.test_metrics


def run_test(
    config: ExperimentConfig, experiment: Experiment, group: WorkerGroup, state: State, best_adapter: Path
) -> dict[str, float]:
    """Evaluate base model and best adapter on the test prompts, and keep the result in ``state``.

    Nothing was chosen by these prompts and their noise, so the numbers are free of the optimism of choices.
    The adapter in the model is the same before and after.

    Returns:
        ``test/base/…`` and ``test/…`` for each reward and metric, and for their paired differences
        ``test/gain/…``, ``test/gain_standard_error/…``, ``test/gain_low/…``, ``test/gain_high/…`` and
        ``test/effect_size/…``; for metrics these are called ``test/gain/metric/…``.
    """
    with _own_adapter(experiment.model):
        with torch.no_grad():
            for parameter in experiment.model.adapter_parameters():
                parameter.zero_()
        base = kept = evaluate(config, experiment, group, split="test", stage="testing the base model")
        if state.best_step > 0:
            experiment.model.load_adapter(best_adapter)
            kept = evaluate(
                config, experiment, group, base.base_features, split="test", stage="testing the best adapter"
            )
    found = {name.replace("eval/", "test/base/", 1): value for name, value in base.metrics.items()}
    measured = kept.metrics | paired_gains(base.prompt_values, kept.prompt_values)
    found |= {name.replace("eval/", "test/", 1): value for name, value in measured.items()}
    state.test_metrics = found
    state.test_prompt_gains = {
        name: [after - before for before, after in zip(values, kept.prompt_values[name], strict=True)]
        for name, values in base.prompt_values.items()
    }
    return found


@contextmanager
def _own_adapter(model: SamplingModel) -> Iterator[None]:
    """Restore the adapter's weights at the end of the block."""
    parameters = model.adapter_parameters()
    own = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in zip(parameters, own, strict=True):
                parameter.copy_(before)
