"""What is counted without weights against what the training loop takes with them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.utils._device import _device_constructors
from typer.testing import CliRunner

from benchmarks.published_rewards import write_pickscore
from tests.helpers import opensora_tiny as opensora
from tests.helpers import videocrafter2_tiny as videocrafter2
from tests.helpers.families import CASES, save, save_images
from tests.helpers.pipeline_cases import PIPELINES
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.tiny import load_tiny
from vader_ray import rewards
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.cli import app
from vader_ray.config import ExperimentConfig, ModelConfig, PlacementConfig, RewardConfig, override
from vader_ray.config.auto import auto_fields, with_placements, without_auto
from vader_ray.errors import UserError
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.videocrafter2 import checkpoint
from vader_ray.preflight import auto_tune, estimate, trackers
from vader_ray.preflight.auto_tune import choose_auto, suggest_settings
from vader_ray.preflight.devices import DEVICES, Device
from vader_ray.preflight.estimate import (
    estimate_step,
    num_bytes,
    optimizer_bytes,
)
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.step_counts import StepEstimate
from vader_ray.preflight.trackers import OpCounter, PeakMemoryTracker
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import build
from vader_ray.training.loop import make_optimizer
from vader_ray.training.step import train_step

pytestmark = [
    pytest.mark.filterwarnings("ignore:The TextToVideoSDPipeline has been deprecated"),
    pytest.mark.filterwarnings(
        "ignore:In CPU autocast, but the target dtype is not supported:UserWarning"
    ),  # Mochi
]

TOLERANCE = 0.06
"""The meta device lays some gradients out otherwise than the CPU: for networks this tiny up to 4.7 % (Wan's
decoder, one frame at a time). A prediction must be within 15 %."""
STEPS = 5
SETTINGS = {
    "recompute": (),
    "three steps kept": ("sampling.recompute=false", "sampling.truncation_depth=3"),
    "three steps recomputed": ("sampling.truncation_depth=3",),
    "blocks recomputed": ("sampling.recompute=false", "runtime.activation_checkpointing=block"),
    "one frame": ("rewards.0.frames=first:1",),
    "three clips": ("sampling.num_clips=3",),
    "text encoder": ("adapter.networks=[unet,text_encoder]",),
    "one by one": (
        "runtime.prefix_batch_size=1",
        "runtime.decode_chunk_size=1",
        "sampling.truncation=uniform",
    ),
}


def _measured_bytes(config: ExperimentConfig) -> int:
    """Bytes at the peak of two training steps on the CPU: weights, conditioning, gradients, optimizer and
    activations."""
    experiment = build(config, torch.device("cpu"))
    optimizer, state = make_optimizer(config, experiment), State()
    weights = num_bytes([*experiment.model.modules(), *experiment.trained_networks()])
    assert isinstance(experiment.conditioning, Conditioning)
    columns = [
        column for column in experiment.conditioning.tensors.values() if isinstance(column, torch.Tensor)
    ]
    with PeakMemoryTracker() as meter:
        for _ in range(2):
            train_step(config, experiment, optimizer, WorkerGroup(), state, 0.0)
    return weights + sum(column.untyped_storage().nbytes() for column in columns) + meter.peak


def _config(name: str, folder: Path) -> ExperimentConfig:
    case = (CASES | PIPELINES)[name]
    weights = folder / name
    if not weights.exists():
        save(case, weights)
    prompts = ["a red circle", "a blue star", "a green square", "a white circle"]
    if case.images:
        prompts = [f"{path} | {text}" for path, text in zip(save_images(folder, 4), prompts, strict=True)]
    return tiny_config(
        weights,
        model={"family": case.family, "weights": str(weights)},
        prompts={"train": prompts[:3], "validation": prompts[3:]},
        sampling=case.sampling | {"num_inference_steps": STEPS},
        evaluation={"num_videos": 2},
    )


def _training_bytes(found: StepEstimate) -> int:
    return found.weights_bytes + found.state_bytes + found.step_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("ltx", "recompute"),
        ("cogvideox", "three steps kept"),
        ("wan", "three steps recomputed"),
        ("wan", "blocks recomputed"),
        ("ltx", "one frame"),
        ("animatediff", "text encoder"),
        ("wan", "one by one"),
        ("svd", "three clips"),
        ("ltx_i2v", "three clips"),
    ],
)
def test_counted_memory_is_that_of_the_training_loop(folder: Path, name: str, setting: str) -> None:
    config = override(_config(name, folder), SETTINGS[setting])
    assert _training_bytes(estimate_step(config)) == pytest.approx(_measured_bytes(config), rel=TOLERANCE)


@pytest.mark.slow
def test_clips_multiply_the_work_and_not_the_memory(folder: Path) -> None:
    config = override(_config("svd", folder), ["rewards.0.frames=first:1"])
    two, four = (estimate_step(override(config, [f"sampling.num_clips={clips}"])) for clips in (2, 4))
    num_videos, branches = config.videos_per_step, 2
    assert two.denoiser_calls == 2 * num_videos * branches * STEPS
    assert four.denoiser_calls == 2 * two.denoiser_calls
    assert four.flops == pytest.approx(2 * two.flops, rel=0.2)  # the last clip is not computed again
    assert four.step_bytes < 1.02 * two.step_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svd", "animatediff", "hunyuan_video", "mochi"])
def test_every_kind_of_family_can_be_counted(folder: Path, name: str) -> None:
    config = _config(name, folder)
    assert _training_bytes(estimate_step(config)) == pytest.approx(_measured_bytes(config), rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ltx_i2v", "sana_video_i2v", "skyreels_v1", "wan_vace", "motif_video", "latte"]
)
def test_families_of_one_pipeline_each_can_be_counted(folder: Path, name: str) -> None:
    config = _config(name, folder)
    assert _training_bytes(estimate_step(config)) == pytest.approx(_measured_bytes(config), rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["kandinsky5", "kandinsky6", "hunyuan_video_15", "ltx2", "hunyuan_video_i2v"]
)
def test_masks_and_numbers_of_tokens_are_known(folder: Path, name: str) -> None:
    """Pipelines whose sizes depend on what the tokenizer returned, or that make sound, too."""
    config = _config(name, folder)
    assert _training_bytes(estimate_step(config)) == pytest.approx(_measured_bytes(config), rel=TOLERANCE)


@pytest.mark.slow
def test_modelscope_with_a_reward_that_has_a_network(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(tiny_pipeline_folder, rewards=[{"reward": "hps", "weights": "shapes:hps"}])
    found = estimate_step(config)
    assert _training_bytes(found) == pytest.approx(_measured_bytes(config), rel=TOLERANCE)
    placed = estimate_step(override(config, ["rewards.0.placement.actor=hps"]))
    assert placed.weights_bytes < 0.9 * found.weights_bytes


def test_the_state_of_the_optimizer_is_counted(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(tiny_pipeline_folder, adapter={"rank": 512}, optimizer={"ema_decay": 0.9})
    model = load_tiny(tiny_pipeline_folder)
    adapter = sum(parameter.nbytes for parameter in model.adapter_parameters())
    assert optimizer_bytes(config, model) == 3 * adapter
    model.add_adapter(config.adapter, 0)
    sizes = [parameter.numel() for parameter in model.adapter_parameters()]
    assert min(sizes) >= 4096
    in_8_bits = override(config, ["optimizer.name=adamw8bit", "optimizer.ema_decay=0"])
    assert optimizer_bytes(in_8_bits, model) == sum(2 * (size + 4 * (size // 256)) for size in sizes)


@pytest.mark.slow
def test_a_count_reads_no_weights(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_pipeline_folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    assert estimate_step(tiny_config(bare)) == estimate_step(tiny_config(tiny_pipeline_folder))


@pytest.mark.slow
def test_deep_truncation_is_extrapolated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four gradient steps, estimated whole and extrapolated from two and three: memory within a per cent,
    work exactly."""
    config = _config("ltx", folder)
    deep = override(config, ["sampling.truncation_depth=4", "sampling.recompute=false"])
    continued = estimate_step(deep)
    monkeypatch.setattr(estimate, "DEPTHS", (3, 4))
    direct = estimate_step(deep)
    assert continued.peak_bytes == pytest.approx(direct.peak_bytes, rel=0.01)
    assert continued.flops == direct.flops
    assert continued.denoiser_calls == direct.denoiser_calls == 4 * 2 * 5  # videos, branches, denoising steps


