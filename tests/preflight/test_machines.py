"""Settings for machines and bytes on the wire, against numbers by hand and bytes that processes send."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

from tests.helpers import families
from tests.helpers.families import CASES, DEEP_WAN, save
from tests.helpers.recipe import MINIMAL, tiny_config, tiny_document
from tests.helpers.sharded import exchange_steps
from tests.helpers.workers import run_workers
from vader_ray.cli import app
from vader_ray.config import ExperimentConfig, RuntimeConfig, load, override, validate
from vader_ray.errors import UserError
from vader_ray.models.core.sharding import ShardedNetwork
from vader_ray.preflight.devices import DEVICES, GIB, Device, check_devices, device, split_machine
from vader_ray.preflight.divided_weights import counted_gathers
from vader_ray.preflight.estimate import estimate_step
from vader_ray.preflight.machine_report import machine_parts
from vader_ray.preflight.machines import Machine, StepCounter, find_plan, num_workers
from vader_ray.preflight.step_counts import StepCount
from vader_ray.preflight.trackers import OpRecord
from vader_ray.preflight.traffic import Traffic, step_traffic
from vader_ray.types import GatheredPart


class _Network(nn.Module):
    """Two blocks of 5 × 3 weights and an outer layer of 3 × 5, with an adapter of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block() for _ in range(2))
        self.outer = nn.Linear(5, 3, bias=False).requires_grad_(False)

    def forward(self, values: torch.Tensor, recompute: bool = False) -> torch.Tensor:
        def blocks(values: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                values = block(values) @ self.outer.weight.T
            return values

        if recompute:
            recomputed: torch.Tensor = checkpoint(blocks, values, use_reentrant=False)
            return recomputed
        return blocks(values)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5, bias=False).requires_grad_(False)
        self.adapter = nn.Parameter(torch.ones(()))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(values) * self.adapter
        return result


def _sharded() -> ShardedNetwork:
    network = _Network()
    return ShardedNetwork(network, list(network.blocks))


def test_calls_are_gathers_and_backward_passes_are_further_ones() -> None:
    network = _sharded()
    values = torch.ones(1, 3)
    with counted_gathers(network.parts()) as gathers:
        with torch.no_grad():
            network.network(values)
        assert [gathers[i] for i in range(3)] == [1, 1, 1]
        network.network(values).sum().backward()
        assert [gathers[i] for i in range(3)] == [3, 3, 3]
        network.network(values, recompute=True).sum().backward()
        assert [gathers[i] for i in range(3)] == [6, 6, 5]  # blocks are called again, the network is not
    network.network(values)
    assert gathers.total() == 17


