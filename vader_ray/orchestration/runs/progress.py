"""The progress display of a run: one live line in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress as LiveDisplay
from rich.progress import TextColumn
from rich.table import Column

from vader_ray.training.events import StepEvent

LINE_EVERY_SECONDS = 10.0
BAR_WIDTH = 10
NUM_TIMED_STEPS = 50
"""Steps over which the seconds per step are averaged."""


class Progress:
    """Context manager that displays every `StepEvent`; `eval_metric` is the metric to display."""

    def __init__(self, num_steps: int, *, eval_metric: str) -> None:
        self._num_steps, self._eval_metric = num_steps, eval_metric
        self._console = Console(file=sys.stdout)
        self._live = LiveDisplay(
            TextColumn(
                "{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"), markup=False
            ),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._live.add_task(f"step 0/{num_steps} · starting", total=num_steps)
        self._times: deque[tuple[int, float]] = deque(maxlen=NUM_TIMED_STEPS + 1)
        self._best, self._evaluated = float("-inf"), ""
        self._printed_at = float("-inf")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, event: StepEvent) -> None:
        """Display the state of the run after a step."""
        self._times.append((event.step, time.monotonic()))
        evaluated = self._eval_metric in event.metrics
        test_metric = self._eval_metric.replace("eval/", "test/", 1)
        if evaluated:
            self._evaluated = f"validation {event.metrics[self._eval_metric]:.4f}"
        elif test_metric in event.metrics:
            self._evaluated = f"test {event.metrics[test_metric]:.4f}"
        position, state = f"step {event.step}/{self._num_steps}", self._state(event)
        self._live.update(
            self._task, completed=event.step, description=f"{position} {self._bar(event.step)} {state}"
        )
        if not self._console.is_terminal and (
            evaluated or event.step == self._num_steps or self._line_is_due()
        ):
            self._printed_at = time.monotonic()
            self.log(f"{position} · {state}")

    def log(self, text: str) -> None:
        """Print a message above the live line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line_is_due(self) -> bool:
        return time.monotonic() - self._printed_at >= LINE_EVERY_SECONDS

    def _bar(self, step: int) -> str:
        filled = BAR_WIDTH * step // self._num_steps
        return "━" * filled + "╌" * (BAR_WIDTH - filled)

    def _state(self, event: StepEvent) -> str:
        parts = []
        if "train/reward_mean" in event.metrics:
            reward = event.metrics["train/reward_mean"]
            self._best = max(self._best, reward)
            parts.append(f"reward {reward:.4f} (best {self._best:.4f})")
        parts += [self._evaluated, self._speed(event.step)]
        if "cost/reward_queries" in event.metrics:
            parts.append(f"{event.metrics['cost/reward_queries']:.0f} queries")
        return " · ".join(part for part in parts if part)

    def _speed(self, step: int) -> str:
        """Return seconds per step, evaluations and checkpoints included, and the time left at that speed."""
        (first_step, start), (_, end) = self._times[0], self._times[-1]
        if step == first_step:
            return ""
        step_seconds = (end - start) / (step - first_step)
        return f"{step_seconds:.2f} s/step · {_clock(step_seconds * (self._num_steps - step))} left"


def _clock(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{remainder:02d}"
