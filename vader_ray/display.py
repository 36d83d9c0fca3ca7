"""Display of the stages of a command: live lines in a terminal, plain lines in a log file or a pipe."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, NamedTuple, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from vader_ray.stages import Stage, announced_to

LINE_EVERY_SECONDS = 8.0
"""Longest time without a line during the first minute of a stage, where the output is no terminal."""
_SLOW_LINE_EVERY_SECONDS = 60.0
"""The same after this minute."""
_FILE_WIDTH = 200
"""Columns of a table where the output is no terminal."""
_LEAST_SHOWN_SECONDS = 1.0
"""Shortest stage that a terminal keeps a line of."""


class Part(NamedTuple):
    """A part of a line, which is left out where the line is too narrow."""

    text: str
    priority: int
    """Parts of lower priority are left out first."""


def fit(parts: Sequence[Part], width: int, separator: str = " · ") -> str:
    """Join the parts in their order, as many as a line of this width has room for."""
    kept = list[Part]()
    for part in sorted(parts, key=lambda each: -each.priority):
        tried = [*kept, part]
        if part.text and len(separator.join(each.text for each in tried)) <= width:
            kept = tried
    return separator.join(part.text for part in parts if part in kept)


class Display:
    """Context manager that displays the stages of this process, and lines and tables of a run.

    Args:
        file: where it is printed.
    """

    def __init__(self, file: IO[str]) -> None:
        self._console = Console(file=file, highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = _FILE_WIDTH
        self.is_live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=file is sys.stdout,
        )
        self._stage, self._state, self._body = Stage(""), "", list[RenderableType]()
        self._is_state_due = False
        self._stage_at = self._printed_at = time.monotonic()
        self._lock, self._ended = threading.RLock(), threading.Event()

    def __enter__(self) -> Self:
        if self.is_live:
            self._live.start()
        else:
            threading.Thread(target=self._print_while_it_lasts, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.end_stage()
        if self.is_live:
            self._live.stop()

    def __rich__(self) -> RenderableType:
        """Return what a terminal displays now; takes no lock, since rich's thread holds its own one."""
        lines = (line for line in (self._state, self._running()) if line)
        return Group(*self._body, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

    @property
    def width(self) -> int:
        """Columns of a line."""
        return self._console.width

    def stage(self, stage: Stage) -> None:
        """Display what is done from now on."""
        with self._lock:
            self._is_state_due = False
            if stage.name != self._stage.name:
                self.end_stage()
                self._stage_at = time.monotonic()
                self._stage = stage
                if not self.is_live:
                    self.log(str(stage))
            else:
                self._stage = stage
                self._print_if_due()

    def state(self, line: str, next_stage: str) -> None:
        """Display the state of a run above its stage from now on; a log file gets it when a line is due.

        Args:
            next_stage: what is done now; a log file gets it if it lasts.
        """
        with self._lock:
            if next_stage != self._stage.name:
                self.end_stage()
                self._stage, self._stage_at = Stage(next_stage), time.monotonic()
            self._state, self._is_state_due = line, True
            self._print_if_due()

    def log_state(self) -> None:
        """Print the state of a run as a line that stays, if it has not been printed."""
        with self._lock:
            if self._is_state_due:
                self._is_state_due = False
                self.log(self._state)

    def body(self, *tables: RenderableType) -> None:
        """Display tables above the live line of a terminal."""
        with self._lock:
            self._body = list(tables)

    def log(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            self._printed_at = time.monotonic()
            self._console.print(text, soft_wrap=True)

    def print(self, content: RenderableType) -> None:
        """Print a text, which stays on one line, or a table."""
        with self._lock:
            self._printed_at = time.monotonic()
            self._console.print(content, soft_wrap=isinstance(content, str))

    def is_line_due(self) -> bool:
        """Return whether a log file has had no line for `LINE_EVERY_SECONDS`."""
        return not self.is_live and time.monotonic() - self._printed_at >= LINE_EVERY_SECONDS

    def end_stage(self) -> None:
        """End the stage; a terminal keeps its line and its seconds if they were noticeable."""
        with self._lock:
            seconds = time.monotonic() - self._stage_at
            if self.is_live and self._stage.name and not self._state and seconds >= _LEAST_SHOWN_SECONDS:
                self._console.print(f"{self._stage.name} · {seconds:.0f} s", style="dim", soft_wrap=True)
            self._stage = Stage("")

    def _running(self) -> str:
        stage, seconds = self._stage, time.monotonic() - self._stage_at
        return f"{stage} · {clock(seconds)}" if stage.name else ""

    def _print_while_it_lasts(self) -> None:
        while not self._ended.wait(0.5):
            with self._lock:
                self._print_if_due()

    def _print_if_due(self) -> None:
        lasted = time.monotonic() - self._stage_at
        is_slow = lasted > _SLOW_LINE_EVERY_SECONDS
        every = _SLOW_LINE_EVERY_SECONDS if is_slow else LINE_EVERY_SECONDS
        if self.is_live or not self._stage.name or time.monotonic() - self._printed_at < every:
            return
        if self._is_state_due:
            self.log_state()
        else:
            self.log(self._running())


def clock(seconds: float) -> str:
    """Return seconds as ``h:mm:ss``."""
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{remainder:02d}"


_displays: list[Display] = []


@contextmanager
def display_stages(file: IO[str], first: str = "") -> Iterator[Display]:
    """Display the stages of this process for the duration of the block; an outer block's display is used.

    Args:
        file: standard output if all that the command prints is for a reader, standard error if its output
            is for another program.
        first: the first stage.
    """
    if _displays:
        if first:
            _displays[-1].stage(Stage(first))
        yield _displays[-1]
        return
    with Display(file) as display, announced_to(display.stage):
        _displays.append(display)
        try:
            if first:
                display.stage(Stage(first))
            yield display
        finally:
            _displays.remove(display)