def test_work_of_a_matrix_product_and_its_gradient() -> None:
    left, right = torch.zeros(3, 4, requires_grad=True), torch.zeros(4, 5, requires_grad=True)
    with OpCounter("cpu") as work:
        (left @ right).sum().backward()
    found = {operation: times for operation, times in work.operations.items() if operation.kind == "matmul"}
    assert sum(operation.flops * times for operation, times in found.items()) == 3 * 2 * 3 * 4 * 5
    forward = 4 * (3 * 4 + 4 * 5 + 3 * 5)
    assert {operation.num_bytes for operation in found} == {forward}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_two_matrix_products_and_its_gradient_five(device: str) -> None:
    """4·S²·D·H per element of the batch; backward: scores again, ∂values, ∂scores, ∂queries, ∂keys."""
    batch, heads, tokens, size = 3, 2, 64, 16
    with meta_device_mode():
        query, key, value = (
            torch.zeros(batch, heads, tokens, size, device=device, requires_grad=True) for _ in range(3)
        )
        with OpCounter(device) as forward:
            result = functional.scaled_dot_product_attention(query, key, value)
        with OpCounter(device) as backward:
            result.sum().backward()
    product = 2 * batch * heads * tokens**2 * size
    assert _matmul_flops(forward) == 2 * product
    assert _matmul_flops(backward) == 5 * product


