"""URIs whose passwords no file, message or page contains: they stay in the memory of the processes."""

from __future__ import annotations

import re
from typing import Self

HIDDEN = "***"
"""Text in place of a user name with its password, and of the value of a secret option."""

_NAME_BEFORE_HOST = r"[^\s/?#@:\['\"]*:(?!\d{1,5}[/?#])[^\s@'\"]*@"
_USER = re.compile(rf"://(?:{_NAME_BEFORE_HOST})(?:[^\s/?#@'\"]*@)*")
"""User name and password before a host; a password may contain slashes and at signs."""
_HTTP_USER = re.compile(r"(https?)://[^\s/?#'\"]*@", re.IGNORECASE)
"""A user name alone is an access token for some servers."""
_OPTION = re.compile(
    r"([?&;](?:[\w.-]*(?:secret|passw|pwd|token|credential|signature|(?:access|account|api)_?key)[\w.-]*"
    r"|sig|key|odbc_connect)=)[^&;#\s'\"]*",
    re.IGNORECASE,
)
"""Options after a question mark whose values are secrets; ``odbc_connect`` contains a whole connection."""


class Uri(str):
    """A URI whose text has no password: ``str()``, ``repr()`` and format strings show ``***`` for it.

    As a string it is equal to the whole URI. Libraries that open it, and may format it, get `full_uri`.
    """

    __slots__ = ()

    def __new__(cls, uri: str) -> Self:
        return super().__new__(cls, full_uri(uri))

    def __str__(self) -> str:
        return redact(self)

    def __repr__(self) -> str:
        return repr(str(self))

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def full_uri(uri: str) -> str:
    """Return a URI as a plain string with its password, for the library that opens it."""
    return str.__str__(uri)


def redact(text: str) -> str:
    """Return a text without user names, passwords and secret options of the URIs in it."""
    without_users = _HTTP_USER.sub(rf"\1://{HIDDEN}@", _USER.sub(f"://{HIDDEN}@", full_uri(text)))
    return _OPTION.sub(rf"\1{HIDDEN}", without_users)


def has_secret(uri: str) -> bool:
    """Whether a URI contains a password or a secret option."""
    return redact(uri) != full_uri(uri)


def is_redacted(uri: str) -> bool:
    """Whether a URI lacks the password that it had."""
    return f"://{HIDDEN}@" in full_uri(uri) or f"={HIDDEN}" in full_uri(uri)


def without_user(uri: str) -> str:
    """Return a URI without user name and password, as the address of a page."""
    return redact(uri).replace(f"://{HIDDEN}@", "://")
