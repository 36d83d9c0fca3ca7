"""The description of the package: README.md, whose links lead from PyPI into the repository.

Everything else is in pyproject.toml. The environment variable ``VADER_RAY_REPOSITORY`` is the address of the
repository on GitHub, ``https://github.com/OWNER/NAME``; without it, links to files become plain text, as they
would lead nowhere.
"""

import os
import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)#\s]*)(#[^)\s]*)?\)")
ROOT = Path(__file__).parent


def describe(readme: str, repository: str) -> str:
    """Return the README with absolute links, or without links to files if `repository` is empty."""

    def absolute(link: re.Match[str]) -> str:
        picture, text, path, part = link[1], link[2], link[3], link[4] or ""
        if not repository:
            return "" if picture else text
        kind = "raw" if picture else "tree" if path.endswith("/") else "blob"
        return f"{picture}[{text}]({repository}/{kind}/HEAD/{path}{part})"

    return LINK.sub(absolute, readme)


repository = os.environ.get("VADER_RAY_REPOSITORY", "").rstrip("/")
setup(
    long_description=describe((ROOT / "README.md").read_text(encoding="utf-8"), repository),
    long_description_content_type="text/markdown",
    project_urls={"Repository": repository} if repository else {},
)
