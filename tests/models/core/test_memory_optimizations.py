"""Levers between memory and time: the exact ones change no gradient, the cache changes only the prefix."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import videocrafter2_tiny as videocrafter2
from tests.helpers.families import CASES, Case, save, wan_pipeline, wan_transformer
from tests.helpers.family_runs import SEEDS, STEPS, encode_prompts, load_case
from tests.helpers.pipeline_cases import PIPELINES
from tests.helpers.tiny import load_tiny, randomise_adapter
from vader_ray.alignment.decoding import decode_all
from vader_ray.alignment.truncation import draw_plan
from vader_ray.models.core import memory_optimizations
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.types import TruncationPlan

DEEP = Case(
    "wan",
    lambda: wan_pipeline(transformer=wan_transformer(num_layers=6)),
    CASES["wan"].sampling | {"height": 32, "width": 32},
)
KINDS = ("none", "block", "attention")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(DEEP, tmp_path_factory.mktemp("deep_wan"))


def _gradient(model: Any, plan: TruncationPlan, images: Any = None) -> tuple[Tensor, int]:
    """The gradient of something nonlinear, and the most bytes that its graph took."""
    conditioning = model.encode(["a star"], images)
    state = model.sample_prefix(conditioning, plan, SEEDS[:1])
    with PeakMemoryTracker() as meter:
        model.sample_with_grad(state, conditioning, plan).double().sin().sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.adapter_parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients]), meter.peak


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["nested", "earlier", False])
def test_recomputed_blocks_have_the_same_gradient_in_less_memory(wan: Path, recompute: Any) -> None:
    found = {}
    for kind in KINDS:
        model = load_case(DEEP, wan)
        model.apply_memory_optimizations(kind, compile_blocks=False)
        whole = True if recompute == "nested" and kind == "none" else recompute
        found[kind] = _gradient(model, TruncationPlan(STEPS, (1, 2), recompute=whole))
    assert all(
        torch.equal(found[kind][0], found["none"][0]) for kind in KINDS
    )  # the same kernels in the same order
    assert found["none"][0].abs().max() > 0
    assert found["block"][1] < 0.5 * found["none"][1]
    assert found["block"][1] < found["attention"][1] < 0.7 * found["none"][1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_recomputed_blocks_of_unets(tiny_pipeline_folder: Path, tmp_path: Path, kind: Any) -> None:
    """UNets have no checkpointing of the library's, or one of their residual blocks alone."""
    checkpoint = videocrafter2.write_checkpoint(tmp_path, videocrafter2.random_weights())
    loaders: tuple[Callable[[], Any], ...] = (
        lambda: load_tiny(tiny_pipeline_folder),
        lambda: videocrafter2.load_tiny(checkpoint),
    )
    for load in loaders:
        found = []
        for applied in ("none", kind):
            model = load()
            randomise_adapter(model)
            model.apply_memory_optimizations(applied, compile_blocks=False)
            found.append(
                _gradient(model, TruncationPlan(model.sampling.num_inference_steps, (3,), recompute=False))
            )
        assert torch.equal(found[0][0], found[1][0])
        assert found[1][1] < 0.7 * found[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kandinsky5", "kandinsky6", "latte", "wan_vace"])
def test_recomputed_blocks_of_transformers_with_several_kinds_of_blocks(tmp_path: Path, name: str) -> None:
    case, found = PIPELINES[name], []
    folder = save(case, tmp_path)
    for kind in KINDS[:2]:
        model = load_case(case, folder)
        model.apply_memory_optimizations(kind, compile_blocks=False)
        found.append(_gradient(model, TruncationPlan(STEPS, (1, 2), recompute=False)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1] < 0.9 * found[0][1]


ALWAYS_RECOMPUTED = ("HunyuanVideoStream", "LTXStream", "MochiStream")


@pytest.mark.parametrize("name", sorted(CASES))
def test_recomputed_blocks_of_decoders(tmp_path: Path, name: str) -> None:
    """Bit for bit the same gradient; in less memory also where every chunk but the last is decoded again."""
    folder, found = save(CASES[name], tmp_path), []
    for kind in KINDS[:2]:
        model = load_case(CASES[name], folder)
        model.apply_memory_optimizations(kind, compile_blocks=False)
        decoder, (_, *sizes) = model.decoder, model.latent_shape()
        channels = model.pipe.vae.config.get("z_dim") or model.pipe.vae.config.latent_channels
        noise = torch.randn(1, channels, *sizes, generator=torch.Generator().manual_seed(0))
        latents = noise.requires_grad_()
        with PeakMemoryTracker() as meter:
            decode_all(latents, decoder).double().sin().sum().backward()
        assert latents.grad is not None
        found.append((latents.grad, meter.peak))
    (expected, before), (gradient, after) = found
    assert torch.equal(gradient, expected)
    is_the_same = type(decoder).__name__ in ALWAYS_RECOMPUTED
    assert after == before if is_the_same else after < 0.75 * before


@pytest.fixture(scope="module")
def wide_wan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, int]:
    """A model whose activations are far larger than its latents, as in real ones, with eight denoising steps;
    and the peak with one gradient step."""
    case = Case(
        "wan",
        lambda: wan_pipeline(transformer=wan_transformer(num_layers=6, ffn_dim=2048)),
        DEEP.sampling | {"num_inference_steps": 8},
    )
    model = load_case(case, save(case, tmp_path_factory.mktemp("wide_wan")))
    return model, _gradient(model, draw_plan(model.sampling, torch.Generator()))[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("last", 5),
        ("drtune", 5),
        ("refl", 1),
        ("sparse", 5),
        ("bridge", 5),
        ("leap", 1),
        ("lagrange", 1),
        ("velocity_matching", 5),
        ("ode_adjoint", 5),
    ],
)
def test_five_gradient_steps_need_the_memory_of_one(wide_wan: tuple[Any, int], name: str, depth: int) -> None:
    """Of each step, the backward pass keeps the inputs alone."""
    model, one = wide_wan
    sampling = model.sampling.model_copy(update={"truncation": name, "truncation_depth": depth})
    conditioning, generator = model.encode(["a star"]), torch.Generator().manual_seed(1)
    plan = draw_plan(sampling, generator, lambda: model.sampling_schedule(conditioning))
    gradient, several = _gradient(model, plan)
    assert gradient.abs().max() > 0
    assert several <= 1.03 * one


