"""Training with several workers for each video: the run of one worker, resumed bit for bit, as counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.families import CASES, DEEP_WAN, save
from tests.helpers.recipe import tiny_config, tiny_document
from tests.helpers.sharded import Trained, train_sharded
from tests.helpers.video_workers import peak_of_a_step
from tests.helpers.workers import run_workers
from vader_ray.config import RuntimeConfig, validate
from vader_ray.errors import UserError
from vader_ray.preflight.estimate import estimate_step
from vader_ray.preflight.memory_report import memory_report
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.inference import evaluate_adapter
from vader_ray.training.resolve import resolve_names

SIZE = {"num_frames": 9, "height": 32, "width": 16, "num_inference_steps": 3, "guidance_scale": 3.0}
LEARNING_RATE = 0.0005
"""AdamW divides a gradient by its size: of one near zero, the rounding errors of the sums become a part of
the learning rate."""


def _document(weights: Path, num_workers: int, runtime: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return (
        tiny_document(
            weights,
            num_steps=2,
            videos_per_step=2,
            model={"family": "wan", "weights": str(weights)},
            sampling=SIZE | {"truncation": "random", "truncation_depth": 2},
            evaluation={"every": 2, "num_videos": 3, "num_shown": 1},
            optimizer={"learning_rate": LEARNING_RATE},
            checkpoint={"every": 1},
            runtime={"num_workers": num_workers} | runtime,
        )
        | changes
    )


def _train(
    weights: Path, folder: Path, num_workers: int, runtime: dict[str, Any], resume_from: Path | None = None
) -> list[Trained]:
    (folder / "meetings").mkdir(parents=True)
    document = _document(weights, num_workers, runtime)
    return run_workers(train_sharded, num_workers, folder / "meetings", document, folder, resume_from)


def _check_run(trained: list[Trained], expected: Trained) -> None:
    """Compare a run with that of one worker, up to the order of sums; the costs are the same."""
    for worker in trained:
        for one, other in zip(worker.adapter, expected.adapter, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert len(worker.metrics) == len(expected.metrics)
        for name in ("train/reward_mean", "train/grad_norm", "eval/objective", "eval/diversity"):
            values = [each.metrics[-1][name] for each in (worker, expected)]
            assert values[0] == pytest.approx(values[1], abs=1e-5)
        for name in ("cost/denoiser_calls", "cost/reward_queries"):
            assert worker.metrics[-1][name] == expected.metrics[-1][name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_workers", "runtime"),
    [
        (2, {"guidance_parallel": True}),
        (4, {"context_parallel": 2}),  # two groups of two
        pytest.param(2, {"context_parallel": 2}, marks=pytest.mark.chaos),
        pytest.param(4, {"context_parallel": 2, "guidance_parallel": True}, marks=pytest.mark.chaos),
        pytest.param(4, {"context_parallel": 2, "shard": 4}, marks=pytest.mark.chaos),
        pytest.param(2, {"context_parallel": 2, "shard": 2}, marks=pytest.mark.chaos),
    ],
)
def test_a_run_is_that_of_one_worker_and_continues_bit_for_bit(
    num_workers: int, runtime: dict[str, Any], tmp_path: Path
) -> None:
    weights = save(CASES["wan"], tmp_path / "pipeline")
    alone = train_sharded(WorkerGroup(), _document(weights, 1, {}), tmp_path / "alone")
    straight = _train(weights, tmp_path / "straight", num_workers, runtime)
    _check_run(straight, alone)
    resumed = _train(weights, tmp_path / "resumed", num_workers, runtime, tmp_path / "straight" / "1")
    assert all(map(torch.equal, straight[0].adapter, resumed[-1].adapter))
    last = tmp_path / "straight" / "2" / "adapter"
    config = validate(_document(weights, num_workers, runtime))
    expected = pytest.approx(straight[0].metrics[-1]["eval/objective"], abs=1e-6)
    assert evaluate_adapter(config, last)["eval/objective"] == expected  # in this process alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "divided",
    [{"context_parallel": 2}, pytest.param({"guidance_parallel": True}, marks=pytest.mark.chaos)],
)
def test_the_peak_of_a_worker_falls_as_counted(divided: dict[str, Any], tmp_path: Path) -> None:
    """The activations of the denoiser are most of the peak, and half of them are on each worker."""
    weights, settings = save(DEEP_WAN, tmp_path / "pipeline"), {"decode_chunk_size": 1}
    large = SIZE | {"num_frames": 33, "height": 64, "width": 64, "recompute": False}
    one_frame = [{"reward": "brightness", "frames": "first:1"}]
    changes: dict[str, Any] = {"sampling": large, "rewards": one_frame, "videos_per_step": 1}
    alone = _document(weights, 1, settings, **changes)
    measured = peak_of_a_step(WorkerGroup(), alone)
    counted = estimate_step(validate(alone)).step_bytes
    assert counted == pytest.approx(measured, rel=0.1)
    together = _document(weights, 2, settings | divided, **changes)
    share = estimate_step(validate(together)).step_bytes
    (tmp_path / "meetings").mkdir()
    for peak in run_workers(peak_of_a_step, 2, tmp_path / "meetings", together):
        assert share == pytest.approx(peak, rel=0.1)
        assert counted - share == pytest.approx(measured - peak, rel=0.1)
        assert peak < 0.75 * measured


@pytest.mark.chaos
def test_the_counted_work_is_that_of_one_of_the_workers(tmp_path: Path) -> None:
    """With two gradient steps, between which the gradient of the latents is summed."""
    weights = save(CASES["wan"], tmp_path / "pipeline")
    alone = estimate_step(validate(_document(weights, 1, {})))
    config = validate(_document(weights, 4, {"context_parallel": 2, "guidance_parallel": True}))
    together = estimate_step(config)
    assert together.denoiser_calls == alone.denoiser_calls
    assert together.flops < 0.9 * alone.flops  # most are the decoder's, which are not divided
    report = memory_report(config, ["rtx4090"])
    assert any("4 workers compute each video together" in str(part) for part in report)


def test_what_does_not_fit_is_refused(tiny_pipeline_folder: Path) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            resolve_names(tiny_config(tiny_pipeline_folder, **changes))
        return str(error.value)

    two = {"num_workers": 2, "context_parallel": 2}
    assert "num_workers=3 is not a multiple of 2" in refused(runtime=two | {"num_workers": 3})
    assert "leave min_workers out" in refused(runtime=two | {"min_workers": 2})
    assert "set compile=none" in refused(runtime=two | {"compile": "blocks"})
    six = {"num_workers": 6, "context_parallel": 2, "shard": 3}
    assert "shard=3 is neither a multiple nor a divisor of context_parallel=2" in refused(runtime=six)
    halves = {"num_workers": 2, "guidance_parallel": True}
    assert "use context_parallel with shard" in refused(runtime=halves | {"shard": 2})
    sampling = tiny_document(tiny_pipeline_folder)["sampling"]
    assert "guidance_scale=1 has one" in refused(runtime=halves, sampling=sampling | {"guidance_scale": 1.0})
    interval = sampling | {"guidance_scale": 3.0, "guidance_interval": [0.2, 0.8]}
    assert "guidance_interval=[0.2, 0.8] leaves one branch out" in refused(runtime=halves, sampling=interval)
    cached = sampling | {"prefix_cache": "first_block:0.1"}
    assert "set sampling.prefix_cache=none" in refused(runtime=two, sampling=cached)
    assert "or name=vader" in refused(runtime=halves, algorithm={"name": "dpo"})
    assert "in groups of 2 workers; choose a divisor" in refused(runtime=two | {"num_workers": 6})
    assert "cannot divide the tokens of model.family=modelscope" in refused(runtime=two)
    hunyuan = {"family": "hunyuan_video", "weights": "owner/name"}
    assert "is an input of the denoiser" in refused(runtime=halves, model=hunyuan)
    for family in ("kandinsky5", "kandinsky6", "ltx2"):
        with_sound = {"family": family, "weights": "owner/name"}
        assert "cannot share its guidance" in refused(runtime=halves, model=with_sound)


def test_numbers_that_cannot_be_divided_are_refused(tmp_path: Path) -> None:
    weights = save(CASES["wan"], tmp_path / "pipeline")
    three = _document(weights, 3, {"context_parallel": 3})
    with pytest.raises(UserError, match="context_parallel=3 does not divide the 2 attention heads"):
        estimate_step(validate(three))
    four = _document(weights, 4, {"context_parallel": 4})
    with pytest.raises(UserError, match="context_parallel=4 does not divide the 6 tokens of a video"):
        estimate_step(validate(four))


def test_workers_of_a_video_share_its_work() -> None:
    runtime = RuntimeConfig(num_workers=8, context_parallel=2, guidance_parallel=True)
    group = WorkerGroup(5, 8).of_recipe(runtime)
    assert runtime.workers_per_video == 4
    assert runtime.num_video_groups == 2
    assert group.share(6) == range(3, 6)
    assert not group.is_first_of_video
    assert WorkerGroup(4, 8).of_recipe(runtime).is_first_of_video
    assert WorkerGroup().of_recipe(runtime).share(6) == range(6)