@pytest.mark.parametrize("masked", [False, True])
def test_queries_of_another_number_than_keys_and_a_mask_are_counted(masked: bool) -> None:
    with meta_device_mode():
        query, key, value = (
            torch.zeros(1, 2, tokens, 16, device=META, requires_grad=True) for tokens in (64, 77, 77)
        )
        mask = torch.ones(1, 1, 64, 77, dtype=torch.bool, device=META) if masked else None
        with OpCounter(META.type) as counter:
            functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    assert _matmul_flops(counter) == 7 * 2 * 2 * 64 * 77 * 16


def test_every_attention_kernel_of_torch_has_a_formula() -> None:
    """Of `scaled_dot_product_attention`: one that a new version of torch adds must not be counted as free."""
    prefix = "aten::_scaled_dot_product_"
    composite = "attention_math"  # its matrix products are counted one by one
    names = (
        name.partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)
    )
    kernels = {name.removeprefix("aten::") for name in names if name != prefix + composite}
    assert len(kernels) > 8
    assert {name for name in kernels if getattr(torch.ops.aten, name) not in trackers.FLOP_FORMULAS} == set()


def _matmul_flops(counter: OpCounter) -> int:
    return sum(
        operation.flops * times
        for operation, times in counter.operations.items()
        if operation.kind == "matmul"
    )


def test_attention_on_meta_keeps_what_fused_kernels_keep() -> None:
    def held(device: torch.device) -> int:
        query, key, value = (torch.zeros(1, 2, 64, 16, device=device, requires_grad=True) for _ in range(3))
        with PeakMemoryTracker(device.type) as meter:
            result = functional.scaled_dot_product_attention(query, key, value)
            assert result.requires_grad
            return meter.now

    with meta_device_mode():
        assert held(META) == held(torch.device("cpu"))


def test_meta_tensors_from_the_host_have_values_and_copies_to_the_host_are_counted() -> None:
    with meta_device_mode() as host:
        mask = torch.tensor([[True, False, True]]).to(META)
        assert (mask.sum() + 1).item() == 3
        assert mask[0].nonzero().shape == (2, 1)
        moved = torch.empty(1000, device=META).to("cpu")
        assert (moved.device.type, moved.shape, host.now) == ("cpu", (1000,), 4000)
        assert moved.to(META).is_meta
        assert host.moved == 8000 + 3  # there and back, and the mask
        del moved
        assert (host.now, host.peak) == (0, 4000)
        with pytest.raises(UserError, match="a size depends on what it computes"):
            torch.empty(3, dtype=torch.long, device=META).max().item()


def test_the_mode_leaves_nothing_behind() -> None:
    """torch caches its constructors, by which ``torch.device`` sets the device of new tensors."""
    _device_constructors.cache_clear()
    with meta_device_mode(), torch.device("meta"):
        torch.zeros(1)
    with torch.device("meta"):
        assert torch.tensor([1.0]).is_meta


def test_masks_select_and_replace_elements_on_meta() -> None:
    """As in Qwen3-VL, which adds features of frames to the tokens of a mask, three times."""
    with meta_device_mode():
        mask = torch.tensor([[True, False, True]]).to(META)
        hidden = torch.zeros(1, 3, 4, device=META, requires_grad=True)
        seen = hidden[mask]
        assert seen.shape == (2, 4)
        copy = hidden.clone()
        copy[mask] = seen + 1
        (gradient,) = torch.autograd.grad(copy.sum(), hidden)
        assert gradient.shape == hidden.shape


