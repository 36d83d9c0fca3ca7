"""What `benchmarks/engine.py` shows: all frames, exactly, at the memory of one, whatever the truncation
depth."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.engine import AUTHORS, Case, Row, build, compare, ratios, tiny
from vader_ray.preflight.trackers import PeakMemoryTracker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The TextToVideoSDPipeline has been deprecated"),
]

DEPTHS = (1, 3)
SIZE = replace(tiny(), num_inference_steps=3, depths=DEPTHS)


@pytest.fixture(scope="module")
def rows() -> dict[Case, Row]:
    cpu = torch.device("cpu")
    return {row.case: row for row in compare(build(SIZE, "float64", cpu), cpu, repeats=1)}


def peak(rows: dict[Case, Row], case: Case) -> float:
    found = rows[case].peak_mib
    assert found is not None
    return found


def test_every_gradient_equals_that_of_one_graph(rows: dict[Case, Row]) -> None:
    """float64, of which some 1e-15 per operation remains after thousands of them."""
    errors = [row.relative_error for case, row in rows.items() if case.staged]
    assert len(errors) == 1 + 2 * len(DEPTHS)
    assert all(error is not None and error < 1e-10 for error in errors)


def test_all_frames_take_about_the_memory_of_one(rows: dict[Case, Row]) -> None:
    every = Case(staged=True, frames="all", depth=1, recompute=True)
    one = Case(staged=True, frames="random:1", depth=1, recompute=True)
    assert peak(rows, every) < 1.3 * peak(rows, one)
    assert peak(rows, every) < 1.3 * peak(rows, AUTHORS)
    assert peak(rows, every.reference) > 1.7 * peak(
        rows, every
    )  # at ModelScope's sizes 62.2 GiB over 31.2 GiB


def test_memory_with_recompute_does_not_grow_with_the_depth(rows: dict[Case, Row]) -> None:
    peaks = [peak(rows, Case(staged=True, frames="all", depth=depth, recompute=True)) for depth in DEPTHS]
    assert max(peaks) < 1.05 * min(peaks)


def test_memory_without_recompute_grows_with_the_depth(rows: dict[Case, Row]) -> None:
    peaks = [peak(rows, Case(staged=True, frames="all", depth=depth)) for depth in DEPTHS]
    assert all(found > 0.9 * depth * peaks[0] for found, depth in zip(peaks, DEPTHS, strict=True))


def test_ratios_are_of_the_rows(rows: dict[Case, Row]) -> None:
    found = ratios(list(rows.values()), SIZE)
    every, one = (Case(True, frames, 1, recompute=True) for frames in ("all", "random:1"))
    deep = Case(True, "all", DEPTHS[-1])
    assert found["memory: ours, all frames / one frame"] == peak(rows, every) / peak(rows, one)
    assert found["memory: one graph, all frames / ours"] == peak(rows, every.reference) / peak(rows, every)
    name = f"memory: ours without recompute, K={DEPTHS[-1]} / K=1"
    assert found[name] == peak(rows, deep) / peak(rows, Case(True, "all", 1))
    without_one_graph = [row for case, row in rows.items() if case != every.reference]
    assert "memory: one graph, all frames / ours" not in ratios(without_one_graph, SIZE)


def test_live_tensors_counts_what_a_chain_of_exponentials_keeps() -> None:
    """exp saves its result: ten of them hold ten tensors, and backward needs two more at a time."""
    start = torch.zeros(1000, requires_grad=True)
    with PeakMemoryTracker() as meter:
        end = start
        for _ in range(10):
            end = end.view(10, 100).exp().view(1000)
        assert meter.now == meter.peak == 10 * start.nbytes
        end.sum().backward()
        del end
        assert meter.now == start.nbytes  # the gradient
    assert 10 * start.nbytes < meter.peak <= 13 * start.nbytes
