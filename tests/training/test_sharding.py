"""Training with sharded weights: the run of one worker, resumed bit for bit, with a share of the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.recipe import tiny_config, tiny_document
from tests.helpers.sharded import Trained, train_sharded
from tests.helpers.tiny import load_tiny
from tests.helpers.training import file_contents
from tests.helpers.workers import run_workers
from vader_ray.alignment import algorithms
from vader_ray.config import RuntimeConfig, override, validate
from vader_ray.errors import UserError
from vader_ray.preflight import auto_tune
from vader_ray.preflight.divided_weights import DividedWeights, divide
from vader_ray.preflight.estimate import estimate_step
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.inference import evaluate_adapter

pytestmark = pytest.mark.filterwarnings("ignore:The TextToVideoSDPipeline has been deprecated")

NUM_VIDEOS = 5
"""Held-out videos, which two or four workers cannot share evenly."""


def _document(weights: Path, num_workers: int, shard: int) -> dict[str, Any]:
    short = {"num_inference_steps": 4, "truncation": "random", "truncation_depth": 2}
    approximate = {"guidance_interval": [0.2, 1.0], "prefix_cache": "deep_features:3"}
    return tiny_document(
        weights,
        num_steps=2,
        sampling=tiny_document(weights)["sampling"] | short | approximate,
        evaluation={"every": 2, "num_videos": NUM_VIDEOS, "num_shown": 1},
        checkpoint={"every": 1},
        runtime={"num_workers": num_workers, "shard": shard},
    )


def _train(
    weights: Path, folder: Path, num_workers: int, shard: int, resume_from: Path | None = None
) -> list[Trained]:
    (folder / "meetings").mkdir(parents=True)
    document = _document(weights, num_workers, shard)
    return run_workers(train_sharded, num_workers, folder / "meetings", document, folder, resume_from)


def _check_run(trained: list[Trained], expected: Trained, share: int) -> None:
    """Compare a sharded run with that of one worker, up to the order of sums."""
    assert all(worker.is_sharded for worker in trained)
    assert max(worker.frozen_bytes for worker in trained) == share
    for worker in trained:
        for one, other in zip(worker.adapter, expected.adapter, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        for name in ("train/reward_mean", "eval/objective", "eval/diversity"):
            values = [each.metrics[-1][name] for each in (worker, expected)]
            assert values[0] == pytest.approx(values[1], abs=1e-5)


@pytest.mark.slow
def test_a_sharded_run_is_that_of_one_worker_and_continues_bit_for_bit(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """A kill leaves the checkpoints alone: new processes continue from one. A whole model loads the adapter,
    and so does one whose weights are in host memory."""
    weights = tiny_pipeline_folder
    alone = train_sharded(WorkerGroup(), _document(weights, 1, 1), tmp_path / "alone")
    denoiser = load_tiny(weights).sharded_networks()[-1]
    shares = {shard: denoiser.share_bytes(shard) for shard in (2, 4)}
    assert all(shares[shard] < 1.1 / shard * alone.frozen_bytes for shard in shares)
    straight = _train(weights, tmp_path / "straight", 2, 2)
    _check_run(straight, alone, shares[2])
    resumed = _train(weights, tmp_path / "resumed", 2, 2, tmp_path / "straight" / "1")
    assert all(map(torch.equal, straight[0].adapter, resumed[1].adapter))
    last = tmp_path / "straight" / "2" / "adapter"
    assert file_contents(last) == file_contents(tmp_path / "resumed" / "2" / "adapter")
    config = validate(_document(weights, 2, 2))
    expected = pytest.approx(straight[0].metrics[-1]["eval/objective"], abs=1e-6)
    assert evaluate_adapter(config, last)["eval/objective"] == expected
    try:
        offloaded = override(config, ["runtime.offload_weights=true"])
        assert evaluate_adapter(offloaded, last)["eval/objective"] == expected
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.chaos
@pytest.mark.parametrize("shard", [2, 4])
def test_four_workers(tiny_pipeline_folder: Path, tmp_path: Path, shard: int) -> None:
    alone = train_sharded(WorkerGroup(), _document(tiny_pipeline_folder, 1, 1), tmp_path / "alone")
    trained = _train(tiny_pipeline_folder, tmp_path / "sharded", 4, shard)
    denoiser = load_tiny(tiny_pipeline_folder).sharded_networks()[-1]
    _check_run(trained, alone, denoiser.share_bytes(shard))


def test_what_does_not_fit_is_refused(tiny_pipeline_folder: Path) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            algorithms.check(tiny_config(tiny_pipeline_folder, **changes))
        return str(error.value)

    assert "shard=3 does not divide num_workers=4" in refused(runtime={"num_workers": 4, "shard": 3})
    elastic = {"num_workers": 4, "shard": 2, "min_workers": 2}
    assert "min_workers=2 cannot be combined with shard=2" in refused(runtime=elastic)
    two = {"num_workers": 2, "shard": 2}
    sampling = tiny_document(tiny_pipeline_folder)["sampling"] | {"prefix_cache": "first_block:0.1"}
    assert "set sampling.prefix_cache=none" in refused(runtime=two, sampling=sampling)
    assert "set runtime.shard=1" in refused(runtime=two, algorithm={"name": "dpo"})
    model = tiny_document(tiny_pipeline_folder)["model"] | {"quantization": "int8"}
    assert "choose one of them" in refused(runtime={"offload_weights": True}, model=model)


def test_only_what_can_be_combined_is_suggested(tiny_pipeline_folder: Path) -> None:
    def suggested(**changes: Any) -> set[str]:
        config = tiny_config(tiny_pipeline_folder, **changes)
        return {
            setting for setting in auto_tune._memory_settings(config) if auto_tune.combined(config, [setting])
        }

    two: dict[str, Any] = {"num_workers": 2}
    assert {"runtime.shard=2", "runtime.offload_weights=true", "model.quantization=int8"} <= suggested(
        runtime=two
    )
    assert "runtime.shard=2" not in suggested(runtime=two, algorithm={"name": "dpo"})
    assert "model.quantization=int8" not in suggested(runtime=two | {"shard": 2})


def test_workers_of_a_group_are_consecutive() -> None:
    assert [peer.rank for peer in WorkerGroup(2, 4).peers(2)] == [2, 3]
    assert [peer.rank for peer in WorkerGroup().peers(2)] == [0]


@pytest.mark.slow
def test_a_count_knows_the_shares(tiny_pipeline_folder: Path) -> None:
    changes = {"num_workers": 2, "shard": 2, "offload_weights": True}
    whole = estimate_step(tiny_config(tiny_pipeline_folder, runtime={"num_workers": 2}))
    waiting = estimate_step(tiny_config(tiny_pipeline_folder, runtime=changes))
    denoiser = load_tiny(tiny_pipeline_folder).sharded_networks()[-1]
    assert whole.weights_bytes - waiting.weights_bytes == denoiser.frozen_bytes()
    assert waiting.step_bytes - whole.step_bytes == denoiser.gathered_bytes()
    assert waiting.host_bytes > whole.host_bytes + denoiser.frozen_bytes()  # the whole model, once


def test_the_counted_share(tiny_pipeline_folder: Path) -> None:
    networks = load_tiny(tiny_pipeline_folder).sharded_networks()
    frozen, share = (
        sum(size)
        for size in zip(*((each.frozen_bytes(), each.share_bytes(2)) for each in networks), strict=True)
    )
    gathered = max(each.gathered_bytes() for each in networks)
    assert divide(RuntimeConfig(), networks) == DividedWeights()
    two = RuntimeConfig(num_workers=2, shard=2)
    assert divide(two, networks) == DividedWeights(frozen - share, gathered, 0)
    waiting = two.model_copy(update={"offload_weights": True})
    assert divide(waiting, networks) == DividedWeights(frozen, gathered, share)
