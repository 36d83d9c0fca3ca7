"""HTML pages in one file: templates, their common style, and the script that plays videos in step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

_HERE = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """Render a page.

    Besides its values, a template has ``text(FILE)``, the text of a file of its own folder or of this one,
    and ``number``, ``signed`` and ``sign`` for scores and gains.
    """
    folders = [template.parent, _HERE]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip

    def text(name: str) -> Markup:
        path = next(folder / name for folder in folders if (folder / name).is_file())
        return Markup(path.read_text(encoding="utf-8"))  # noqa: S704  a file of this package

    helpers = {"text": text, "number": number, "signed": signed, "sign": sign}
    return environment.get_template(template.name).render(**helpers, **values)


def number(value: float) -> str:
    """Write a score with three decimals; a large one with fewer."""
    return f"{value:.{_decimals(value)}f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a gain with its sign and three decimals; a large one with fewer, a small one with more."""
    is_small = 0 < abs(value) < 0.0005
    return (f"{value:+.1g}" if is_small else f"{value:+.{_decimals(value)}f}").replace("-", "−")


def _decimals(value: float) -> int:
    return 3 if abs(value) < 100 else 1 if abs(value) < 1000 else 0


def sign(gain: float) -> str:
    """Return the class of a gain in the style sheet: ``rise``, ``fall`` or ``soft``."""
    return "rise" if gain > 0 else "fall" if gain < 0 else "soft"