def test_videocrafter2_has_its_published_sizes_without_a_checkpoint() -> None:
    """Names and shapes of the published file, but for what is never loaded."""
    model = ModelConfig(family="videocrafter2", weights="VideoCrafter/VideoCrafter2")
    networks, published = checkpoint.meta_networks(model), videocrafter2.layout("published")
    prefix = checkpoint.DENOISER
    expected = {
        name.removeprefix(prefix): shape for name, shape in published.items() if name.startswith(prefix)
    }
    assert {name: tuple(weight.shape) for name, weight in networks.unet.state_dict().items()} == expected
    prefix = checkpoint.TEXT_ENCODER
    expected = {
        name.removeprefix(prefix): shape for name, shape in published.items() if name.startswith(prefix)
    }
    kept = {name: tuple(weight.shape) for name, weight in networks.text_encoder.state_dict().items()}
    assert kept.items() <= expected.items()
    numel = sum(
        torch.Size(shape).numel()
        for name, shape in published.items()
        if name.startswith(checkpoint.AUTOENCODER)
    )
    assert sum(weight.numel() for weight in networks.vae.state_dict().values()) == numel


@pytest.mark.slow
def test_counted_memory_of_open_sora_is_that_of_the_training_loop(tmp_path: Path) -> None:
    weights = opensora.write_weights(tmp_path / "weights")
    model = {"family": "opensora", "weights": str(weights)}
    config = tiny_config(weights, model=model, sampling=opensora.SAMPLING)
    config = override(config, SETTINGS["blocks recomputed"])
    assert _training_bytes(estimate_step(config)) == pytest.approx(_measured_bytes(config), rel=TOLERANCE)


def _fits(num_bytes: float) -> Callable[[int], bool]:
    return lambda needed: needed <= num_bytes


@pytest.mark.slow
def test_a_suggested_setting_makes_it_fit(folder: Path) -> None:
    config = override(_config("ltx", folder), ["sampling.recompute=false", "sampling.truncation_depth=3"])
    found = estimate_step(config)
    less = _fits(0.8 * found.peak_bytes)
    suggestions = suggest_settings(config, found, {"small": less})
    assert set(suggestions) == {"small"}
    again = estimate_step(override(config, suggestions["small"].overrides))
    assert again == suggestions["small"].estimate
    assert less(again.peak_bytes)


@pytest.fixture
def estimate_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[ExperimentConfig], StepEstimate]:
    """Estimate each recipe once; `choose_auto` uses the same estimates."""
    known = dict[str, StepEstimate]()

    def estimate(config: ExperimentConfig) -> StepEstimate:
        key = config.model_dump_json()
        if key not in known:
            known[key] = estimate_step(config)
        return known[key]

    monkeypatch.setattr(auto_tune, "estimate_step", estimate)
    return estimate


@pytest.mark.slow
def test_auto_takes_the_fastest_that_fits(folder: Path) -> None:
    config = override(_config("ltx", folder), ["sampling.recompute=auto"])
    needs = list[int]()

    def under(limit: float) -> Callable[[int], bool]:
        def fits(needed: int) -> bool:
            needs.append(needed)
            return needed < limit

        return fits

    assert choose_auto(config, under(1e12)).sampling.recompute is False
    assert choose_auto(config, under(needs[0])).sampling.recompute is True
    assert needs[0] == needs[1] > needs[2]
    with pytest.raises(UserError, match="no setting fits, the smallest needs"):
        choose_auto(config, under(0))


@pytest.mark.slow
def test_an_automatic_placement_is_used_only_if_the_reward_does_not_fit(
    folder: Path, estimate_once: Callable[[ExperimentConfig], StepEstimate]
) -> None:
    rewards = [
        {"reward": "hps", "weights": "shapes:hps", "placement": "auto"},
        {"reward": "brightness", "placement": "auto"},
    ]
    config = override(_config("ltx", folder), {"rewards": rewards})
    local = without_auto(config)
    placed = with_placements(config, {"rewards.0.placement"})
    peaks = [estimate_once(each).peak_bytes for each in (local, placed)]
    assert peaks[0] > peaks[1]
    assert auto_fields(config) == ["rewards.0.placement", "rewards.1.placement"]
    between = sum(peaks) / 2
    assert choose_auto(config, lambda needed: True) == local
    chosen = choose_auto(config, lambda needed: needed < between, num_free_gpus=1)
    assert [spec.placement is not None for spec in chosen.rewards] == [True, False]
    assert (chosen.rewards[0].placement, auto_fields(chosen)) == (placed.rewards[0].placement, [])
    assert chosen.rewards[0].placement == PlacementConfig(actor="hps", num_gpus=1)
    refused = (
        "the smallest needs .*; for rewards.0.placement, rewards.1.placement the cluster has 0 free GPUs"
    )
    with pytest.raises(UserError, match=refused):
        choose_auto(config, lambda needed: needed < between, num_free_gpus=0)