def test_traffic_is_that_of_padded_shares_and_of_a_ring() -> None:
    """Per gather and worker: of 5 rows of 3 float32 each of two workers has 3, of 3 rows of 5 it has 2."""
    block, _, outer = _sharded().parts()
    gathers: dict[GatheredPart, int] = {block: 10, outer: 1}
    two = RuntimeConfig(num_workers=4, shard=2)
    assert block.share_bytes(2) == 3 * 3 * 4
    assert outer.share_bytes(2) == 2 * 5 * 4
    found = step_traffic(two, gathers, activations=3, num_adapter_parameters=100, frames=7, cache=9)
    assert found == Traffic(weights=10 * 36 + 40, activations=3, adapter=2 * 3 * 400 // 4, frames=7, host=9)
    four = RuntimeConfig(num_workers=4, shard=4, offload_weights=True, gradient_precision="bfloat16")
    found = step_traffic(four, gathers, activations=0, num_adapter_parameters=100, frames=0, cache=9)
    shares = 10 * (2 * 3 * 4) + 1 * 5 * 4
    assert found == Traffic(3 * shares, 0, adapter=2 * 3 * 200 // 4, frames=0, host=9 + shares)
    alone = step_traffic(
        RuntimeConfig(), gathers, activations=0, num_adapter_parameters=100, frames=0, cache=0
    )
    assert alone == Traffic(0, 0, 0, 0, 0)


def test_seconds_of_traffic() -> None:
    card = Device(80, 1, 1, 1, 1, link_gigabytes_per_second=100, host_gigabytes_per_second=20)
    moved = Traffic(weights=10**9, activations=5 * 10**9, adapter=10**9, frames=10**12, host=7 * 10**9)
    assert card.traffic_seconds(moved) == pytest.approx(7 / 70 + 7 / 14)


@pytest.mark.chaos
def test_counted_bytes_are_those_that_two_processes_send(tmp_path: Path) -> None:
    """By the kernel's counters of the TCP connections of gloo; the difference is what FSDP keeps in memory
    of the last blocks of a call, and headers."""
    deeper: Callable[[], Any] = lambda: families.wan_pipeline(  # noqa: E731
        transformer=families.wan_transformer(num_layers=8, ffn_dim=512)
    )
    save(replace(CASES["wan"], build=deeper), tmp_path / "wan")
    document = tiny_document(
        tmp_path / "wan",
        model={"family": "wan", "weights": str(tmp_path / "wan")},
        sampling=CASES["wan"].sampling | {"num_inference_steps": 4},
        runtime={"num_workers": 2, "shard": 2},
        videos_per_step=2,
    )
    (tmp_path / "meetings").mkdir()
    choices = ["sampling.recompute=true", "sampling.recompute=false"]
    first, second = run_workers(exchange_steps, 2, tmp_path / "meetings", document, choices)
    assert first == pytest.approx(second, rel=0.01)
    for choice, received in zip(choices, first, strict=True):
        counted = estimate_step(override(validate(document), [choice])).traffic
        assert counted.weights + counted.adapter == pytest.approx(received, rel=0.03)


@pytest.mark.chaos
def test_counted_bytes_of_divided_videos_are_those_that_two_processes_send(tmp_path: Path) -> None:
    """Of two gradient steps, one of them recomputed; the difference is headers."""
    weights = save(DEEP_WAN, tmp_path / "wan")
    document = tiny_document(
        weights,
        model={"family": "wan", "weights": str(weights)},
        sampling={"num_frames": 17, "height": 64, "width": 64, "num_inference_steps": 3}
        | {"guidance_scale": 3.0, "truncation_depth": 2, "recompute": "earlier"},
        runtime={"num_workers": 2},
        videos_per_step=2,
    )
    (tmp_path / "meetings").mkdir()
    choices = ["runtime.context_parallel=2", "runtime.guidance_parallel=true"]
    measured = run_workers(exchange_steps, 2, tmp_path / "meetings", document, choices)
    for choice, received in zip(choices, measured[0], strict=True):
        counted = estimate_step(override(validate(document), [choice])).traffic
        assert counted.activations > 10 * counted.adapter or choice != choices[0]
        assert counted.activations + counted.adapter == pytest.approx(received, rel=0.1)


def _counts(config: ExperimentConfig, part: Any) -> StepCount:
    """Return counts of a model of 20 GiB with a step of 30 GiB, 10 GiB with block checkpointing.

    Of the step 4 GiB are decoded on every worker of a video. There are four attention heads.
    """
    size = config.runtime.workers_per_video
    if config.runtime.context_parallel > 4:
        raise UserError("four heads")
    is_block = config.runtime.activation_checkpointing == "block"
    operation = OpRecord("matmul", 16, 10**15 // 4, 0)
    return StepCount(
        loaded=[part],
        networks=[part],
        gathers={part.parts()[0]: 100},
        whole_bytes=20 * GIB,
        encoding_bytes=0,
        weights_bytes=20 * GIB,
        state_bytes=GIB,
        step_bytes=((6 if is_block else 26) // size + 4) * GIB,
        evaluation_bytes=0,
        host_bytes=0,
        cache_traffic=0,
        activation_traffic=(config.runtime.context_parallel - 1) * 10**9,
        frames_traffic=0,
        num_adapter_parameters=10,
        operations={operation: (16 if is_block else 12) * config.videos_per_step // size},
        denoiser_calls=1,
    )


@pytest.fixture
def counts() -> StepCounter:
    """Counts of a network whose 16 GiB of weights can be divided, in 8 blocks."""
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(2**15, 2**15, bias=False) for _ in range(8)))
        network = network.to(torch.bfloat16).requires_grad_(False)
    part = ShardedNetwork(network, list(network))
    assert part.frozen_bytes() == 16 * GIB
    return StepCounter(lambda config: _counts(config, part))


def _machine(num_gpus: int, memory_gib: float) -> Machine:
    card = replace(DEVICES["h100"], memory_gib=memory_gib)
    return Machine(f"{num_gpus}xh100", num_gpus, card)


@pytest.mark.parametrize(
    ("num_gpus", "memory_gib", "settings", "peak_gib"),
    [
        (1, 80, (), 51),  # 20 + 1 + 30
        (1, 40, ("runtime.activation_checkpointing=block",), 31),
        # 4 of weights that cannot be divided, 1 + 10, and two blocks of 2 GiB twice while they are gathered
        (1, 28, ("runtime.activation_checkpointing=block", "runtime.offload_weights=true"), 23),
        (2, 40, ("runtime.activation_checkpointing=block",), 31),
        (4, 31, ("runtime.activation_checkpointing=block", "runtime.shard=4"), 27),
    ],
)
def test_the_fastest_plan_that_fits(
    tmp_path: Path,
    counts: StepCounter,
    num_gpus: int,
    memory_gib: float,
    settings: tuple[str, ...],
    peak_gib: int,
) -> None:
    model = {"family": "hunyuan_video", "weights": str(tmp_path)}  # whose videos cannot be divided
    plan = find_plan(tiny_config(tmp_path, model=model), _machine(num_gpus, memory_gib), counts)
    assert plan.fits
    assert plan.settings == (f"runtime.num_workers={num_gpus}", *settings)
    assert plan.estimate.peak_bytes == peak_gib * GIB
    num_calls = (4 if "runtime.activation_checkpointing=block" in settings else 3) * 4 / num_gpus
    assert plan.computing_seconds == pytest.approx(num_calls * 1e15 / (989e12 * 0.5))


def test_a_recipe_that_is_divided_without_need_is_put_together(tmp_path: Path, counts: StepCounter) -> None:
    model = {"family": "hunyuan_video", "weights": str(tmp_path)}  # whose videos cannot be divided
    config = tiny_config(tmp_path, model=model, runtime={"num_workers": 4, "shard": 4})
    plan = find_plan(config, _machine(4, 80), counts)
    assert plan.settings == ("runtime.num_workers=4", "runtime.shard=1")
    kept = find_plan(override(config, ["runtime.activation_checkpointing=block"]), _machine(4, 31), counts)
    assert kept.settings == ("runtime.num_workers=4",)


CONTEXT, GUIDANCE = "runtime.context_parallel={}", "runtime.guidance_parallel=true"


@pytest.mark.parametrize(
    ("family", "num_videos", "num_gpus", "memory_gib", "settings", "peak_gib"),
    [
        # Whole weights fit if four workers divide the 6 GiB of a step that are not decoded: 20 + 1 + 1 + 4.
        # Guidance sends less than context does.
        ("wan", 4, 4, 30, ("runtime.activation_checkpointing=block", CONTEXT.format(2), GUIDANCE), 26),
        ("wan", 1, 4, 80, (CONTEXT.format(2), GUIDANCE), 31),  # three GPUs had no video: 20 + 1 + 26 / 4 + 4
        ("wan", 1, 8, 80, (CONTEXT.format(4), GUIDANCE), 28),  # eight workers cannot divide four heads
        ("wan", 2, 4, 80, (GUIDANCE,), 38),
        ("modelscope", 1, 4, 80, (GUIDANCE,), 38),  # has no plan for its tokens
        ("hunyuan_video", 1, 4, 80, (), 51),  # its guidance is an input
        ("wan", 3, 4, 80, (CONTEXT.format(2), GUIDANCE), 31),
    ],
)
def test_several_workers_compute_a_video(  # noqa: PLR0913
    tmp_path: Path,
    counts: StepCounter,
    family: str,
    num_videos: int,
    num_gpus: int,
    memory_gib: float,
    settings: tuple[str, ...],
    peak_gib: int,
) -> None:
    config = tiny_config(
        tmp_path, model={"family": family, "weights": str(tmp_path)}, videos_per_step=num_videos
    )
    plan = find_plan(config, _machine(num_gpus, memory_gib), counts)
    assert plan.fits
    assert plan.settings[1:] == settings
    assert plan.estimate.peak_bytes == peak_gib * GIB


def test_a_video_is_not_divided_if_that_lowers_nothing(tmp_path: Path, counts: StepCounter) -> None:
    decoded = StepCounter(lambda config: replace(counts(config), step_bytes=10 * GIB))
    config = tiny_config(tmp_path, model={"family": "wan", "weights": str(tmp_path)})
    plan = find_plan(config, _machine(4, 16), decoded)
    assert not plan.fits
    assert plan.config.runtime.workers_per_video == 1


def test_a_stated_number_of_workers_of_a_video_is_kept(tmp_path: Path, counts: StepCounter) -> None:
    model, runtime = {"family": "wan", "weights": str(tmp_path)}, {"num_workers": 2, "context_parallel": 2}
    plan = find_plan(tiny_config(tmp_path, model=model, runtime=runtime), _machine(8, 80), counts)
    assert plan.settings == ("runtime.num_workers=8",)
    assert plan.config.runtime.context_parallel == 2


def test_rules_of_the_recipe_are_named(tmp_path: Path, counts: StepCounter) -> None:
    elastic = tiny_config(tmp_path, runtime={"num_workers": 4, "min_workers": 2})
    with pytest.raises(UserError, match="min_workers=2 is more than num_workers=1"):
        find_plan(elastic, _machine(1, 80), counts)


def test_the_smallest_plan_is_named_where_none_fits(tmp_path: Path, counts: StepCounter) -> None:
    plan = find_plan(tiny_config(tmp_path), _machine(1, 16), counts)
    assert not plan.fits
    assert plan.estimate.peak_bytes == 23 * GIB
    assert "runtime.offload_weights=true" in plan.settings


def test_workers_share_the_videos_beside_the_gpus_of_rewards(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)  # four videos
    assert [num_workers(config, num_gpus, 1) for num_gpus in (1, 2, 3, 4, 8)] == [1, 2, 2, 4, 4]
    assert [num_workers(config, num_gpus, 2) for num_gpus in (2, 3, 4, 8, 9)] == [2, 2, 4, 8, 8]
    placement = {"actor": "scores", "num_gpus": 0.5, "num_replicas": 3}
    placed = tiny_config(tmp_path, rewards=[{"reward": "brightness", "placement": placement}])
    assert num_workers(placed, 4, 1) == 2
    with pytest.raises(UserError, match="reserve 2 of 2 GPUs and leave none for workers"):
        num_workers(placed, 2, 1)


def test_automatic_settings_are_chosen_for_a_machine(tmp_path: Path, counts: StepCounter) -> None:
    automatic = {"activation_checkpointing": "auto", "micro_batch_size": "auto"}
    rewards = [{"reward": "brightness", "placement": "auto"}]
    plan = find_plan(tiny_config(tmp_path, runtime=automatic, rewards=rewards), _machine(1, 40), counts)
    assert plan.config.runtime.activation_checkpointing == "block"
    assert plan.config.runtime.micro_batch_size == 1
    assert plan.config.rewards[0].placement is None


def test_names_of_machines() -> None:
    assert split_machine("8xrtx4090") == (8, "rtx4090")
    assert split_machine("rtx4090") == (None, "rtx4090")
    check_devices(["8xRTX4090", "1xh100", "8xa100-80GB", "24GB", "8x24gb", "cpu"])
    assert device("A100-80GB") is DEVICES["a100-80"]
    assert device("24GB").half_tflops == DEVICES["rtx4090"].half_tflops
    for name, nominal in {"rtx4090": 24, "a100-40": 40, "a100-80": 80, "h100": 80, "h200": 141}.items():
        assert device(f"{nominal}GB").memory_gib == pytest.approx(DEVICES[name].memory_gib, rel=0.015)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("8xrtx4080", "there is no 'rtx4080'; did you mean 'rtx4090'?"),
        ("8xabacus", "there is no 'abacus'; choose from a10g"),
        ("0xh100", "'0xh100' is no machine; give a number of GPUs"),
        ("2xcpu", "'2xcpu' is no machine"),
        ("24TB", "there is no '24TB'"),
    ],
)
def test_unknown_machines_are_refused_in_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(MINIMAL)
    result = CliRunner().invoke(app, ["check", str(tmp_path / "mine.yaml"), "--devices", name])
    assert result.exit_code == 2
    assert f"--devices: {message}" in result.stderr


@pytest.mark.slow
def test_the_report_of_a_machine(tiny_pipeline_folder: Path) -> None:
    placement = {"actor": "scores", "transport": "bfloat16"}
    document = tiny_document(
        tiny_pipeline_folder, rewards=[{"reward": "brightness", "placement": placement}], videos_per_step=2
    )
    refusals = list[str]()
    counted, part = machine_parts(validate(document), ["2xh100"], StepCounter(), refusals)
    assert "nothing is measured" in counted
    assert "2xh100: fits with runtime.num_workers=2\n" in part
    num_bytes = 2 * 3 * 3 * 8 * 8 * 2  # a video of 3 frames of 8 × 8 in 2 bytes, and its gradient
    assert f"frames and gradients of rewards in actors {num_bytes / 1e9:.3g}," in part
    assert refusals == []


def test_the_report_of_machines_that_are_too_small(tmp_path: Path, counts: StepCounter) -> None:
    refusals = list[str]()
    _, small, large = machine_parts(tiny_config(tmp_path), ["3x16GB", "1x24GB"], counts, refusals)
    assert small.startswith(
        "3x16GB, 1 GPUs without a worker, with the speed of a10g: does NOT fit, even with"
    )
    assert "does NOT fit" in large
    assert refusals[1] == (
        "1x24GB: no combination of settings fits; the smallest needs 23.0 of 23.5 GiB per GPU, with 5 % "
        "and 1 GiB to spare; use fewer frames or pixels, or a larger card"
    )


def test_packaged_recipes_keep_their_settings_while_a_plan_is_sought(counts: StepCounter) -> None:
    config = load("wan_1_3b_hps")
    plan = find_plan(config, _machine(8, 79), counts)
    assert plan.config.sampling == config.sampling
    assert plan.config.runtime.num_workers == 8
