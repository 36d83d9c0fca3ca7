"""Headless Chromium for the tests that look at pages.

``VADER_RAY_SCREENSHOTS=folder`` keeps the screenshots.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
)
needs_chromium = pytest.mark.skipif(
    not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing; apt-get install chromium"
)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start Chromium; skip the test where playwright is not installed."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing; pip install playwright"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


def screenshot(page: Page, name: str, folder: Path) -> None:
    """Save what the page shows, in `folder` or where ``VADER_RAY_SCREENSHOTS`` says."""
    folder = Path(os.environ.get("VADER_RAY_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def assert_shown(locator: Locator, name: str, *, state: Literal["visible", "attached"] = "visible") -> None:
    """Fail with the element's name unless it appears within half a minute; a curve without area is only
    attached."""
    from playwright.sync_api import expect

    expect(locator, f"{name} does not appear").to_be_attached(timeout=30_000)
    if state == "visible":
        expect(locator, f"{name} is hidden").to_be_visible(timeout=30_000)
