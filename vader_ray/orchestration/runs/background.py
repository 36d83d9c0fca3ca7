"""A thread for work that needs not be finished before the next training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One thread that calls functions in the order in which they were submitted.

    A function may submit others. Its exception is raised by the next `check` or `wait`.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._calls = deque[Future[None]]()

    def submit(self, function: Callable[[], None]) -> None:
        """Call a function later, in the thread."""
        self._calls.append(self._executor.submit(function))

    def check(self) -> None:
        """Raise the exception of a function that has ended with one; wait for none."""
        while self._calls and self._calls[0].done():
            self._calls.popleft().result()

    def wait(self) -> None:
        """Wait for all functions; raise the first of their exceptions."""
        if errors := self._finish():
            raise errors[0]

    def close(self) -> list[BaseException]:
        """Wait for all functions, end the thread and return the exceptions that were not raised yet."""
        errors = self._finish()
        self._executor.shutdown()
        return errors

    def _finish(self) -> list[BaseException]:
        errors = []
        while self._calls:
            error = self._calls.popleft().exception()
            errors += [error] if error is not None else []
        return errors
