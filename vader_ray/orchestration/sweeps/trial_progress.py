"""Display of the trials of a sweep: a live table in a terminal, a line per change in a log file."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayError
from ray.util.queue import Empty, Queue
from rich.table import Table

from vader_ray.display import Display, clock
from vader_ray.stages import Stage

_MAX_ROWS = 20
"""Trials in the table: those that run, then the best ones."""
_POLL_SECONDS = 0.5
_RUNNING = "running trials"


@dataclass(slots=True)
class _Row:
    status: str = "waiting"
    step: int = 0
    now: str = ""
    """Stage of its process."""
    selected: float | None = None
    """Selection metric at its last evaluation."""
    best: float | None = None
    is_over: bool = False

    def order(self) -> tuple[bool, float]:
        """Sort trials that run first, then those with the best values."""
        return self.is_over or self.status == "waiting", -(self.best if self.best is not None else -1e300)


class TrialProgress:
    """Displays the trials of a sweep.

    Args:
        num_trials: number of trials, those that a search still has to propose included.
        num_steps: steps of each trial.
        metric: the selection metric, ``eval/…``.
    """

    def __init__(self, display: Display, *, num_trials: int, num_steps: int, metric: str) -> None:
        self._display, self._num_trials, self._num_steps = display, num_trials, num_steps
        self._metric = metric.removeprefix("eval/").removeprefix("reward/")
        self._rows: dict[str, _Row] = {}
        self._started, self._lock = time.monotonic(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune writes its callbacks to a file, from which no sweep is continued."""
        return {}

    def started(self, trial: str) -> None:
        """Display that the process of a trial starts."""
        self._change(trial, "its process imports PyTorch and diffusers", status="running", now="importing")

    def ended(self, trial: str, status: str) -> None:
        """Display the end of a trial."""
        self._change(trial, status, status=status, now="", is_over=True)

    def receive(self, trial: str, kind: str, content: Any) -> None:
        """Display a message of a trial's process.

        Args:
            kind: ``stage`` with the fields of a `Stage`, or ``step`` with the number of steps and the
                selection metric (None without an evaluation).
        """
        if kind == "stage":
            self._change(trial, str(Stage(*content)), only_if_due=True, now=str(Stage(*content)))
            return
        step, selected = content
        with self._lock:
            row = self._rows.setdefault(trial, _Row())
            row.step, row.now = step, "" if step == self._num_steps else f"step {step + 1}"
            if selected is not None:
                row.selected = selected
                row.best = selected if row.best is None else max(selected, row.best)
        self._change(trial, self._describe(row), only_if_due=selected is None)

    def _describe(self, row: _Row) -> str:
        position = f"step {row.step}/{self._num_steps}"
        if row.selected is None or row.best is None:
            return position
        return f"{position}, validation {self._metric} {row.selected:.4f} (best {row.best:.4f})"

    def _change(self, trial: str, text: str, *, only_if_due: bool = False, **fields: Any) -> None:
        with self._lock:
            row = self._rows.setdefault(trial, _Row())
            for name, value in fields.items():
                setattr(row, name, value)
            summary = self._summary()
            if self._display.is_live:
                self._display.body(self._table())
            elif not only_if_due or self._display.is_line_due():
                self._display.log(f"{trial}: {text} · {summary}")
            self._display.state(summary, _RUNNING)

    def _summary(self) -> str:
        over = sum(row.is_over for row in self._rows.values())
        done = sum(1.0 if row.is_over else row.step / self._num_steps for row in self._rows.values())
        text = f"{over} of {self._num_trials} trials over"
        if not done:
            return text
        seconds = (time.monotonic() - self._started) * (self._num_trials - done) / done
        return f"{text} · {clock(seconds)} left"

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("trial", overflow="ellipsis", no_wrap=True, max_width=36)
        table.add_column("step", justify="right")
        table.add_column(f"validation {self._metric}", justify="right")
        table.add_column("best", justify="right")
        table.add_column("", overflow="ellipsis", no_wrap=True)
        rows = sorted(self._rows.items(), key=lambda item: item[1].order())
        for name, row in rows[:_MAX_ROWS]:
            values = ("" if value is None else f"{value:.4f}" for value in (row.selected, row.best))
            table.add_row(name, f"{row.step}/{self._num_steps}", *values, row.now or row.status)
        return table


@contextmanager
def passed_on(messages: Queue, receive: Callable[[str, str, Any], None]) -> Iterator[None]:
    """Pass the messages of a queue to a function, from a thread, for the duration of the block.

    If the queue's process is lost, the sweep goes on without them.
    """
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.is_set():
            try:
                receive(*messages.get(timeout=_POLL_SECONDS))
            except (Empty, queue.Empty):
                continue
            except RayError:
                return

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(10 * _POLL_SECONDS)
