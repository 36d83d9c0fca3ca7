"""The table of all recipes: from real runs, which are not made again, into the marked part of a page."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import ray
import typer
from PIL import Image

from benchmarks.results import INPUTS, check_inputs, config_of, finished, recipes, run_name
from benchmarks.results_page import (
    Result,
    draw_sheets,
    metrics_table,
    results_figure,
    results_table,
    summary_table,
)
from tests.helpers.recipe import FOUR_PROMPTS, tiny_config, validated_on
from tests.helpers.runs import record
from vader_ray import train
from vader_ray.config import ExperimentConfig, recipe_names
from vader_ray.metrics.core.statistics import crossed_interval
from vader_ray.orchestration.runs.finish import finish_run
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.tracking.server import tracking_uri
from vader_ray.training.resolve import resolve_names


def config_with(weights: Path, folder: Path, seed: int) -> ExperimentConfig:
    config = tiny_config(
        weights,
        num_steps=1,
        videos_per_step=1,
        seed=seed,
        eval_rewards=[{"reward": "colorfulness"}],
        guard={"action": "none"},
        prompts=validated_on(FOUR_PROMPTS[:1]) | {"test": FOUR_PROMPTS[1:]},
        evaluation={"every": 1, "num_videos": 1, "num_shown": 1},
        tracking={"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    )
    return resolve_names(config)  # as a run does before it compares its recipe


@pytest.fixture(scope="module")
def output(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of a recipe with two seeds."""
    folder = tmp_path_factory.mktemp("results")
    for seed in (0, 1):
        config = config_with(tiny_pipeline_folder, folder, seed)
        record(config, folder, run_name("tiny", seed))
        made = RunDir(folder / "runs" / run_name("tiny", seed))
        finish_run(config, made, made.read_mlflow_run(tracking_uri(config.tracking.uri)))
    return folder / "runs"


@pytest.fixture(scope="module")
def result(output: Path) -> Result:
    (found,) = finished(["absent", "tiny"], 3, output)
    return found


def test_all_packaged_recipes_of_the_embedded_models_are_found() -> None:
    found = recipes()
    assert found == sorted(name for name in recipe_names() if name.startswith("shapes_"))
    for name in found:
        assert config_of(name, 3, Path("out"), short=False).seed == 3
        short = config_of(name, 0, Path("out"), short=True)
        assert (short.num_steps, len(short.prompts.test or ())) == (2, 3)


@pytest.mark.slow
def test_gains_are_over_seeds_and_prompts(result: Result) -> None:
    summaries = [summary for _, summary in result.runs]
    assert [each.path.name for each in summaries] == ["tiny-seed-0", "tiny-seed-1"]
    assert (result.trained, result.heldout) == (["eval/reward/brightness"], ["eval/reward/colorfulness"])
    gain = result.gain("eval/reward/brightness")
    assert gain.mean == pytest.approx(
        fmean(each.metrics_test["test/gain/brightness"] for each in summaries), abs=1e-9
    )
    values = np.array([each.test_prompt_gains["eval/reward/brightness"] for each in summaries])
    assert values.shape == (2, 3)
    assert (gain.low, gain.high) == crossed_interval(values)
    header, row = results_table([result])
    cells = dict(zip(header, row, strict=True))
    assert (cells["recipe"], cells["seeds"]) == ("`tiny`", "2")
    before = fmean(each.metrics_test["test/base/reward/brightness"] for each in summaries)
    assert cells["trained reward"].startswith(f"brightness {before:.3f} → ")
    assert summary_table([result])[1][2:] == [cells["trained reward"], cells["held-out rewards"]]
    header, row = metrics_table([result])
    cells = dict(zip(header, row, strict=True))
    before = fmean(each.metrics_test["test/base/motion"] for each in summaries)
    assert cells["motion"].startswith(f"{before:.2f} → ")


@pytest.mark.slow
def test_a_finished_run_is_not_made_again(tiny_pipeline_folder: Path, output: Path) -> None:
    config = config_with(tiny_pipeline_folder, output.parent, 1)
    again = train(config, run_name=run_name("tiny", 1), resume=True, runs_dir=output)
    known = RunDir(output / run_name("tiny", 1)).read_summary()
    assert known is not None
    assert again.model_dump_json() == known.model_dump_json()  # as text, since NaN differs from itself
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_sheet_has_the_videos_before_and_after(result: Result, tmp_path: Path) -> None:
    (path,) = draw_sheets([result], tmp_path)
    with Image.open(path) as sheet:
        assert sheet.height > 300, "a row before and one after"
    assert results_figure([result], tmp_path / "gains.png").stat().st_size > 10_000


def test_a_folder_with_runs_of_other_models_is_refused(tmp_path: Path) -> None:
    known = check_inputs(tmp_path / "new")
    assert check_inputs(tmp_path / "new") == known
    file = tmp_path / "new" / INPUTS
    file.write_text(json.dumps(known | {"models": "other"}))
    with pytest.raises(typer.BadParameter, match="other models"):
        check_inputs(tmp_path / "new")
