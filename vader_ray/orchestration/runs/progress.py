"""What a person sees of a running training: one live line in a terminal, plain lines in a log."""

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
"""Steps over which the pace is averaged."""


class Progress:
    """Context manager that shows each `StepEvent`; `eval_metric` is the held-out metric that is shown."""

    def __init__(self, num_steps: int, *, eval_metric: str, console: Console | None = None) -> None:
        self._num_steps, self._eval_metric = num_steps, eval_metric
        self._console = console or Console(file=sys.stdout)
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

    def update(self, report: StepEvent) -> None:
        """Show the state of the run after a step."""
        self._times.append((report.step, time.monotonic()))
        evaluated = self._eval_metric in report.metrics
        if evaluated:
            self._evaluated = f"held-out {report.metrics[self._eval_metric]:.4f}"
        position, state = f"step {report.step}/{self._num_steps}", self._state(report)
        self._live.update(
            self._task, completed=report.step, description=f"{position} {self._bar(report.step)} {state}"
        )
        if not self._console.is_terminal and (
            evaluated or report.step == self._num_steps or self._line_is_due()
        ):
            self._printed_at = time.monotonic()
            self.line(f"{position} · {state}")

    def line(self, text: str) -> None:
        """Print a message above the live line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line_is_due(self) -> bool:
        return time.monotonic() - self._printed_at >= LINE_EVERY_SECONDS

    def _bar(self, step: int) -> str:
        filled = BAR_WIDTH * step // self._num_steps
        return "━" * filled + "╌" * (BAR_WIDTH - filled)

    def _state(self, report: StepEvent) -> str:
        parts = []
        if "train/reward_mean" in report.metrics:
            reward = report.metrics["train/reward_mean"]
            self._best = max(self._best, reward)
            parts.append(f"reward {reward:.4f} (best {self._best:.4f})")
        parts += [self._evaluated, self._pace(report.step)]
        if "cost/reward_queries" in report.metrics:
            parts.append(f"{report.metrics['cost/reward_queries']:.0f} queries")
        return " · ".join(part for part in parts if part)

    def _pace(self, step: int) -> str:
        """Seconds per step, evaluations and checkpoints included, and the time left at that pace."""
        (first_step, start), (_, end) = self._times[0], self._times[-1]
        if step == first_step:
            return ""
        step_seconds = (end - start) / (step - first_step)
        return f"{step_seconds:.2f} s/step · {_clock(step_seconds * (self._num_steps - step))} left"


def _clock(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{remainder:02d}"
