"""The state of a run after each step: one live line in a terminal, plain lines in a log file."""

from __future__ import annotations

import time
from collections import deque

from vader_ray.display import Display, Part, clock, fit
from vader_ray.training.events import StepEvent

BAR_WIDTH = 10
NUM_TIMED_STEPS = 50
"""Steps over which the seconds per step are averaged."""


class Progress:
    """Displays every `StepEvent` of a run; `eval_metric` is the metric of evaluations to display."""

    def __init__(self, display: Display, num_steps: int, *, eval_metric: str) -> None:
        self._display, self._num_steps, self._eval_metric = display, num_steps, eval_metric
        self._times: deque[tuple[int, float]] = deque(maxlen=NUM_TIMED_STEPS + 1)
        self._best, self._evaluated = float("-inf"), ""

    def update(self, event: StepEvent) -> None:
        """Display the state of the run after a step."""
        self._times.append((event.step, time.monotonic()))
        evaluated = self._eval_metric in event.metrics
        test_metric = self._eval_metric.replace("eval/", "test/", 1)
        name = self._eval_metric.removeprefix("eval/").removeprefix("reward/")
        if evaluated:
            self._evaluated = f"validation {name} {event.metrics[self._eval_metric]:.4f}"
        elif test_metric in event.metrics:
            self._evaluated = f"test {name} {event.metrics[test_metric]:.4f}"
        line = fit(self._parts(event), self._display.width)
        is_last = event.step == self._num_steps
        self._display.state(line, "" if is_last else f"step {event.step + 1} of {self._num_steps}")
        is_first = len(self._times) == 2
        if evaluated or ((is_first or is_last) and not self._display.is_live):
            self._display.log_state()

    def _parts(self, event: StepEvent) -> list[Part]:
        """Return the state of the run: what fits into 80 columns has the highest priorities."""
        position, reward, best = f"step {event.step}/{self._num_steps}", "", ""
        if "train/reward_mean" in event.metrics:
            mean = event.metrics["train/reward_mean"]
            self._best = max(self._best, mean)
            reward, best = f"reward {mean:.4f}", f"best {self._best:.4f}"
        step_seconds, left = self._speed(event.step)
        queries = event.metrics.get("cost/reward_queries")
        return [
            Part(position, 9),
            Part(self._bar(event.step) if self._display.is_live else "", 2),
            Part(left, 8),
            Part(self._evaluated, 7),
            Part(reward, 6),
            Part(best, 4),
            Part(step_seconds, 5),
            Part("" if queries is None else f"{queries:.0f} queries", 3),
        ]

    def _bar(self, step: int) -> str:
        filled = BAR_WIDTH * step // self._num_steps
        return "━" * filled + "╌" * (BAR_WIDTH - filled)

    def _speed(self, step: int) -> tuple[str, str]:
        """Return seconds per step, evaluations and checkpoints included, and the time left at that speed."""
        (first_step, start), (_, end) = self._times[0], self._times[-1]
        if step == first_step:
            return "", ""
        step_seconds = (end - start) / (step - first_step)
        return f"{step_seconds:.2f} s/step", f"{clock(step_seconds * (self._num_steps - step))} left"
