"""Wait for a condition instead of a number of seconds."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    seconds: float = 300,
    process: subprocess.Popen[str] | None = None,
    explain: Callable[[], object] = lambda: "",
) -> T:
    """Poll until the condition returns something true; return that.

    Args:
        seconds: a bound for a fault; a passing test never waits that long.
        process: the process that brings the condition about; its end is the end of waiting.
        explain: text for the failure's message, such as the process's log.
    """
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert process is None or process.poll() is None, f"the process has ended\n{explain()}"
        assert time.monotonic() < end, f"not within {seconds} s\n{explain()}"
        time.sleep(0.05)
    return value