@pytest.mark.parametrize("name", [*sorted(CASES), *(pytest.param(name, marks=SLOW) for name in PIPELINES)])
def test_every_attention_of_every_family_lies_in_one_block(tmp_path: Path, name: str) -> None:
    case = (CASES | PIPELINES)[name]
    model = load_case(case, save(case, tmp_path))
    inside = [id(part) for block in model.blocks() for part in block.modules()]
    assert len(set(inside)) == len(inside), "no block lies within another"
    queries = [
        part
        for denoiser in model.denoisers().values()
        for place, part in denoiser.named_modules()
        if place.endswith(("attn.to_q", "attn1.to_q", "to_query"))
    ]  # Mochi also pools its text by attention, outside of its blocks
    assert queries
    assert {id(part) for part in queries} <= set(inside)


class _Attentions(TorchDispatchMode):
    """How often attention was really computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def test_attention_is_not_computed_again(wan: Path) -> None:
    calls = {}
    for kind in KINDS:
        model = load_case(DEEP, wan)
        model.apply_memory_optimizations(kind, compile_blocks=False)
        with _Attentions() as counter:
            _gradient(model, TruncationPlan(STEPS, (2,), recompute="earlier"))
        calls[kind] = counter.count
    assert calls["attention"] == calls["none"] < calls["block"]


@pytest.mark.parametrize(
    ("recompute", "kind", "expected"),
    [
        (True, "none", 4),
        ("earlier", "none", 2),
        (False, "block", 4),
        (True, "block", 4),
        (True, "attention", 4),
        ("nested", "block", 8),
    ],
)
def test_no_gradient_step_is_computed_more_often_than_needed(
    wan: Path, recompute: Any, kind: Any, expected: int
) -> None:
    """Two gradient steps with two branches of guidance: four calls, and those of the backward pass.

    Only ``nested`` computes a step a third time, for memory.
    """
    gradients, calls = [], []
    for settings in ((False, "none"), (recompute, kind)):
        model, count = load_case(DEEP, wan), [0]
        model.denoiser.blocks[0].attn1.to_q.base_layer.register_forward_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        model.apply_memory_optimizations(settings[1], compile_blocks=False)
        gradients.append(_gradient(model, TruncationPlan(STEPS, (1, 2), recompute=settings[0]))[0])
        calls.append(count[0])
    assert torch.equal(*gradients)
    assert calls[1] - calls[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "block"])
def test_compiled_blocks_agree(wan: Path, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """aot_eager traces and differentiates blocks as inductor does, and runs the library's own kernels:
    float32 rounding."""
    plain, model = (load_case(DEEP, wan) for _ in range(2))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    memory_optimizations.compile_blocks(model.blocks())
    model.apply_memory_optimizations(kind, compile_blocks=False)
    plan = TruncationPlan(STEPS, (1, 2))
    expected, found = (_gradient(each, plan)[0] for each in (plain, model))
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.slow
def test_the_cache_acts_on_the_prefix_alone(wan: Path) -> None:
    """A threshold of almost nothing changes nothing; a large one the latents, but not what the graded steps
    make of them."""
    plan, latents, calls = TruncationPlan(STEPS, (2,)), {}, {}
    for rule in ("none", "first_block:0.000001", "first_block:0.9"):
        case = Case(DEEP.family, DEEP.build, DEEP.sampling | {"prefix_cache": rule})
        model, count = load_case(case, wan), [0]
        model.denoiser.blocks[3].attn1.to_q.base_layer.register_forward_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        conditioning = encode_prompts(model, [])
        state = model.sample_prefix(conditioning, plan, SEEDS)
        latents[rule], calls[rule] = state.schedulers[0].outputs[0], count[0]
        finished = model.sample_with_grad(state, conditioning, plan)
        assert count[0] == calls[rule] + 2, "both branches of the graded step ran in full"
        assert not model.denoiser.is_cache_enabled
        assert torch.equal(finished, load_case(DEEP, wan).sample_with_grad(state, conditioning, plan))
        assert torch.equal(
            model.sample(conditioning, SEEDS), load_case(DEEP, wan).sample(conditioning, SEEDS)
        )
    none, small, large = latents.values()
    assert torch.equal(none, small)
    assert not torch.equal(none, large)
    assert calls["first_block:0.9"] < calls["none"]


def test_a_denoiser_without_cache_is_refused(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"cannot cache the features of UNet3DConditionModel, only of transformers; set sampling",
    ):
        load_tiny(tiny_pipeline_folder, prefix_cache="first_block:0.1")
