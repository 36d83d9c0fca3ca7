"""VideoCrafter2 against the published network's names, shapes and numbers, and against its own pipeline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from peft import get_peft_model_state_dict
from torch import Tensor

from tests.helpers.nonlinear_rewards import REWARD_TERMS, objective_of
from tests.helpers.paths import TESTS
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import adapter_gradient, randomise_adapter
from tests.helpers.videocrafter2_tiny import (
    SAMPLING,
    inputs,
    layout,
    load_tiny,
    random_weights,
    summary,
    write_checkpoint,
)
from vader_ray import models
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import AdapterConfig, ModelConfig
from vader_ray.models.videocrafter2 import checkpoint as checkpoint_format
from vader_ray.models.videocrafter2.checkpoint import SCHEDULE, Networks
from vader_ray.models.videocrafter2.scheduler import DynamicRescaleDDIMScheduler
from vader_ray.models.videocrafter2.unet import Architecture
from vader_ray.training.inference import evaluate_adapter
from vader_ray.types import TruncationPlan

PROMPTS = ["a red fox leaps over a frozen stream", "two otters juggle pebbles"]
SEEDS = [3, 4]
STEPS, FRAMES = SAMPLING["num_inference_steps"], SAMPLING["num_frames"]
AUTHORS = json.loads((TESTS / "data" / "videocrafter2_outputs.json").read_text())
"""Summaries of what the published code computes with `random_weights` and `inputs`, in float32 on a CPU:
AILab-CVC/ VideoCrafter at 11bcd76, run once beside this project with open_clip 3.3 for its text encoder."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def checkpoint(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("videocrafter2"), weights)


@pytest.fixture(scope="module")
def networks(checkpoint: Path) -> Networks:
    return checkpoint_format.read(checkpoint)


# ---- the checkpoint


