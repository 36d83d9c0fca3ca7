"""Open-Sora 1.2 against the published networks' names, shapes and numbers, and against its own pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.nonlinear_rewards import REWARD_TERMS, objective_of
from tests.helpers.opensora_tiny import SAMPLING, inputs, layout, load_tiny, random_weights, write_weights
from tests.helpers.paths import TESTS
from tests.helpers.published_layouts import summary
from tests.helpers.tiny import adapter_gradient, randomise_adapter
from vader_ray import models
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.decoding import decode
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import AdapterConfig, ModelConfig
from vader_ray.models import VideoModel
from vader_ray.models.opensora import checkpoint
from vader_ray.models.opensora.denoiser import Architecture
from vader_ray.models.opensora.scheduler import RectifiedFlowScheduler, noise_ratio
from vader_ray.models.opensora.vae import TemporalArchitecture
from vader_ray.types import TruncationPlan

PROMPTS = ["a red circle moving right", "a blue square"]
SEEDS = [3, 4]
STEPS, FRAMES = SAMPLING["num_inference_steps"], SAMPLING["num_frames"]
AUTHORS = json.loads((TESTS / "data" / "opensora_outputs.json").read_text())
"""Summaries of what the published code computes with `random_weights` and `inputs`, in float64 on a CPU:
hpcaitech/Open-Sora at 17cce90 (v1.2.0), run once beside this project with rotary_embedding_torch 0.5.3. Its
conversions to float32 were made conversions to float64, xformers' attention was written out, and modes took
the place of the encoder's samples."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("opensora"))


@pytest.fixture(scope="module")
def networks(weights: Path) -> Any:
    """Denoiser and autoencoder in float64."""
    found = checkpoint.read_networks(ModelConfig(family="opensora", weights=str(weights)))
    return [network.double().eval() for network in found]


@pytest.fixture(scope="module")
def double(weights: Path) -> Any:
    """The model in float64, with an adapter that changes the video."""
    model = load_tiny(weights, precision="float64")
    randomise_adapter(model)
    return model


# ---- the weights


