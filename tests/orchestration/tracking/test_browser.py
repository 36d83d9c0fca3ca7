"""What a person sees in MLflow: a small run, logged through our tracker, opened in a real browser.

``VADER_RAY_SCREENSHOTS=folder`` keeps the screenshots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.helpers.browser import assert_shown, needs_chromium, open_browser, screenshot
from tests.helpers.mlflow_server import server
from tests.helpers.network import free_port
from tests.helpers.waiting import wait_until
from vader_ray import config as settings
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import MlflowRun
from vader_ray.orchestration.tracking.pages import charts_page, run_page
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.training import media
from vader_ray.training.events import Video
from vader_ray.training.gallery import gallery_html

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    needs_chromium,
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MlflowRun:
    """Twelve steps with rising reward, two evaluations with images and videos, and a gallery."""
    folder = tmp_path_factory.mktemp("browser")
    document = {
        "name": "browser",
        "description": "A run of the **browser test**.",
        "num_steps": 12,
        "videos_per_step": 2,
        "model": {"family": "modelscope", "weights": "owner/name"},
        "prompts": {"train": ["a"], "validation": ["b"]},
        "sampling": {"num_frames": 8, "height": 32, "width": 32},
        "rewards": [{"reward": "hps"}],
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    run = mlflow_runs.start_run(settings.validate(document), "browser", "name: browser\n")
    tracker = Tracker(run.uri, run.run_id, folder, system_metrics=False)
    for step in range(13):
        reward = 0.25 + 0.05 * (1 - math.exp(-step / 4))
        tracker.log(
            step,
            {
                "cost/reward_queries": 2.0 * step,
                "train/reward_mean": reward,
                "train/reward/hps": reward,
                "eval/reward/hps": reward,
            },
        )
    sides = {
        step: [moving_square(prompt, step) for prompt in ("a red square", "a green square")]
        for step in (0, 12)
    }
    for step, videos in sides.items():
        tracker.log_image("eval/videos", step, media.contact_sheet(videos, title=f"step {step}"))
        media.write_mp4(videos[0].frames, folder / f"step-{step:04d}.mp4", 8)
        tracker.log_file(folder / f"step-{step:04d}.mp4", "videos")
    (folder / "gallery.html").write_text(
        gallery_html(sides[0], sides[12], title="Before and after", frames_per_second=8)
    )
    tracker.log_file(folder / "gallery.html")
    assert tracker.close() is None
    assert mlflow_runs.end_run(run.uri, run.run_id, "FINISHED", folder=folder) is None
    return run


def moving_square(prompt: str, step: int) -> Video:
    frames = np.full((8, 32, 32, 3), 40, np.uint8)
    for index, frame in enumerate(frames):
        frame[8 + step : 16 + step, 3 * index : 3 * index + 8] = (
            (220, 60, 50) if "red" in prompt else (60, 190, 90)
        )
    return Video(prompt, 1, {"hps": 0.25 + step / 100, "aesthetic": 5.0}, frames)


@pytest.fixture(scope="module")
def address(run: MlflowRun) -> Iterator[str]:
    """`mlflow ui` on the run's database, as a user starts it."""
    with server(run.uri, free_port(), command="ui") as address:
        yield address


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(30_000)
        yield page


def test_experiment_opens_on_charts_of_model_training_rewards_first_and_cost_last(
    page: Page, address: str, run: MlflowRun, tmp_path: Path
) -> None:
    page.goto("about:blank")
    page.goto(charts_page(address, run.experiment_id))
    assert_shown(page.get_by_role("heading", name="Runs", exact=True), "the heading")
    assert_shown(page.locator(".js-plotly-plot path.js-line").first, "a curve", state="attached")
    screenshot(page, "charts", tmp_path)
    assert page.get_by_text("Judges", exact=True).count() == 0  # an entry of the GenAI pages' menu
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header").all_inner_texts()
    sections = [header.partition("\n")[0] for header in headers]
    assert sections[:3] == ["eval/reward", "train/reward", "train"]
    assert sections[-1] == "cost"


def open_run(page: Page, address: str, run: MlflowRun, tab: str) -> None:
    page.goto("about:blank")  # else only the fragment changes, and the page stays
    page.goto(run_page(address, run.experiment_id, run.run_id, tab))


def test_overview_shows_recipe_and_description(
    page: Page, address: str, run: MlflowRun, tmp_path: Path
) -> None:
    open_run(page, address, run, "")
    assert_shown(page.get_by_text("browser test").first, "the recipe's description")
    assert_shown(page.get_by_text("sampling.num_frames").first, "a parameter")
    screenshot(page, "overview", tmp_path)


def test_metric_charts_and_image_cards_appear(
    page: Page, address: str, run: MlflowRun, tmp_path: Path
) -> None:
    open_run(page, address, run, "model-metrics")
    page.get_by_placeholder("Search metric charts").fill("train|videos")
    assert_shown(page.get_by_text("reward_mean").first, "the chart's title")
    assert_shown(page.locator(".js-plotly-plot path.js-line").first, "the chart's curve", state="attached")
    card = page.locator("img[src*='get-artifact']").first
    assert_shown(card, "an image card")
    screenshot(page, "metrics", tmp_path)
    card.click()
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 1000)")
    screenshot(page, "image", tmp_path)


def test_mp4_plays(page: Page, address: str, run: MlflowRun, tmp_path: Path) -> None:
    open_run(page, address, run, "artifacts/videos/step-0012.mp4")
    video = page.locator("video")
    video.wait_for()
    video.evaluate("video => { video.loop = true; return video.play() }")
    page.wait_for_function("document.querySelector('video').currentTime > 0")
    screenshot(page, "video", tmp_path)
    state = video.evaluate("video => [video.videoWidth, video.duration]")
    assert state == [256, 1.0]


def test_gallery_plays_by_itself(page: Page, address: str, run: MlflowRun, tmp_path: Path) -> None:
    open_run(page, address, run, "artifacts/gallery.html")
    video = page.frame_locator("iframe").locator("video").first
    assert_shown(video, "the gallery's first video")
    wait_until(lambda: video.evaluate("video => !video.paused && video.currentTime > 0"))
    screenshot(page, "gallery", tmp_path)