def test_the_published_checkpoint_fills_every_weight_by_name_and_shape(weights: dict[str, Tensor]) -> None:
    schedule = {name: value for name, value in weights.items() if name in SCHEDULE}
    state = {
        name: torch.empty(shape, device="meta") for name, shape in layout("published").items()
    } | schedule
    full = checkpoint_format.assemble(
        state, Path("model.ckpt")
    )  # refuses whatever is missing, left over or of another shape
    expected = Architecture(
        4, 4, 320, (1, 2, 4, 4), (True, True, True, False), 2, head_size=64, context_size=1024
    )
    assert full.unet.architecture == expected
    names = {
        "model.diffusion_model." + name: tuple(weight.shape)
        for name, weight in full.unet.state_dict().items()
    }
    assert names.items() <= layout("published").items()
    assert len(full.text_encoder.transformer.resblocks) == 23, (
        "the penultimate of 24 layers is the last that is used"
    )
    assert tuple(full.vae.config.block_out_channels) == (128, 256, 512, 512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.diffusion_model.out.2.weight": None}, r"weights 1 missing \(out.2.weight\)"),
        ({"model.diffusion_model.extra": torch.ones(1)}, r"1 unexpected \(extra\)"),
        (
            {"cond_stage_model.model.ln_final.bias": torch.ones(3)},
            r"1 of another shape \(ln_final.bias \(3,\) instead of \(128,\)",
        ),
        ({"cond_stage_model.model.text_projection": None}, "it has no weight 'text_projection'"),
        ({"first_stage_model.decoder.norm_out.weight": None}, "1 missing"),
        ({"first_stage_model.loss.logvar": torch.ones(())}, "its autoencoder has 1 unexpected weights"),
        ({"model_ema.decay": torch.ones(())}, "1 unexpected weights, such as model_ema.decay"),
        (
            {"model.diffusion_model.init_attn.0.proj_in.bias": None},
            "it has no weight 'init_attn.0.proj_in.bias'",
        ),
        ({"betas": torch.linspace(1e-4, 2e-2, 1000)}, r"another noise schedule \(betas differs\)"),
        ({"scale_arr": torch.ones(1400)}, r"another noise schedule \(scale_arr differs\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_any_other_checkpoint_is_refused_in_one_sentence(
    weights: dict[str, Tensor], change: dict[str, Tensor | None], message: str
) -> None:
    state = {name: value for name, value in (weights | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        checkpoint_format.assemble(state, Path("model.ckpt"))


def test_weights_are_a_file_its_folder_or_a_hub_id(checkpoint: Path, tmp_path: Path) -> None:
    family = models.resolve("videocrafter2")
    assert family.fetch(ModelConfig(family="videocrafter2", weights=str(checkpoint))) == checkpoint
    assert family.fetch(ModelConfig(family="videocrafter2", weights=str(checkpoint.parent))) == checkpoint
    with pytest.raises(ValueError, match=r"model\.ckpt does not exist; give a model\.ckpt, its folder"):
        family.fetch(ModelConfig(family="videocrafter2", weights=str(tmp_path)))
    with pytest.raises(ValueError, match=r"`hf download VideoCrafter/VideoCrafter2 model\.ckpt`"):
        family.fetch(ModelConfig(family="videocrafter2", weights="VideoCrafter/VideoCrafter2"))


# ---- the networks: max relative difference 1e-5, float32 rounding over some hundred layers


@torch.no_grad()
def test_the_denoiser_computes_the_authors_numbers(networks: Networks) -> None:
    given = inputs()
    noise = networks.unet(given["latents"], torch.tensor(481), given["context"], 24).sample
    _assert_authors("denoiser", noise)


@torch.no_grad()
def test_the_text_encoder_computes_the_authors_numbers(networks: Networks) -> None:
    _assert_authors("text", networks.text_encoder(open_clip.SimpleTokenizer()([PROMPTS[0], ""])))


@torch.no_grad()
def test_the_autoencoder_computes_the_authors_numbers(networks: Networks) -> None:
    images = networks.vae.decode(inputs()["latents"].transpose(1, 2).flatten(0, 1)).sample
    _assert_authors("decoder", images)
    _assert_authors("encoder", networks.vae.encode(images[:2]).latent_dist.mean)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("timestep", [961, 201, 1])
def test_a_denoising_step_computes_the_authors_numbers(timestep: int, eta: float) -> None:
    given, scheduler = inputs(), DynamicRescaleDDIMScheduler()
    scheduler.set_timesteps(25)
    assert timestep in scheduler.timesteps
    noise = given["step_noise"] if eta else None
    sample, _ = scheduler.step(
        given["noise"], timestep, given["latents"], eta=eta, variance_noise=noise, return_dict=False
    )
    _assert_authors(f"step {timestep} eta {eta:g}", sample)


def _assert_authors(name: str, values: Tensor) -> None:
    expected = AUTHORS[name]
    assert summary(values) == pytest.approx(expected, rel=0, abs=1e-5 * max(map(abs, expected)))


# ---- sampling


class _Reseeding(DynamicRescaleDDIMScheduler):
    """Draws each video's step noise as `vader_ray.models.core.loop_hooks` does."""

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, **kwargs: Any
    ) -> Any:
        index = self.timesteps.tolist().index(int(timestep))
        generators = [torch.Generator().manual_seed(seed + 7919 * (index + 1)) for seed in SEEDS]
        return super().step(model_output, timestep, sample, **(kwargs | {"generator": generators}))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_video_equals_the_pipelines_own_output_bit_for_bit(checkpoint: Path, eta: float) -> None:
    model = load_tiny(checkpoint, eta=eta)
    ours = model.decoder.decode(model.sample(model.encode(PROMPTS), SEEDS), None, tuple(range(FRAMES)))[0]
    model.pipe.scheduler = _Reseeding()
    theirs = model.pipe(PROMPTS, latents=model.noise(SEEDS), **(SAMPLING | {"eta": eta})).frames
    assert torch.equal(ours, theirs)
    assert ours.std() > 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_prefix_and_finish_equal_uninterrupted_sampling_bit_for_bit(checkpoint: Path, eta: float) -> None:
    model = load_tiny(checkpoint, eta=eta)
    conditioning = model.encode(PROMPTS)
    whole = model.sample(conditioning, SEEDS)
    for graded in ((3,), (2, 3), (0, 1, 2, 3), (1, 3)):
        plan = TruncationPlan(STEPS, graded)
        split = model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
        assert torch.equal(whole, split)
        assert split.requires_grad


def test_prefix_of_two_with_finish_of_one_equals_one_batch(checkpoint: Path) -> None:
    model = load_tiny(checkpoint, precision="float64")
    plan, conditioning = TruncationPlan(STEPS, (2, 3)), model.encode(PROMPTS)
    state = model.sample_prefix(conditioning, plan, SEEDS)
    together = model.sample_with_grad(state, conditioning, plan)
    apart = [
        model.sample_with_grad(state[video : video + 1], conditioning[video : video + 1], plan)
        for video in range(2)
    ]
    torch.testing.assert_close(
        together, torch.cat(apart), rtol=1e-10, atol=1e-10
    )  # float64: only batching differs


def test_the_frame_rate_conditions_the_video(checkpoint: Path) -> None:
    model = load_tiny(checkpoint)
    slow, fast = (
        model.pipe(PROMPTS, latents=model.noise(SEEDS), fps=fps, **(SAMPLING | {"eta": 0.0})).frames
        for fps in (8, 24)
    )
    assert not torch.allclose(slow, fast, atol=1e-3)


def test_bfloat16_denoiser_keeps_float32_adapter_and_sampling(checkpoint: Path) -> None:
    model = load_tiny(checkpoint, precision="bfloat16", chunk_size=FRAMES)
    seen = set[torch.dtype]()
    for layer in model.denoiser.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    plan, conditioning = TruncationPlan(STEPS, (3,)), model.encode(PROMPTS)
    latents = model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
    assert seen == {torch.bfloat16}
    assert latents.dtype == torch.float32
    gradient = adapter_gradient(model, latents.square().sum())
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"height": 12}, r"height=12 and sampling\.width=16 must be multiples of 8"),
        ({"scheduler": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler has no dynamic rescale"),
    ],
)
def test_what_the_model_cannot_sample_is_refused(
    checkpoint: Path, sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_tiny(checkpoint, **sampling).noise(SEEDS)


# ---- the gradient


def _monolithic(model: Any, terms: list[RewardTerm], graded: Sequence[int]) -> Tensor:
    """Plain autograd through a hand-written loop and the whole decoder at once: no hook, no checkpoint, no
    pipeline."""
    unet, vae, scheduler = model.pipe.unet, model.pipe.vae, model.pipe.scheduler
    positive, negative = model.pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    scheduler.set_timesteps(STEPS)
    latents = model.noise(SEEDS)
    for index, timestep in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(index in graded):
            conditional = unet(latents, timestep, positive, 24).sample
            unconditional = unet(latents, timestep, negative, 24).sample
        noise = unconditional + SAMPLING["guidance_scale"] * (conditional - unconditional)
        generators = [torch.Generator().manual_seed(seed + 7919 * (index + 1)) for seed in SEEDS]
        latents = scheduler.step(noise, timestep, latents, eta=1.0, generator=generators).prev_sample
    images = vae.decode(latents.transpose(1, 2).flatten(0, 1) / 0.18215).sample
    frames = (images / 2 + 0.5).clamp(0, 1).unflatten(0, (len(PROMPTS), FRAMES))
    objective = objective_of(terms, frames, PROMPTS)
    return adapter_gradient(model, -0.5 * objective.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graded", "networks"),
    [((3,), None), ((2, 3), None), ((0, 1, 2, 3), None), ((2, 3), ("unet", "text_encoder"))],
    ids=["K=1", "K=2", "K=N", "with the text encoder"],
)
def test_staged_gradient_equals_one_monolithic_graph(
    checkpoint: Path, graded: tuple[int, ...], networks: tuple[str, ...] | None
) -> None:
    model, terms = load_tiny(checkpoint, precision="float64", chunk_size=2), REWARD_TERMS["mix"]
    model.add_adapter(AdapterConfig(rank=2, alpha=4.0, networks=networks), 0)
    randomise_adapter(model)
    seen = [[range(FRAMES)] * len(PROMPTS) for _ in terms]
    rollout = Rollout(PROMPTS, model.encode(PROMPTS), SEEDS, seen)
    accumulate_gradient(model, terms, rollout, TruncationPlan(STEPS, graded), Batching(2, 1, 2), scale=0.5)
    staged = torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])
    expected = _monolithic(model, terms, graded)
    assert expected.norm() > 0
    if networks is not None:
        assert all(
            parameter.grad.any()
            for parameter in model.pipe.text_encoder.parameters()
            if parameter.requires_grad
        )
    assert (
        staged - expected
    ).norm() < 1e-9 * expected.norm()  # float64; the sinusoids and the schedule are float32 in both


