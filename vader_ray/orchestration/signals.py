"""SIGTERM, with which Slurm, Kubernetes and ``docker stop`` end a process, has the effect of Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let the first SIGTERM raise KeyboardInterrupt in the main thread, and ignore further ones.

    `ray.init` installs a handler of its own, which ends the process at once: enter this context again after
    it. In another thread, where Python cannot set handlers, do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received:
            return
        received = True
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)  # Ray Tune, for example, handles it in its own way
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
