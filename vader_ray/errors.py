"""The two errors that end a command with a message; any other exception is a bug and has a traceback."""

from __future__ import annotations

import re
import sysconfig
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from types import FrameType

from vader_ray.running import running
from vader_ray.uris import redact

_ALIKE = 0.65
"""Similarity of names above which one may be meant by the other."""
_LONGEST_NAME = 200
"""Longest name for which a known one is suggested."""


class UserError(ValueError):
    """A mistake that the user can correct; the message names the given value, the expected one and a remedy.

    The command ends with exit status 2. Passwords of URIs are taken out of the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class RunFailed(RuntimeError):
    """A run that ended without its result: the message gives the cause and how to continue.

    The command ends with exit status 1. Passwords of URIs are taken out of the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


@contextmanager
def explain_plugin_errors(subject: str) -> Iterator[None]:
    """Turn any exception of a reward's or metric's own code into a `RunFailed` with the line that raised it.

    If the code ends the process, `vader_ray.running.read_running` names it.

    This includes ``sys.exit`` and what is no ``Exception``. A `UserError`, a `RunFailed` and Ctrl-C, which
    Python raises in the main thread alone, pass.

    Args:
        subject: the reward or metric, for the message.
    """
    try:
        with running(subject):
            yield
    except (UserError, RunFailed, GeneratorExit):
        raise
    except BaseException as error:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and in_main_thread:
            raise
        raise RunFailed(f"{subject} raised {describe(error)} ({_own_line(error)})") from error


def describe(error: BaseException) -> str:
    """Return the class and the message of an error in one line of at most 400 characters."""
    message = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def cause_traceback(error: BaseException) -> str:
    """Return the traceback of an error's cause; empty if it has none."""
    return "".join(traceback.format_exception(error.__cause__)) if error.__cause__ is not None else ""


def _own_line(error: BaseException) -> str:
    """Return file, line and function of the innermost call outside Python's folders of packages.

    If all calls are inside them, as those of an installed plugin are, return the innermost one of all.
    """
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)][1:]
    own = [(frame, line) for frame, line in frames if not _is_installed(frame)]
    frame, line = (own or frames)[-1]
    return f"{frame.f_code.co_filename}:{line} in {frame.f_code.co_name}"


def _is_installed(frame: FrameType) -> bool:
    folders = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return frame.f_code.co_filename.startswith((*folders, "<frozen", "<@beartype"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'hps'? "`` for a name that is close to a known one, else an empty text."""
    if len(name) > _LONGEST_NAME:
        return ""
    nearest = max(known, key=lambda candidate: _similarity(name, candidate), default="")
    return f"did you mean {nearest!r}? " if _similarity(name, nearest) >= _ALIKE else ""


def _similarity(name: str, other: str) -> float:
    """Similarity from 0 to 1 of two names, without parts such as ``eval/reward/`` that both begin with."""
    starts = [match.end() for match in re.finditer("[/:]", name) if other.startswith(name[: match.end()])]
    start = max(starts, default=0)
    return SequenceMatcher(None, name[start:], other[start:]).ratio()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if the message is empty.

    Passwords of URIs are taken out.
    """
    return redact((str(error).strip().splitlines() or [type(error).__name__])[0])


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message: of a remote traceback, the exception itself.

    Passwords of URIs are taken out.
    """
    return redact((str(error).strip().splitlines() or [type(error).__name__])[-1])
