"""Placeholders in the files of ``clusters/``, such as ``<BUCKET>``, in place of values of the user's."""

from __future__ import annotations

import re

PLACEHOLDER = re.compile(r"<[A-Z][A-Z_]*>")
"""Name in a cluster file in place of a value of the user's."""


def find_placeholders(text: str) -> dict[str, list[int]]:
    """Return the numbers of the lines of each placeholder outside comments.

    Slurm directives have the form of comments and are included.
    """
    lines: dict[str, list[int]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        code = line if line.startswith("#SBATCH") else re.sub(r"(^|\s)#.*", "", line)
        for name in dict.fromkeys(PLACEHOLDER.findall(code)):
            lines.setdefault(name, []).append(number)
    return lines
