"""The end of a driver whose private Ray cluster has lost its control service or its raylet."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vader_ray.orchestration import ray_private

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0
"""Time for the main thread to notice the loss itself. Ray's core ends this process some 10 seconds after the
loss of the raylet, and 60 after that of the control service."""


@contextmanager
def exit_when_lost(on_lost: Callable[[str], str]) -> Iterator[None]:
    """End this process if the block lasts on after the started cluster has lost a process.

    Ray Tune, or a call of Ray in which the main thread waits, would wait until Ray's core ends this process
    with a message of its own.

    Args:
        on_lost: records the loss, which its argument describes, and returns the message to print; it is
            called in another thread.
    """
    done = threading.Event()
    threading.Thread(target=_watch, args=(done, on_lost), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _watch(done: threading.Event, on_lost: Callable[[str], str]) -> None:
    while not done.wait(_POLL_SECONDS):
        lost = ray_private.lost_process()
        if lost is not None and not done.wait(_GRACE_SECONDS):
            print(f"vader-ray: {on_lost(ray_private.describe_loss(lost))}", file=sys.stderr, flush=True)
            os._exit(1)  # the kernel ends the cluster's processes with it