def test_the_published_files_fill_every_weight_by_name_and_shape() -> None:
    with torch.device("meta"):
        model = ModelConfig(family="opensora", weights=checkpoint.DENOISER)
        networks = dict(zip(("transformer", "vae"), checkpoint.read_networks(model), strict=True))
    for part, network in networks.items():
        found = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
        assert found == layout("published", part)
    denoiser, vae = (
        {name: torch.empty(shape, device="meta") for name, shape in layout("published", part).items()}
        for part in ("transformer", "vae")
    )
    assert Architecture.read(denoiser) == checkpoint.PUBLISHED
    temporal = {name.removeprefix("temporal_vae."): weight for name, weight in vae.items()}
    assert TemporalArchitecture.read(temporal) == checkpoint.PUBLISHED_TEMPORAL
    bytes_ = [4 * sum(weight.numel() for weight in part.values()) for part in (denoiser, vae)]
    assert [round(number / 1e7) for number in bytes_] == [484, 157], "4.84 and 1.57 GB on the hub"


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("transformer", "t_block.1.bias", None, r"weights 1 missing \(t_block.1.bias\)"),
        ("transformer", "extra", torch.ones(1), r"1 unexpected \(extra\)"),
        ("transformer", "t_block.1.bias", torch.ones(3), r"t_block.1.bias \(3,\) instead of \(192,\)"),
        (
            "transformer",
            "x_embedder.proj.weight",
            None,
            "not Open-Sora's denoiser: it has no weight 'x_embed",
        ),
        ("vae", "scale", None, r"1 missing \(scale\)"),
        ("vae", "temporal_vae.quant_conv.conv.bias", None, "1 missing"),
        ("vae", "spatial_vae.module.extra", torch.ones(1), "1 unexpected"),
        ("vae", "temporal_vae.encoder.conv_in.conv.weight", None, "not Open-Sora's autoencoder"),
    ],
)
def test_any_other_file_is_refused_in_one_sentence(
    weights: Path, tmp_path: Path, part: str, name: str, value: Tensor | None, message: str
) -> None:
    for each in checkpoint.SUBFOLDERS:
        (tmp_path / each).symlink_to(weights / each)
    state = random_weights(part) | ({} if value is None else {name: value})
    if value is None:
        del state[name]
    (tmp_path / part).unlink()
    (tmp_path / part).mkdir()
    save_file(state, tmp_path / part / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        checkpoint.read_networks(ModelConfig(family="opensora", weights=str(tmp_path)))


def test_the_denoiser_alone_gets_an_adapter(weights: Path) -> None:
    assert models.resolve("opensora").networks_of(ModelConfig(weights=str(weights))) == ["transformer"]
    with pytest.raises(ValueError, match="has no network text_encoder that can get an adapter"):
        load_tiny(weights).add_adapter(AdapterConfig(networks=("text_encoder",)), 0)


def test_weights_are_a_folder_of_the_three_repositories_or_a_hub_id(weights: Path, tmp_path: Path) -> None:
    family = models.resolve("opensora")
    assert family.fetch(ModelConfig(family="opensora", weights=str(weights))) == weights / "transformer"
    with pytest.raises(
        ValueError, match="has no folder transformer or vae or text_encoder; give hpcai-tech/"
    ):
        family.fetch(ModelConfig(family="opensora", weights=str(tmp_path)))
    with pytest.raises(ValueError, match="run `hf download DeepFloyd/t5-v1_1-xxl` where there is internet"):
        family.fetch(ModelConfig(family="opensora", weights=checkpoint.DENOISER))
    with pytest.raises(ValueError, match=r"`hf download hpcai-tech/OpenSora-STDiT-v3 model\.safetensors`"):
        checkpoint.read_networks(ModelConfig(family="opensora", weights=checkpoint.DENOISER))


def test_a_tokenizer_in_its_published_format_loads(weights: Path, tmp_path: Path) -> None:
    """``DeepFloyd/t5-v1_1-xxl`` has no tokenizer but the file of sentencepiece."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install --editable . installs it")
    for each in checkpoint.SUBFOLDERS:
        shutil.copytree(weights / each, tmp_path / each)
    folder = tmp_path / "text_encoder"
    for path in folder.glob("*token*"):
        path.unlink()
    (tmp_path / "words.txt").write_text("\n".join(PROMPTS * 20), encoding="utf-8")
    ids = {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}
    target = str(folder / "spiece")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=target, vocab_size=24, minloglevel=2, **ids
    )
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<pad>"}))
    _, tokenizer = checkpoint.read_text_encoder(ModelConfig(family="opensora", weights=str(tmp_path)))
    expected = sentencepiece.SentencePieceProcessor(f"{target}.model").encode(PROMPTS[0])
    assert tokenizer(PROMPTS[0]).input_ids == [*expected, ids["eos_id"]]


# ---- the networks: float64, tolerance 1e-10 of the largest value


def _assert_authors(name: str, values: Tensor) -> None:
    expected = AUTHORS[name]
    assert summary(values) == pytest.approx(expected, rel=0, abs=1e-10 * max(map(abs, expected)))


def _inputs() -> dict[str, Tensor]:
    given = inputs()
    return {name: value.double() if value.is_floating_point() else value for name, value in given.items()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "fps", "height", "width", "timesteps"),
    [
        ("denoiser 24 276x368", 24, 276, 368, [481.25, 481.25]),
        ("denoiser 120 24x32", 120, 24, 32, [1000.0, 3.5]),
    ],
)
def test_the_denoiser_computes_the_authors_numbers(
    networks: Any, name: str, fps: int, height: int, width: int, timesteps: list[float]
) -> None:
    given, levels = _inputs(), torch.tensor(timesteps, dtype=torch.float64)
    found = networks[0](given["latents"], levels, given["context"], given["mask"], fps, height, width)
    _assert_authors(name, found.sample)


@torch.no_grad()
def test_the_autoencoder_computes_the_authors_numbers(networks: Any) -> None:
    given, vae = _inputs(), networks[1]
    _assert_authors("encoder", vae.encode(given["video"]))
    _assert_authors("decoder", vae.decode(given["latents"][:1], FRAMES))
    _assert_authors("decoder 17", vae.decode(given["latents"][:1, :, :5], 17))


def test_the_scheduler_computes_the_authors_timesteps() -> None:
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(30, ratio=noise_ratio(276, 368, 51))
    _assert_authors("timesteps", scheduler.timesteps)
    assert noise_ratio(512, 512, 1) == 1.0


def test_the_whole_sampling_computes_the_authors_numbers(weights: Path) -> None:
    model, given = load_tiny(weights, precision="float64"), _inputs()
    conditioning = {"prompt_embeds": given["context"], "prompt_attention_mask": given["mask"]}
    arguments = SAMPLING | conditioning | {"latents": given["noise"]}
    latents, frames = _own_call(model, arguments)
    _assert_authors("sampling", latents)
    _assert_authors("video", frames.transpose(1, 2))


# ---- sampling


def test_video_equals_the_pipelines_own_output_bit_for_bit(weights: Path) -> None:
    model = load_tiny(weights, chunk_size=FRAMES)
    latents = model.sample(model.encode(PROMPTS), SEEDS)
    ours, _ = decode(latents, model.decoder, range(FRAMES))
    arguments = {"prompt": PROMPTS, "latents": model.noise(SEEDS), "clean_caption": False}
    theirs, video = _own_call(model, SAMPLING | arguments)
    assert torch.equal(latents, theirs)
    assert ours.shape == (2, FRAMES, 3, 24, 16)
    assert ours.std() > 0.01
    # the image autoencoder gets the frames of one clip at once, and there those of both: another rounding
    torch.testing.assert_close(ours, video, rtol=0, atol=1e-5)


def _own_call(model: Any, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Latents that the pipeline's own call gives to its autoencoder, and its frames."""
    found, vae = list[Tensor](), model.pipe.vae

    def decode_all(latents: Tensor, num_frames: int) -> Tensor:
        found.append(latents)
        decoded: Tensor = type(vae).decode(vae, latents, num_frames)
        return decoded

    vae.decode = decode_all
    frames = model.pipe(**arguments).frames
    del vae.decode
    return found[0], frames


def test_prefix_and_finish_equal_uninterrupted_sampling_bit_for_bit(weights: Path) -> None:
    model = load_tiny(weights)
    conditioning = model.encode(PROMPTS)
    whole = model.sample(conditioning, SEEDS)
    for graded in ((2,), (1, 2), (0, 1, 2), (0, 2)):
        plan = TruncationPlan(STEPS, graded)
        split = model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
        assert torch.equal(whole, split)
        assert split.requires_grad


def test_prefix_of_two_with_finish_of_one_equals_one_batch(double: Any) -> None:
    plan, conditioning = TruncationPlan(STEPS, (1, 2)), double.encode(PROMPTS)
    state = double.sample_prefix(conditioning, plan, SEEDS)
    together = double.sample_with_grad(state, conditioning, plan)
    apart = [
        double.sample_with_grad(state[video : video + 1], conditioning[video : video + 1], plan)
        for video in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-10, atol=1e-10)  # only batching differs


def test_a_loaded_pipeline_equals_the_recipe(weights: Path) -> None:
    recipe = load_tiny(weights)
    expected = recipe.sample(recipe.encode(PROMPTS), SEEDS)
    model = VideoModel.from_pipeline(recipe.pipe, lora_rank=2, lora_alpha=4.0, **SAMPLING)
    assert type(model) is type(recipe)
    assert torch.equal(model.sample(model.encode(PROMPTS), SEEDS), expected)


def test_rate_and_size_and_prompt_condition_the_video(double: Any) -> None:
    first = double.pipe(PROMPTS, latents=double.noise(SEEDS), clean_caption=False, **SAMPLING).frames
    for change in ({"fps": 8}, {"height": 31}, {"aesthetic_score": 4.0}, {"motion_score": 5.0}):
        arguments = {"latents": double.noise(SEEDS), "clean_caption": False} | SAMPLING | change
        assert not torch.allclose(first, double.pipe(PROMPTS, **arguments).frames, atol=1e-6), change


def test_a_score_is_appended_to_prompts_that_have_none(double: Any) -> None:
    embed = double.pipe.encode_prompt
    plain, _, _ = embed(["a cat aesthetic score: 6.5."], aesthetic_score=None, clean_caption=False)
    assert torch.equal(embed(["a cat"], clean_caption=False)[0], plain)
    assert torch.equal(embed(["a cat aesthetic score: 6.5."], clean_caption=False)[0], plain)
    own, _, _ = embed(["a cat aesthetic score: 7.0."], clean_caption=False)
    assert not torch.equal(own, plain)


def test_tokens_after_the_prompt_have_no_effect(double: Any) -> None:
    conditioning = double.encode(PROMPTS)
    mask = conditioning.tensors["prompt_attention_mask"]
    assert 0 < mask.sum() < mask.numel()
    before = double.sample(conditioning, SEEDS)
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        column = conditioning.tensors[name]
        conditioning.tensors[name] = torch.where(mask[..., None] == 1, column, torch.randn_like(column))
    assert torch.equal(before, double.sample(conditioning, SEEDS))


def test_bfloat16_denoiser_keeps_float32_adapter_and_sampling(weights: Path) -> None:
    model = load_tiny(weights, precision="bfloat16")
    randomise_adapter(model)
    seen = set[torch.dtype]()
    for layer in model.denoiser.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, inputs, output: seen.add(output.dtype))
    plan, conditioning = TruncationPlan(STEPS, (2,)), model.encode(PROMPTS)
    latents = model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
    assert torch.bfloat16 in seen
    assert latents.dtype == torch.float32
    gradient = adapter_gradient(model, latents.square().sum())
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"height": 20}, r"height=20 and sampling\.width=16 must be multiples of 8"),
        ({"num_frames": 16}, "num_frames=16: this model makes 1 frame or at least 17"),
        ({"scheduler": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler has no timestep transform"),
        ({"negative_prompt": "blurry"}, "guidance has a learnt embedding in its place"),
        ({"eta": 1.0}, "has no effect on RectifiedFlowScheduler"),
        ({"prefix_cache": "first_block:0.1"}, "diffusers cannot cache the features of STDiT3"),
    ],
)
def test_what_the_model_cannot_sample_is_refused(
    weights: Path, sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_tiny(weights, **sampling).noise(SEEDS)


def test_the_schedule_is_that_of_a_flow(double: Any) -> None:
    schedule = double.sampling_schedule(double.encode(PROMPTS[:1]))
    levels = double.pipe.scheduler.sigmas.tolist()
    changes = [after - before for before, after in pairwise(levels)]
    assert schedule.noise_levels == pytest.approx(levels[:-1], rel=1e-12)
    assert schedule.coefficients == pytest.approx(changes, rel=1e-12)
    double.check_endings()


def test_one_frame_is_an_image(weights: Path) -> None:
    model = load_tiny(weights, num_frames=1)
    latents = model.sample(model.encode(PROMPTS), SEEDS)
    assert latents.shape == (2, 4, 1, 3, 2)
    frames, indices = decode(latents, model.decoder, [0])
    assert (frames.shape, indices) == ((2, 1, 3, 24, 16), [0])


# ---- the decoder


@pytest.mark.parametrize(
    ("chunk_size", "wanted"),
    [(1, [0]), (1, [16, 17]), (4, [3, 9, 20, 21]), (4, list(range(FRAMES))), (17, list(range(FRAMES)))],
)
def test_any_frames_are_those_of_the_whole_video(double: Any, chunk_size: int, wanted: list[int]) -> None:
    vae, latents = double.pipe.vae, _inputs()["noise"].requires_grad_()
    stream = type(double.decoder)(vae, FRAMES, chunk_size)
    frames, indices = decode(latents, stream, wanted)
    assert indices == wanted
    assert all(len(chunk) <= chunk_size for chunk in stream.chunks(latents, wanted))
    whole = (vae.decode(latents, FRAMES) / 2 + 0.5).clamp(0, 1).transpose(1, 2)[:, wanted]
    torch.testing.assert_close(frames, whole, rtol=0, atol=1e-10)  # float64; images in other batches
    weight = torch.randn(whole.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (found,), (expected,) = (
        torch.autograd.grad((video * weight).sum(), latents) for video in (frames, whole)
    )
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-10 * expected.norm()


def test_given_videos_are_encoded_as_by_the_published_autoencoder(double: Any) -> None:
    video = _inputs()["video"]
    frames = (video / 2 + 0.5).transpose(1, 2)
    _assert_authors("encoder", double.encode_videos(frames, [3]).samples[0])


def test_latents_of_a_clip_are_decoded_once(double: Any) -> None:
    calls = list[int]()
    hook = double.pipe.vae.temporal_vae.decoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        decode(_inputs()["noise"], type(double.decoder)(double.pipe.vae, FRAMES, 2), range(FRAMES))
    hook.remove()
    assert len(calls) == 2


# ---- the gradient


def _monolithic(model: Any, terms: list[RewardTerm], graded: Sequence[int]) -> Tensor:
    """Plain autograd through a hand-written loop and the whole decoder at once: no hook, no checkpoint, no
    pipeline."""
    denoiser, vae = model.pipe.transformer, model.pipe.vae
    columns = model.encode(PROMPTS).tensors
    size = {"fps": 24, "height": SAMPLING["height"], "width": SAMPLING["width"]}
    ratio = (size["height"] * size["width"] / 512**2 * (FRAMES // 17 * 5)) ** 0.5
    levels = [ratio * t / (1 + (ratio - 1) * t) for t in (1.0, 2 / 3, 1 / 3)] + [0.0]
    latents = model.noise(SEEDS)
    for index in range(STEPS):
        timestep = torch.full((2,), 1000 * levels[index], dtype=torch.float64)
        with torch.set_grad_enabled(index in graded):
            conditional, unconditional = (
                denoiser(latents, timestep, columns[name], columns["prompt_attention_mask"], **size).sample
                for name in ("prompt_embeds", "negative_prompt_embeds")
            )
        velocity = unconditional + SAMPLING["guidance_scale"] * (conditional - unconditional)
        latents = latents + (levels[index] - levels[index + 1]) * velocity
    frames = (vae.decode(latents, FRAMES) / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    return adapter_gradient(model, -0.5 * objective_of(terms, frames, PROMPTS).sum())


@pytest.mark.parametrize("graded", [(2,), (1, 2), (0, 1, 2)], ids=["K=1", "K=2", "K=N"])
def test_staged_gradient_equals_one_monolithic_graph(double: Any, graded: tuple[int, ...]) -> None:
    terms = REWARD_TERMS["mix"]
    for parameter in double.adapter_parameters():
        parameter.grad = None
    seen = [[range(FRAMES)] * len(PROMPTS) for _ in terms]
    rollout = Rollout(PROMPTS, double.encode(PROMPTS), SEEDS, seen)
    accumulate_gradient(double, terms, rollout, TruncationPlan(STEPS, graded), Batching(2, 1, 2), scale=0.5)
    staged = torch.cat([parameter.grad.flatten() for parameter in double.adapter_parameters()])
    expected = _monolithic(double, terms, graded)
    assert expected.norm() > 0
    # float64; the sinusoids of the timesteps are float32 in both, and of equal numbers
    assert (staged - expected).norm() < 1e-9 * expected.norm()


def test_gradient_of_all_steps_is_the_difference_quotient_of_the_pipelines_own_videos(double: Any) -> None:
    """Along a random direction of the adapter; nothing of this project's loop computes the two videos."""
    terms, graded = REWARD_TERMS["mix"], (0, 1, 2)
    gradient = _monolithic(double, terms, graded)
    weights = torch.nn.utils.parameters_to_vector(double.adapter_parameters()).detach()
    direction = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def objective(size: float) -> float:
        torch.nn.utils.vector_to_parameters(weights + size * direction, double.adapter_parameters())
        noise = double.noise(SEEDS)
        frames = double.pipe(PROMPTS, latents=noise, clean_caption=False, **SAMPLING).frames
        return float(-0.5 * objective_of(terms, frames, PROMPTS).sum())

    quotient = (objective(1e-7) - objective(-1e-7)) / 2e-7
    objective(0.0)
    # so small a step that no pixel reaches or leaves the range in which it is clamped
    assert quotient == pytest.approx(float(gradient @ direction), rel=1e-5)


@pytest.mark.parametrize("kind", ["block", "attention"])
def test_recomputed_blocks_give_the_same_gradient(weights: Path, kind: Any) -> None:
    found = []
    for applied in ("none", kind):
        model = load_tiny(weights)
        randomise_adapter(model)
        model.apply_memory_optimizations(applied, compile_blocks=False)
        plan, conditioning = TruncationPlan(STEPS, (1, 2), recompute=False), model.encode(PROMPTS)
        latents = model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
        frames, _ = decode(latents, model.decoder, [5, 20])
        found.append(adapter_gradient(model, frames.square().sum()))
    assert torch.equal(*found)
    assert found[0].norm() > 0


# ---- adapters


def test_a_saved_adapter_gives_the_same_video(weights: Path, tmp_path: Path) -> None:
    model = load_tiny(weights)
    before = model.sample(model.encode(PROMPTS), SEEDS)
    randomise_adapter(model)
    trained = model.sample(model.encode(PROMPTS), SEEDS)
    model.save_adapter(tmp_path / "saved")
    models.export_adapter(tmp_path / "saved", "peft", tmp_path / "exported")
    again = load_tiny(weights, seed=1)
    again.load_adapter(tmp_path / "exported")
    assert torch.equal(again.sample(again.encode(PROMPTS), SEEDS), trained)
    with model.without_adapter():
        assert torch.equal(model.sample(model.encode(PROMPTS), SEEDS), before)
    plain = load_tiny(weights).pipe
    models.load_adapter(plain, tmp_path / "exported")
    theirs = plain(PROMPTS, latents=model.noise(SEEDS), clean_caption=False, **SAMPLING).frames
    ours, _ = decode(trained, model.decoder, range(FRAMES))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="ComfyUI"):
        models.export_adapter(tmp_path / "saved", "comfyui", tmp_path / "comfyui")


def test_a_bare_state_dict_of_the_authors_loads(weights: Path, tmp_path: Path) -> None:
    """``peft.get_peft_model_state_dict`` of the wrapped denoiser, as the authors' training saves it."""
    model, generator = load_tiny(weights), torch.Generator().manual_seed(7)
    shapes = {name: weight.shape for name, weight in get_peft_model_state_dict(model.denoiser).items()}
    adapter = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save({f"base_model.model.{name}": value for name, value in adapter.items()}, tmp_path / "vader.pt")
    expected = AdapterConfig(rank=2, alpha=4.0, target_modules=("kv_linear", "q_linear", "qkv"))
    assert models.adapter_shape(tmp_path / "vader.pt", bare_alpha=4.0) == expected
    model.load_adapter(tmp_path / "vader.pt")
    loaded = get_peft_model_state_dict(model.denoiser)
    assert all(torch.equal(loaded[name], value) for name, value in adapter.items())
    layers = [name for name in layout("tiny", "transformer") if name.startswith(("spatial_b", "temporal_b"))]
    ends = ("qkv.weight", "q_linear.weight", "kv_linear.weight")
    assert len(adapter) == 2 * sum(name.endswith(ends) for name in layers) == 24