def test_gradient_of_the_denoiser_equals_finite_differences(checkpoint: Path) -> None:
    """float64, along a random direction of the adapter: its layers are recomputed in the backward pass, and
    exactly."""
    model, given = (
        load_tiny(checkpoint, precision="float64"),
        {name: value.double() for name, value in inputs().items()},
    )
    randomise_adapter(model)
    parameters = model.adapter_parameters()
    for parameter in parameters:
        parameter.data /= 6  # a strong adapter bends the objective too much for differences

    def objective() -> Tensor:
        noise: Tensor = model.denoiser(given["latents"], torch.tensor(481), given["context"], 24).sample
        return (noise * given["noise"]).sum()

    gradient = adapter_gradient(model, objective())
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = []
    for step in (1e-5, -2e-5):
        for parameter, piece in zip(
            parameters, direction.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.data += step * piece.view_as(parameter)
        values.append(float(objective().detach()))
    # central differences of step 1e-5 are good to about 1e-7 here
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(float(gradient @ direction), rel=1e-5)


# ---- adapters


PREFIX = "base_model.model.model.diffusion_model."
"""Before every name in the authors' adapters: they wrap the whole of their model with peft."""


def _published_adapter(model: Any, seed: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(model.denoiser).items()}
    return {PREFIX + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("adapter_name", ["", ".default"])
def test_a_bare_state_dict_of_the_authors_loads_with_its_rank_and_the_recipes_alpha(
    checkpoint: Path, tmp_path: Path, adapter_name: str
) -> None:
    model = load_tiny(checkpoint)
    adapter = _published_adapter(model)
    torch.save(
        {name.replace(".weight", f"{adapter_name}.weight"): value for name, value in adapter.items()},
        tmp_path / "vader.pt",
    )
    expected = AdapterConfig(rank=2, alpha=4.0, target_modules=("to_k", "to_q", "to_v"))
    assert models.adapter_shape(tmp_path / "vader.pt", bare_alpha=4.0) == expected
    assert models.adapter_shape(tmp_path / "vader.pt").alpha == 8.0, "peft's default, which the authors left"
    before = model.sample(model.encode(PROMPTS), SEEDS)
    model.load_adapter(tmp_path / "vader.pt")
    assert not torch.allclose(before, model.sample(model.encode(PROMPTS), SEEDS), atol=1e-3)
    model.save_adapter(tmp_path / "ours")
    again = load_tiny(checkpoint, seed=1)
    again.load_adapter(tmp_path / "ours")
    loaded = get_peft_model_state_dict(again.denoiser)
    assert all(torch.equal(loaded[name.removeprefix(PREFIX)], value) for name, value in adapter.items())
    assert len(loaded) == len(adapter) == 2 * 3 * sum(name.endswith("to_q.weight") for name in layout("tiny"))


@pytest.mark.slow
def test_a_bare_state_dict_of_another_rank_than_the_recipes_is_evaluated(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = {"family": "videocrafter2", "weights": str(checkpoint)}
    config = tiny_config(checkpoint, model=model, adapter={"rank": 16}, sampling=SAMPLING)
    torch.save(_published_adapter(load_tiny(checkpoint)), tmp_path / "vader.pt")
    before, after = evaluate_adapter(config, None), evaluate_adapter(config, tmp_path / "vader.pt")
    assert before.keys() == after.keys()
    assert before["eval/objective"] != after["eval/objective"]


def test_a_bare_state_dict_that_does_not_fit_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model, file = load_tiny(checkpoint), tmp_path / "vader.pt"
    adapter = _published_adapter(model)
    name = next(name for name in adapter if name.endswith("lora_B.weight"))
    torch.save({key: value for key, value in adapter.items() if key != name}, file)
    with pytest.raises(
        ValueError, match=rf"is damaged or no LoRA: it has .* without {name.removeprefix(PREFIX)}"
    ):
        model.load_adapter(file)
    layer = name.removesuffix("lora_B.weight")
    torch.save({key: value for key, value in adapter.items() if not key.startswith(layer)}, file)
    with pytest.raises(ValueError, match="belongs to another model: 2 tensors differ, the first is"):
        model.load_adapter(file)
    torch.save(
        {key: torch.cat([value, value], dim=int("lora_B" in key)) for key, value in adapter.items()}, file
    )
    with pytest.raises(ValueError, match=r"has rank 4 and alpha .* the model's has rank 2"):
        model.load_adapter(file)
    torch.save({"weight": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="must have layers of one rank"):
        models.adapter_shape(file)
