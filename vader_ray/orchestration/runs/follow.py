"""The driver's wait for Ray Train: pass on messages of workers, notice SIGTERM and the loss of Ray."""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ray.exceptions import RayError
from ray.util.queue import Empty, Queue

from vader_ray.errors import UserError
from vader_ray.orchestration import ray_private
from vader_ray.stages import announce
from vader_ray.training.events import StepEvent

_POLL_SECONDS = 0.5
"""Longest wait for a message, after which other ends of a run are looked for; a message ends the wait."""


class Failure(NamedTuple):
    """The failure that ended the workers."""

    message: str
    traceback: str = ""
    """Traceback of its cause; empty if the message has all that the user needs."""


class EndRequest:
    """Request to the workers of a run to keep a checkpoint at the end of the step in progress, and to end.

    Args:
        key: name of the run's request in the cluster.
        is_wanted: whether the user or the system wants the run to end.
        grace_seconds: longest wait for the workers.
    """

    def __init__(self, key: str, is_wanted: Callable[[], bool], grace_seconds: float) -> None:
        self._key, self._is_wanted, self._grace_seconds = key, is_wanted, grace_seconds
        self._deadline: float | None = None

    @property
    def is_made(self) -> bool:
        """Whether the workers have been requested to end."""
        return self._deadline is not None

    def poll(self, log: Callable[[str], None]) -> None:
        """Make the request when it is wanted.

        Raises:
            KeyboardInterrupt: the workers did not end within the time.
        """
        if self._deadline is None and self._is_wanted():
            log(
                "SIGTERM: the run ends with a checkpoint after the step in progress, within "
                f"runtime.grace_seconds={self._grace_seconds:g}; a second SIGTERM, or Ctrl-C, ends it at once"
            )
            self._deadline = time.monotonic() + self._grace_seconds
            ray_private.request_end(self._key)
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise KeyboardInterrupt


def follow(
    thread: threading.Thread,
    messages: Queue,
    end: EndRequest,
    *,
    on_step: Callable[[StepEvent], None],
    log: Callable[[str], None],
) -> Failure | None:
    """Pass on the workers' messages until Ray Train's thread has ended.

    Returns:
        The failure that a worker has reported, or the loss of a process of Ray; None without.

    Raises:
        UserError: a worker met a mistake that the user can correct.
        KeyboardInterrupt: the workers did not end within the time of the request.
    """
    while True:
        if lost := ray_private.lost_process():
            return Failure(ray_private.describe_loss(lost))
        end.poll(log)
        try:
            kind, content = messages.get(timeout=_POLL_SECONDS)
        except (Empty, queue.Empty):
            if not thread.is_alive():
                return None
            continue
        except RayError as error:
            return _lost_queue(thread, error)
        if kind == "failed":
            return Failure(*content)
        _pass_on(kind, content, on_step, log)


def _pass_on(
    kind: str, content: Any, on_step: Callable[[StepEvent], None], log: Callable[[str], None]
) -> None:
    match kind:
        case "stage":
            announce(*content)
        case "step":
            on_step(pickle.loads(content))  # noqa: S301 (of this run's workers)
        case "log":
            log(content)
        case "user_error":
            raise UserError(content)


def _lost_queue(thread: threading.Thread, error: RayError) -> Failure | None:
    """Explain the loss of the queue's process: usually another process of Ray was lost before it."""
    thread.join(5)
    if lost := ray_private.lost_process():
        return Failure(ray_private.describe_loss(lost))
    if not thread.is_alive():
        return None
    return Failure("the process of the workers' messages was killed or has crashed", str(error))
