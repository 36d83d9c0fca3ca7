"""The two errors that end a command with a message; any other exception is a bug and has a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from vader_ray.uris import redact


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'hps'? "`` for a name that is close to a known one, else an empty text."""
    nearest = get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"did you mean {nearest[0]!r}? " if nearest else ""


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


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn the failure to write to a path that the user chose into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); choose another path"
        ) from None