@pytest.mark.slow
def test_auto_batches_are_as_large_as_fits_and_no_larger_than_the_videos(
    folder: Path, estimate_once: Callable[[ExperimentConfig], StepEstimate]
) -> None:
    automatic = ["runtime.prefix_batch_size=auto", "runtime.micro_batch_size=auto"]
    config = override(_config("ltx", folder), ["videos_per_step=2", *automatic])

    def sizes(limit: float) -> tuple[object, object]:
        runtime = choose_auto(config, lambda needed: needed < limit).runtime
        return runtime.prefix_batch_size, runtime.micro_batch_size

    assert sizes(1e12) == (2, 2)
    assert sizes(0) == (1, 1)
    two = override(config, ["runtime.prefix_batch_size=2", "runtime.micro_batch_size=1"])
    assert sizes(estimate_once(two).peak_bytes + 1) == (2, 1)


def test_seconds_are_a_roofline() -> None:
    device = Device(
        80, half_tflops=100, tf32_tflops=50, single_tflops=10, terabytes_per_second=1, launch_seconds=0
    )
    with OpCounter("cpu") as work:
        torch.zeros(512, 512) @ torch.zeros(512, 512)
    (product,) = [operation for operation in work.operations if operation.kind == "matmul"]
    assert device.seconds({product: 2}) == pytest.approx(2 * 2 * 512**3 / (10e12 * 0.5))
    assert Device(80, 1, 1, 1, 1, launch_seconds=1.0).seconds({product: 2}) == 2.0
    assert all(each.fits(20 * 2**30) and not each.fits(200 * 2**30) for each in DEVICES.values())


@pytest.mark.slow
def test_check_reports_several_devices(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    recipe = str(write_tiny(tmp_path, tiny_pipeline_folder))
    result = CliRunner().invoke(app, ["check", recipe, "--devices", "h100,a10g"])
    assert result.exit_code == 0, result.output
    assert "peak" in result.stdout
    assert all(name in result.stdout for name in ("h100", "a10g"))


@pytest.mark.slow
def test_check_refuses_what_cannot_fit_and_suggests_a_setting(tmp_path: Path) -> None:
    heldout = f"eval_rewards.0.weights={write_pickscore(tmp_path)}"
    plain = ("runtime.activation_checkpointing=none", "sampling.recompute=true")
    command = ["check", "videocrafter2_hps", heldout, *plain, "--devices", "rtx4090"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    setting = "runtime.activation_checkpointing=block"
    message = rf"rtx4090: ([\d.]+) GiB do not fit; {setting} makes it ([\d.]+) GiB, which fit"
    found = re.search(message, result.stderr)
    assert found is not None, result.stderr
    needed, remedied = (int(float(gib) * 2**30) for gib in found.groups())
    assert DEVICES["rtx4090"].fits(remedied)
    assert not DEVICES["rtx4090"].fits(needed)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument is deprecated")
def test_check_knows_its_devices_and_says_what_to_fetch() -> None:
    unknown = CliRunner().invoke(app, ["check", "shapes_hps", "--devices", "abacus"])
    assert unknown.exit_code == 2
    assert "there is no 'abacus'; choose from a10g, a100-40" in unknown.stderr
    absent = CliRunner().invoke(app, ["check", "wan_1_3b_hps", "--devices", "h100"])
    assert absent.exit_code == 2
    assert "run `hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in absent.stderr


@pytest.mark.parametrize("name", ["action", "aesthetic", "pickscore", "vjepa"])
def test_a_reward_does_on_the_meta_device_the_work_that_it_does_on_the_cpu(name: str) -> None:
    def work(device: torch.device) -> tuple[int, torch.Size]:
        reward = rewards.build(RewardConfig(reward=name, weights=f"shapes:{name}"), device=device)
        frames = torch.full((1, 8, 3, 32, 32), 0.5, device=device)
        with OpCounter(device.type) as counter:
            scores, gradient = score_and_gradient(reward, frames, ["a red circle moving left"], 4)
        assert scores.device.type == gradient.device.type == device.type
        return sum(operation.flops * times for operation, times in counter.operations.items()), gradient.shape

    with meta_device_mode():
        counted = work(META)
    assert counted == work(torch.device("cpu"))
    assert counted[0] > 0
