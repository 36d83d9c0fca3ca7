"""Reports: real runs in a real MLflow store, the page in a real browser, and what is said when there is
nothing to report.

``VADER_RAY_SCREENSHOTS=folder`` keeps the screenshots.
"""

from __future__ import annotations

import re
import sqlite3
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.helpers.browser import needs_chromium, open_browser, screenshot
from tests.helpers.network import free_port
from tests.helpers.recipe import FIRING_GUARD, FOUR_PROMPTS, tiny_config, validated_on
from tests.helpers.runs import record
from vader_ray.cli import app
from vader_ray.errors import UserError
from vader_ray.orchestration.reporting.figures import PERCENT, Series, curves, write
from vader_ray.orchestration.reporting.html_report import write_report
from vader_ray.orchestration.reporting.past_runs import find_runs
from vader_ray.orchestration.reporting.report_figures import MAX_GROUPS, RunGroup, best_groups, grouped
from vader_ray.orchestration.tracking import mlflow_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BOTH = [{"reward": "brightness"}, {"reward": "sharpness"}]


@pytest.fixture(scope="module")
def store(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two learning rates with two seeds each, all recorded as in a run, and one run that failed before its
    first step."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    for rate in (0.01, 0.05):
        for seed in (0, 1):
            changes: dict[str, Any] = {
                "num_steps": 2, "videos_per_step": 2, "seed": seed, "rewards": BOTH, "guard": FIRING_GUARD,
                "prompts": validated_on(FOUR_PROMPTS),
                "eval_rewards": [{"reward": "colorfulness"}], "optimizer": {"learning_rate": rate},
                "evaluation": {"every": 1, "num_videos": 4, "num_shown": 2},
                "tracking": {"uri": uri, "experiment": "rates", "system_metrics": False},
            }  # fmt: skip
            config = tiny_config(tiny_pipeline_folder, **changes)
            record(config, folder, f"rate-{rate}-seed-{seed}")
    broken = mlflow_runs.start_run(config, "broken", "name: broken\n")
    mlflow_runs.end_run(broken.uri, broken.run_id, "FAILED", folder=folder, tags={"status": "failed"})
    return uri


@pytest.fixture(scope="module")
def report(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(["rates"], tmp_path_factory.mktemp("report") / "report.html", store)


@pytest.mark.slow
def test_runs_are_found_by_experiment_name_folder_and_id(store: str) -> None:
    runs = find_runs(store, ["rates"])
    assert [run.name for run in runs] == [
        "rate-0.01-seed-0",
        "rate-0.01-seed-1",
        "rate-0.05-seed-0",
        "rate-0.05-seed-1",
        "broken",
    ]
    assert [run.status for run in runs] == ["completed"] * 4 + ["failed"]
    for target in ("rate-0.05-seed-1", "some/where/rate-0.05-seed-1/", runs[3].run_id):
        assert [run.run_id for run in find_runs(store, [target])] == [runs[3].run_id]
    assert len(find_runs(store, ["rate-0.01-seed-0", "rate-0.01-seed-0", "rates"])) == 5
    assert sorted(runs[0].history["eval/objective"]) == [0, 1, 2]


@pytest.mark.slow
def test_seeds_of_equal_settings_are_one_group(store: str) -> None:
    groups = grouped([run for run in find_runs(store, ["rates"]) if run.status == "completed"])
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("learning_rate=0.01", 2),
        ("learning_rate=0.05", 2),
    ]
    steps = [int(run.last("eval/best_step") or 0) for run in groups[0].runs]
    kept = [run.history["eval/motion"][step] for run, step in zip(groups[0].runs, steps, strict=True)]
    assert groups[0].best("eval/motion") == pytest.approx(sum(kept) / 2)


@pytest.mark.slow
def test_of_many_groups_those_with_the_highest_objective_have_curves(store: str) -> None:
    run = find_runs(store, ["rate-0.05-seed-0"])[0]
    objectives = [3.0, float("nan"), 1.0, *(10.0 + index for index in range(MAX_GROUPS - 1))]
    groups = [RunGroup(str(value), [replace(run, latest={"eval/objective": value})]) for value in objectives]
    assert best_groups(groups) == [groups[0], *groups[3:]]
    assert best_groups(groups[:3]) == groups[:3]


@pytest.mark.slow
def test_a_history_is_read_when_it_is_used(store: str, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    copy.write_bytes(Path(store.removeprefix("sqlite:///")).read_bytes())
    run = find_runs(f"sqlite:///{copy}", ["rate-0.05-seed-0"])[0]
    assert run.last("eval/objective") is not None
    with sqlite3.connect(copy) as database:
        database.execute("UPDATE metrics SET value = 7 WHERE key = 'eval/objective' AND step = 0")
    assert run.first("eval/objective") == 7


@pytest.mark.slow
def test_a_run_that_its_guard_stopped_is_one_of_the_trade_offs(store: str) -> None:
    run = find_runs(store, ["rate-0.05-seed-0"])[0]
    stopped = replace(run, status="stopped")
    assert RunGroup("", [run, replace(stopped, settings=run.settings | {"guard.action": "stop"})]).is_eligible
    assert not RunGroup("", [run, stopped]).is_eligible, "its guard only flags: the scheduler stopped it"


@pytest.mark.slow
def test_the_page_holds_every_run_with_what_mlflow_has_of_it(store: str, report: Path) -> None:
    page = report.read_text()
    for run in find_runs(store, ["rates"]):
        assert run.name in page
        assert run.run_id in page
    one = find_runs(store, ["rate-0.05-seed-0"])[0]
    before, after = one.first("eval/reward/brightness"), one.last("eval/reward/brightness")
    assert f"{before:.4g} → {after:.4g}" in page
    assert "colorfulness (held out)" in page
    assert "eval/distance_to_base rose to" in page
    assert "a white circle moving left" in page
    assert f"mlflow artifacts download -r {find_runs(store, ['rates'])[0].run_id} -a recipe.yaml" in page
    assert "1 failed" in page
    assert f"/runs/{one.run_id}/?" in page, "a link to its page in MLflow"
    shown = one.videos(2, 1)[0].scores["brightness"]
    assert f"brightness {shown:.3f}" in page, "scores stand under the videos"


@pytest.mark.slow
def test_figures_lie_beside_the_page_and_the_page_asks_for_nothing_else(report: Path) -> None:
    folder = report.with_name("report_figures")
    names = {path.stem for path in folder.glob("*.svg")}
    wanted = {"reward-brightness-reward_queries", "reward-colorfulness-denoiser_calls",
              "reward-sharpness-train_seconds",
              "distance_to_base-reward_queries", "trade-off-brightness-sharpness", "cross-rewards",
              "effect-optimizer.learning_rate-brightness"}  # fmt: skip
    assert wanted <= names == {path.stem for path in folder.glob("*.png")}
    for path in folder.glob("*.svg"):
        ElementTree.parse(path)
    page = report.read_text()
    assert page.count("<svg") == len(names)
    assert not re.search(r'src="(?!data:)', page)
    links = re.findall(r'href="([^#][^"]*)"', page)
    assert all(link.startswith(("data:", "http://127.0.0.1:5000/#/experiments/")) for link in links)
    assert len(page) < 3_000_000
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_a_percent_axis_ends_at_100() -> None:
    figure = curves(
        [Series("one", [0, 1], [97.0, 99.0])], title="t", x_label="x", y_label="%", y_range=PERCENT
    )
    assert figure.axes[0].get_ylim() == (0, 100)


def test_equal_figures_are_equal_files_with_the_numbers_in_them(tmp_path: Path) -> None:
    series = [
        Series("one", [0, 1, 2], [0.0, 1.0, 4.0], [0, 0.5, 3], [0, 1.5, 5], [2]),
        Series("two", [0, 2], [1.0, 2.0]),
    ]
    for name in ("a", "b"):
        write(curves(series, title="t", x_label="x", y_label="y"), tmp_path / name / "figure")
    for kind in ("svg", "png"):
        assert (tmp_path / "a" / f"figure.{kind}").read_bytes() == (
            tmp_path / "b" / f"figure.{kind}"
        ).read_bytes()
    drawn = np.asarray(Image.open(tmp_path / "a" / "figure.png").convert("RGB")).reshape(-1, 3)
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= {tuple(colour) for colour in drawn[::3].tolist()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["nothing"], r"has no experiment, sweep or run 'nothing'; its experiments are 'rates'"),
        (["broken"], r"none of the 1 runs of broken has metrics of an evaluation"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(
    store: str, tmp_path: Path, targets: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        write_report(targets, tmp_path / "report.html", store)
    assert "\n" not in str(error.value)


def test_a_missing_store_and_an_unreachable_server_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no MLflow database .*/mlflow.db; give --tracking-uri"):
        write_report(["rates"], tmp_path / "report.html", f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()
    port = free_port()
    done = CliRunner().invoke(app, ["report", "rates", "--tracking-uri", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 2
    assert f"MLflow at http://127.0.0.1:{port} does not work" in done.output


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as started:
        yield started


@needs_chromium
@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (390, "dark")])
def test_the_page_fits_plays_and_asks_for_nothing(
    browser: Browser, report: Path, width: int, scheme: Any, tmp_path: Path
) -> None:
    page: Page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, errors = list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(report.as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.querySelectorAll('.box')].every(box => box.clientWidth < innerWidth)")
    video = page.locator("video").first
    video.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('video').currentTime > 0")
    # two prompts: two seeds of the base model, two steps of four runs
    assert page.locator("video").count() == 2 * (2 + 2 * 4)
    assert page.locator("video:visible").count() == 2 * (2 + 4)
    page.locator("#step").fill("0")
    steps = page.locator(".videos figure:visible").evaluate_all("all => all.map(each => each.dataset.step)")
    assert sorted(steps) == ["0"] * 4 + ["1"] * 8
    plot = page.locator("figure.curves .u-over").first
    plot.scroll_into_view_if_needed()
    plot.hover()
    values = page.locator("figure.curves").first.locator(".u-legend .u-value").all_inner_texts()
    assert any(re.fullmatch(r"0\.\d+", value) for value in values), "the values below the pointer"
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert [url for url in asked if url.startswith("file:")] == [report.as_uri()]
    assert errors == []
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=tmp_path / "whole.png", full_page=True)
    screenshot(page, f"report-{width}-{scheme}", tmp_path)
    page.close()


@needs_chromium
@pytest.mark.browser
@pytest.mark.slow
def test_on_paper_stills_stand_for_videos(browser: Browser, report: Path) -> None:
    page = browser.new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert not page.locator("video").first.is_visible()
    strip = page.locator("img.strip").first
    assert strip.is_visible()
    assert strip.evaluate("image => image.naturalWidth > 2 * image.naturalHeight")
    assert not page.locator(".chart").first.is_visible()
    assert page.locator(".still svg").first.is_visible()
    assert page.locator("table.upright").first.is_visible(), "tables that fit on paper"
    page.close()
