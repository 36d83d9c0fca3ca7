"""SIGTERM, with which Slurm, Kubernetes and ``docker stop`` end a process, has the effect of Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class _Handler:
    """Handler of SIGTERM that interrupts once, and only from the second SIGTERM on while it is deferred."""

    def __init__(self) -> None:
        self._has_interrupted = False
        self.is_deferred = False
        self.is_wanted = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_deferred and not self.is_wanted:
            self.is_wanted = True
            return
        if self._has_interrupted:
            return
        self._has_interrupted = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)  # Ray Tune, for example, handles it in its own way
        else:
            raise KeyboardInterrupt


_active: list[_Handler] = []
"""The handlers of the surrounding `sigterm_interrupts`, outermost first."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let the first SIGTERM raise KeyboardInterrupt in the main thread, and ignore further ones.

    In another thread, where Python cannot set handlers, do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    before = signal.signal(signal.SIGTERM, handler)
    _active.append(handler)
    try:
        yield
    finally:
        _active.remove(handler)
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextmanager
def sigterm_deferred() -> Iterator[Callable[[], bool]]:
    """Within `sigterm_interrupts`, let the first SIGTERM of the block raise nothing; the second interrupts.

    Yields:
        A function that returns whether there was a SIGTERM; without a surrounding `sigterm_interrupts`, and
        after a SIGTERM that has interrupted, always False.
    """
    if not _active:
        yield lambda: False
        return
    handler = _active[-1]
    handler.is_deferred = True
    try:
        yield lambda: handler.is_wanted
    finally:
        handler.is_deferred = False


def restore_sigterm_handler() -> None:
    """Set the handler of the surrounding `sigterm_interrupts` again; call it after `ray.init`.

    Ray replaces it by one that ends the process at once.
    """
    if _active and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _active[-1])
