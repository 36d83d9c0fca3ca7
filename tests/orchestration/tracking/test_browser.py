"""What a person sees in MLflow: a small run, logged through our tracker, opened in a real browser.

``VADER_RAY_SCREENSHOTS=folder`` keeps the screenshots.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vader_ray import config as settings
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.pages import charts_page, run_page
from vader_ray.orchestration.tracking.tracker import Tracker
from vader_ray.training import media
from vader_ray.training.events import Video

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]
FLAGS += [
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--autoplay-policy=no-user-gesture-required",
]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mlflow_runs.MlflowRun:
    """Twelve steps with rising reward, two evaluations with images and videos, and a gallery."""
    folder = tmp_path_factory.mktemp("browser")
    document = {
        "name": "browser",
        "description": "A run of the **browser test**.",
        "num_steps": 12,
        "videos_per_step": 2,
        "model": {"family": "modelscope", "weights": "owner/name"},
        "prompts": {"train": ["a"], "heldout": ["b"]},
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
        media.gallery_html(sides[0], sides[12], title="Before and after", frames_per_second=8)
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
def address(run: mlflow_runs.MlflowRun) -> Iterator[str]:
    """`mlflow ui` on the run's database, as a user starts it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        run.uri,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=environment
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing; pip install playwright"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(30_000)
        yield page
        browser.close()


def keep(page: Page, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("VADER_RAY_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")


def test_experiment_opens_on_charts_of_model_training_rewards_first_and_cost_last(
    page: Page, address: str, run: mlflow_runs.MlflowRun, tmp_path: Path
) -> None:
    page.goto("about:blank")
    page.goto(charts_page(address, run.experiment_id))
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    page.locator(".js-plotly-plot path.js-line").first.wait_for(state="attached")
    keep(page, "charts", tmp_path)
    assert page.get_by_text("Judges", exact=True).count() == 0  # an entry of the GenAI pages' menu
    headers = page.get_by_test_id("experiment-view-compare-runs-section-header").all_inner_texts()
    sections = [header.partition("\n")[0] for header in headers]
    assert sections[:3] == ["eval/reward", "train/reward", "train"]
    assert sections[-1] == "cost"


def open_run(page: Page, address: str, run: mlflow_runs.MlflowRun, tab: str) -> None:
    page.goto("about:blank")  # else only the fragment changes, and the page stays
    page.goto(run_page(address, run.experiment_id, run.run_id, tab))


def test_overview_shows_recipe_and_description(
    page: Page, address: str, run: mlflow_runs.MlflowRun, tmp_path: Path
) -> None:
    open_run(page, address, run, "")
    page.get_by_text("browser test").first.wait_for()
    page.get_by_text("sampling.num_frames").first.wait_for()
    keep(page, "overview", tmp_path)


def test_metric_charts_and_image_cards_appear(
    page: Page, address: str, run: mlflow_runs.MlflowRun, tmp_path: Path
) -> None:
    open_run(page, address, run, "model-metrics")
    page.get_by_placeholder("Search metric charts").fill("train|videos")
    page.get_by_text("reward_mean").first.wait_for()
    page.locator(".js-plotly-plot path.js-line").first.wait_for(state="attached")
    card = page.locator("img[src*='get-artifact']").first
    card.wait_for()
    keep(page, "metrics", tmp_path)
    card.click()
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 1000)")
    page.wait_for_timeout(1000)  # it flies in
    keep(page, "image", tmp_path)


def test_mp4_plays(page: Page, address: str, run: mlflow_runs.MlflowRun, tmp_path: Path) -> None:
    open_run(page, address, run, "artifacts/videos/step-0012.mp4")
    video = page.locator("video")
    video.wait_for()
    video.evaluate("video => { video.loop = true; return video.play() }")
    page.wait_for_timeout(700)
    keep(page, "video", tmp_path)
    state = video.evaluate("video => [video.readyState, video.currentTime, video.videoWidth, video.duration]")
    assert state[0] >= 2
    assert state[1] > 0
    assert state[2:] == [256, 1.0]


def test_gallery_plays_by_itself(
    page: Page, address: str, run: mlflow_runs.MlflowRun, tmp_path: Path
) -> None:
    open_run(page, address, run, "artifacts/gallery.html")
    page.locator("iframe").first.wait_for()
    video = page.frame_locator("iframe").locator("video").first
    video.wait_for()
    page.wait_for_timeout(1000)
    keep(page, "gallery", tmp_path)
    assert video.evaluate("video => video.readyState >= 2 && !video.paused && video.currentTime > 0")
