"""The page of videos before and after: complete in one file, and in a browser each pair plays in step."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.browser import needs_chromium, open_browser, screenshot
from tests.helpers.video_files import decode
from tests.training.test_media import GREEN, RED, video
from vader_ray.training.gallery import gallery_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BEFORE = [video("a <b> bar", 0.2, RED), video("another bar", 0.3, RED)]
AFTER = [video("a <b> bar", 0.3, GREEN), video("another bar", 0.25, GREEN)]


def _page() -> str:
    return gallery_html(BEFORE, AFTER, title="before & after", frames_per_second=8)


def test_gallery_is_complete_in_itself(tmp_path: Path) -> None:
    page = _page()
    videos = re.findall(r'src="data:video/mp4;base64,([^"]+)"', page)
    assert len(videos) == 4
    (tmp_path / "video.mp4").write_bytes(base64.b64decode(videos[0]))
    assert len(decode(tmp_path / "video.mp4")[1]) == 3 * 12, "a clip of 1.5 s plays three times"
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "a &lt;b&gt; bar" in page
    assert "before &amp; after" in page
    for gain in ('<span class="rise">+0.100</span>', '<span class="fall">−0.050</span>'):
        assert gain in page
    assert '<td class="rise">+0.025</td>' in page, "mean of +0.1 and −0.05"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as started:
        yield started


@needs_chromium
@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("motion", "plays"), [("no-preference", True), ("reduce", False)])
def test_a_pair_plays_in_step_unless_motion_is_unwanted(
    browser: Browser, tmp_path: Path, motion: Any, plays: bool
) -> None:
    (tmp_path / "gallery.html").write_text(_page(), encoding="utf-8")
    page = browser.new_page(
        viewport={"width": 390, "height": 900}, reduced_motion=motion, color_scheme="dark"
    )
    page.goto((tmp_path / "gallery.html").as_uri())
    page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
    times = (
        "[...document.querySelectorAll('.pair')[0].querySelectorAll('video')].map(video => video.currentTime)"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
    if plays:
        page.wait_for_function(f"{times}[0] > 0.5")
        page.wait_for_timeout(5000)  # over the end of the video: both begin again together
        first, second = page.evaluate(times)
        assert abs(first - second) < 0.15
        late = "document.querySelectorAll('video')[1].dispatchEvent(new Event('pause'))"
        page.evaluate(late)  # as after a pause and a play at once, when the page's layout changes
        assert page.evaluate("[...document.querySelectorAll('video')].every(video => !video.paused)")
        page.evaluate("document.querySelectorAll('video')[1].pause()")
        page.wait_for_function("document.querySelectorAll('video')[0].paused")
    else:
        page.wait_for_timeout(500)
        assert page.evaluate(times) == [0, 0]
        page.evaluate("document.querySelectorAll('video')[0].play()")
        page.wait_for_function("!document.querySelectorAll('video')[1].paused")
    screenshot(page, f"gallery-{motion}", tmp_path)
    page.close()
