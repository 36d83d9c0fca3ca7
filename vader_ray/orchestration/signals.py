"""SIGTERM, with which Slurm, Kubernetes and ``docker stop`` end a process, has the effect of Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class _Handler:
    """Handler of SIGTERM that has an effect once."""

    def __init__(self) -> None:
        self._received = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self._received:
            return
        self._received = True
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


def restore_sigterm_handler() -> None:
    """Set the handler of the surrounding `sigterm_interrupts` again; call it after `ray.init`.

    Ray replaces it by one that ends the process at once.
    """
    if _active and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _active[-1])
