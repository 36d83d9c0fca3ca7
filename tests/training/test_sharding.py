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
from vader_ray.config import override
from vader_ray.errors import UserError
from vader_ray.models.core.sharding import local_bytes
from vader_ray.preflight.estimate import estimate_step
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.inference import evaluate_adapter

pytestmark = pytest.mark.filterwarnings("ignore:The TextToVideoSDPipeline has been deprecated")

NUM_VIDEOS = 5
"""Held-out videos in batches of two: three batches, the last one short, which two or four workers cannot
share evenly."""


def _document(weights: Path, num_workers: int, shard: int) -> dict[str, Any]:
    sampling = tiny_document(weights)["sampling"] | {"truncation": "random", "truncation_depth": 3}
    return tiny_document(
        weights,
        num_steps=3,
        sampling=sampling,
        evaluation={"every": 3, "num_videos": NUM_VIDEOS, "num_shown": 1},
        checkpoint={"every": 2},
        runtime={"num_workers": num_workers, "shard": shard},
    )


def _train(weights: Path, folder: Path, num_workers: int, shard: int, **more: Any) -> list[Trained]:
    folder.mkdir()
    meetings = folder / "meetings"
    meetings.mkdir()
    document = _document(weights, num_workers, shard)
    return run_workers(train_sharded, num_workers, meetings, document, folder, *more.values())


@pytest.mark.slow
def test_sharded_runs_are_those_of_one_worker(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    weights = tiny_pipeline_folder
    (alone,) = _train(weights, tmp_path / "alone", 1, 1)
    whole = _train(weights, tmp_path / "whole", 2, 1)
    for num_workers, shard in ((2, 2), (4, 2), (4, 4)):
        trained = _train(weights, tmp_path / f"{num_workers}_{shard}", num_workers, shard)
        for worker in trained:
            assert worker.is_sharded
            for found, expected in zip(worker.adapter, alone.adapter, strict=True):
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # order of sums
        counted = sum(each.share_bytes(shard) for each in load_tiny(weights).sharded_networks()[1:])
        assert max(each.frozen_bytes for each in trained) == counted
        assert counted < 1.1 / shard * alone.frozen_bytes
        if num_workers == 2:
            assert all(map(torch.equal, trained[0].adapter, whole[0].adapter))
            assert _numbers(trained[0]) == _numbers(whole[0])


def _numbers(worker: Trained) -> list[dict[str, float]]:
    """The metrics that depend on neither time nor memory."""
    return [
        {name: value for name, value in each.items() if "second" not in name and "gib" not in name}
        for each in worker.metrics
    ]


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """A kill leaves the checkpoints alone: the same group, new processes, from the last of them; the adapter
    is then loaded by a model that is whole."""
    straight = _train(tiny_pipeline_folder, tmp_path / "straight", 2, 2)
    resumed = _train(
        tiny_pipeline_folder, tmp_path / "resumed", 2, 2, resume_from=tmp_path / "straight" / "2"
    )
    for one, other in zip(straight, resumed, strict=True):
        assert all(map(torch.equal, one.adapter, other.adapter))
    last = tmp_path / "straight" / "3" / "adapter"
    assert file_contents(last) == file_contents(tmp_path / "resumed" / "3" / "adapter")
    config = tiny_config(tiny_pipeline_folder, **_document(tiny_pipeline_folder, 2, 2))
    expected = pytest.approx(straight[0].metrics[-1]["eval/objective"], abs=1e-6)
    assert evaluate_adapter(config, last)["eval/objective"] == expected
    offloaded = override(config, ["runtime.offload_weights=true"])
    try:
        assert evaluate_adapter(offloaded, last)["eval/objective"] == expected
    finally:
        torch.distributed.destroy_process_group()


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


def test_workers_of_a_group_are_consecutive() -> None:
    assert [peer.rank for peer in WorkerGroup(2, 4).peers(2)] == [2, 3]
    assert [peer.rank for peer in WorkerGroup().peers(2)] == [0]


@pytest.mark.slow
def test_a_count_knows_the_shares(tiny_pipeline_folder: Path) -> None:
    whole = estimate_step(tiny_config(tiny_pipeline_folder, runtime={"num_workers": 2}))
    sharded = estimate_step(tiny_config(tiny_pipeline_folder, runtime={"num_workers": 2, "shard": 2}))
    offloaded = estimate_step(tiny_config(tiny_pipeline_folder, runtime={"offload_weights": True}))
    _, denoiser = load_tiny(tiny_pipeline_folder).sharded_networks()
    frozen, share = denoiser.frozen_bytes(), denoiser.share_bytes(2)
    assert whole.weights_bytes - sharded.weights_bytes == frozen - share
    assert whole.weights_bytes - offloaded.weights_bytes == frozen
    assert sharded.step_bytes - whole.step_bytes == denoiser.gathered_bytes()
    assert offloaded.host_bytes >= frozen
    assert local_bytes(denoiser.network.parameters()) > frozen
