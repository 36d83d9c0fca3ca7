"""Stages of a command: what takes seconds is announced before it begins, for the person who waits.

Code announces what it does; a command displays the stages of its own process, and the driver of a run those
of worker 0. Without a receiver, as in a notebook that calls the library, nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Stage(NamedTuple):
    """A stage of a process, or its parts that are done."""

    name: str
    """Description, such as ``loading the model``."""
    done: int = 0
    """Number of parts that are done."""
    total: int = 0
    """Number of parts; 0 if they are not counted."""

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.total}" if self.total else self.name


_receivers: list[Callable[[Stage], object]] = []


def announce(name: str, done: int = 0, total: int = 0) -> None:
    """Announce what this process does from now on, or how many parts of it are done."""
    for receive in tuple(_receivers):
        receive(Stage(name, done, total))


@contextmanager
def announced_to(receive: Callable[[Stage], object]) -> Iterator[None]:
    """Pass every stage of this process to a function for the duration of the block."""
    _receivers.append(receive)
    try:
        yield
    finally:
        _receivers.remove(receive)
