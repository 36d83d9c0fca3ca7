"""Callbacks: a user's own code at the steps, evaluations, checkpoints and the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vader_ray.training.events import StepEvent


class Callback:
    """Base class of callbacks; override the methods that are of interest.

    `vader_ray.train` calls them in the driver process, where an event holds the metrics of a step but neither
    videos nor reward queries; `vader_ray.Trainer` calls them in its own process with the whole event.
    """

    def on_step_end(self, event: StepEvent) -> None:
        """Run after every optimizer step."""

    def on_evaluate(self, event: StepEvent) -> None:
        """Run after every evaluation on held-out prompts, the one before training (step 0) included."""

    def on_test(self, event: StepEvent) -> None:
        """Run after the test at the end of a run with test prompts."""

    def on_checkpoint(self, event: StepEvent) -> None:
        """Run after every step from which an interrupted run can continue."""

    def on_train_end(self, result: Any) -> None:
        """Run once at the end of training, with what the training call returns."""


def notify(callbacks: Sequence[Callback], event: StepEvent) -> None:
    """Call the methods of all callbacks that concern an event."""
    for callback in callbacks:
        if event.is_test:
            callback.on_test(event)
        elif event.step > 0:
            callback.on_step_end(event)
        if any(name.startswith("eval/") for name in event.metrics):
            callback.on_evaluate(event)
        if event.is_kept:
            callback.on_checkpoint(event)
