"""Adapters on text encoders and on one of two denoisers: gradients, files, and what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

import vader_ray
from tests.helpers.families import CASES, save
from tests.helpers.family_runs import PROMPTS, SEEDS, STEPS, freeze, load_case, one_graph, own_call
from tests.helpers.nonlinear_rewards import ClipReward
from tests.helpers.pipeline_cases import PIPELINES
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import load_tiny, randomise_adapter
from tests.helpers.training import Keeper, file_contents
from vader_ray import models
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import AdapterConfig, ExperimentConfig
from vader_ray.errors import UserError
from vader_ray.models.adapters import lora
from vader_ray.training.experiment import build
from vader_ray.training.inference import evaluate_adapter
from vader_ray.training.loop import train
from vader_ray.training.model_cache import ModelCache
from vader_ray.training.resolve import resolve_names
from vader_ray.training.trainer import Trainer
from vader_ray.types import TruncationPlan

TEXT = ("unet", "text_encoder")
EVERY_CASE = CASES | PIPELINES


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: save(EVERY_CASE[name], tmp_path_factory.mktemp(name)))


def _load(folders: Any, name: str, networks: tuple[str, ...]) -> Any:
    case = EVERY_CASE[name]
    return load_case(case, folders(name), case.schedulers[0], case.precision, networks=networks)


def _gradient(model: Any, grad_steps: tuple[int, ...], num_frames: int) -> Tensor:
    """The gradient of training, of the adapter's parameters in their order."""
    for parameter in model.adapter_parameters():
        parameter.grad = None
    rollout = Rollout(PROMPTS[:1], model.encode(PROMPTS)[0:1], SEEDS[:1], [[tuple(range(num_frames))]])
    plan = TruncationPlan(model.sampling.num_inference_steps, grad_steps)
    accumulate_gradient(model, [RewardTerm("clip", ClipReward())], rollout, plan, Batching(), scale=1.0)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.adapter_parameters()]
    return torch.cat([grad.flatten() for grad in grads]).double()


def _split(model: Any, gradient: Tensor) -> dict[str, Tensor]:
    """The part of each network."""
    sizes = {
        name: sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        for name, network in model.adapted_networks().items()
    }
    return dict(zip(sizes, gradient.split(list(sizes.values())), strict=True))


# ---- text encoders: the gradient


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("animatediff", TEXT),
        ("animatediff", ("text_encoder",)),
        pytest.param("animatediff_sdxl", (*TEXT, "text_encoder_2"), marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_that_of_one_graph(folders: Any, name: str, networks: tuple[str, ...]) -> None:
    """For K = 1, 2 and N, through both guidance branches, which encode prompt and negative prompt.

    The graph is that of the pipeline's own call, text encoder included, without any hook.
    """
    case, model = EVERY_CASE[name], _load(folders, name, networks)
    assert tuple(model.adapted_networks()) == networks
    for grad_steps in ((2,), (1, 2), (0, 1, 2)):
        found = _gradient(model, grad_steps, case.sampling["num_frames"])
        expected = one_graph(case, model, [], grad_steps)
        assert all(part.norm() > 0 for part in _split(model, expected).values())
        assert (found - expected).norm() < case.tolerance * expected.norm(), f"K={len(grad_steps)}"


def test_the_gradient_of_a_text_encoders_weight_is_a_difference_quotient(tiny_pipeline_folder: Path) -> None:
    """float64, through all denoising steps; a central difference of 1e-5 is good to about 1e-8 here."""
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    model.add_adapter(AdapterConfig(rank=2, alpha=4.0, networks=TEXT), 0)
    randomise_adapter(model)
    conditioning, plan = model.encode(PROMPTS[:1]), TruncationPlan(5, (0, 1, 2, 3, 4))

    def objective() -> Tensor:
        latents = model.sample_with_grad(model.sample_prefix(conditioning, plan, [3]), conditioning, plan)
        return latents.sin().sum()

    weights = [each for each in model.pipe.text_encoder.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(objective(), weights)
    largest = max(range(len(weights)), key=lambda index: float(gradients[index].abs().max()))
    place, values = int(gradients[largest].abs().argmax()), []
    for change in (1e-5, -2e-5):
        weights[largest].data.view(-1)[place] += change
        values.append(float(objective().detach()))
    expected = (values[0] - values[1]) / 2e-5
    assert abs(expected) > 1e-3
    assert float(gradients[largest].flatten()[place]) == pytest.approx(expected, rel=1e-6)


def test_the_negative_prompts_gradient_reaches_the_text_encoder(tiny_pipeline_folder: Path) -> None:
    """With guidance 2 and equal prompts, the branches have weights 2 and −1: without the negative one it
    would be twice the gradient without guidance."""
    prompt, plan, found = "a red circle", TruncationPlan(5, (4,)), list[Tensor]()
    for guidance_scale in (1.0, 2.0):
        model = load_tiny(
            tiny_pipeline_folder,
            precision="float64",
            guidance_scale=guidance_scale,
            negative_prompt=prompt,
        )
        model.add_adapter(AdapterConfig(rank=2, alpha=4.0, networks=("text_encoder",)), 0)
        randomise_adapter(model)
        conditioning = model.encode([prompt])
        state = model.sample_prefix(conditioning, plan, [3])
        latents = model.sample_with_grad(state, conditioning, plan)
        gradients = torch.autograd.grad(latents.sin().sum(), model.adapter_parameters())
        found.append(torch.cat([each.flatten() for each in gradients]))
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-12)


# ---- text encoders: the model


def test_without_the_adapter_prompts_are_encoded_by_the_pretrained_text_encoder(
    tiny_pipeline_folder: Path,
) -> None:
    model = load_tiny(tiny_pipeline_folder)
    base = model.sample(model.encode(PROMPTS), SEEDS)
    model.add_adapter(AdapterConfig(rank=2, alpha=4.0, networks=("text_encoder",)), 0)
    randomise_adapter(model)
    model.free_text_encoders()  # a trained one stays
    conditioning = model.encode(PROMPTS)
    trained = model.sample(conditioning, SEEDS)
    assert (trained - base).abs().max() > 1e-3
    with model.without_adapter():
        assert torch.equal(model.sample(conditioning, SEEDS), base)
    assert torch.equal(model.sample(conditioning, SEEDS, [0.0] * 5), base)
    assert torch.equal(model.sample(conditioning, SEEDS, [1.0] * 5), trained)
    model.add_adapter(AdapterConfig(rank=2), 0)
    assert torch.equal(model.sample(model.encode(PROMPTS), SEEDS), base)


def test_a_trained_text_encoder_is_whole_on_each_worker(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder)
    assert model.pipe.text_encoder in [each.network for each in model.sharded_networks()]
    model.add_adapter(AdapterConfig(networks=TEXT), 0)
    assert [each.network for each in model.sharded_networks()] == [model.pipe.unet]


def test_a_bfloat16_text_encoder_has_a_float32_adapter(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="bfloat16")
    model.add_adapter(AdapterConfig(rank=2, networks=TEXT), 0)
    randomise_adapter(model)
    conditioning, plan = model.encode(PROMPTS), TruncationPlan(5, (3, 4))
    latents = model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
    latents.square().mean().backward()
    assert latents.dtype == torch.float32
    weights = [each for each in model.pipe.text_encoder.parameters() if each.requires_grad]
    assert {each.dtype for each in weights} == {torch.float32}
    assert all(each.grad is not None and each.grad.isfinite().all() for each in weights)
    assert any(each.grad is not None and each.grad.any() for each in weights)


def test_a_text_encoder_that_was_freed_is_loaded_again_for_a_run_that_trains_it(
    tiny_pipeline_folder: Path,
) -> None:
    plain = tiny_config(tiny_pipeline_folder)
    trained = tiny_config(tiny_pipeline_folder, adapter={"rank": 2, "networks": list(TEXT)})
    cache = ModelCache()
    build(plain, cache=cache)
    first = build(trained, cache=cache)
    assert build(trained, cache=cache).model is first.model
    assert len(first.model.adapter_parameters()) > len(build(plain).model.adapter_parameters())


@pytest.mark.slow
def test_a_resumed_run_equals_the_straight_run_bit_for_bit(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_pipeline_folder, num_steps=4, adapter={"rank": 2, "networks": list(TEXT)})
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    train(config, on_step=straight)
    train(config, on_step=resumed, resume_from=tmp_path / "straight" / "2")
    contents = file_contents(tmp_path / "straight" / "4" / "adapter")
    assert contents == file_contents(tmp_path / "resumed" / "4" / "adapter")
    assert "text_encoder/adapter_model.safetensors" in contents
    weights = load_file(
        tmp_path / "straight" / "4" / "adapter" / "text_encoder" / "adapter_model.safetensors"
    )
    assert all(value.any() for name, value in weights.items() if "lora_B" in name)
    again = evaluate_adapter(tiny_config(tiny_pipeline_folder), tmp_path / "straight" / "4" / "adapter")
    name = "eval/reward/brightness"
    assert again[name] == straight.reports[-1].metrics[name]


# ---- text encoders: files


def _frames(model: Any, name: str, pipe: Any) -> Tensor:
    model.pipe = freeze(pipe)
    frames: Tensor = own_call(EVERY_CASE[name], model, [], slice(0, 1), type(pipe).__call__)
    return frames


def _plain(folder: Path) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _trained(folders: Any, name: str, networks: tuple[str, ...], folder: Path) -> tuple[Any, Tensor]:
    """Save a random adapter in float32; return the model and its video."""
    case = EVERY_CASE[name]
    model = load_case(case, folders(name), networks=networks)
    model.save_adapter(folder)
    return model, _frames(model, name, model.pipe)


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("animatediff", TEXT),
        pytest.param("animatediff_sdxl", (*TEXT, "text_encoder_2"), marks=pytest.mark.slow),
    ],
)
def test_plain_diffusers_loads_denoiser_and_text_encoders_from_one_file(
    folders: Any, tmp_path: Path, name: str, networks: tuple[str, ...]
) -> None:
    model, ours = _trained(folders, name, networks, tmp_path / "adapter")
    (file,) = models.export_adapter(tmp_path / "adapter", "diffusers", tmp_path / "one.safetensors")
    before = _frames(model, name, _plain(folders(name)))
    for source in (tmp_path / "adapter", file):
        pipe = _plain(folders(name))
        pipe.load_lora_weights(source)
        assert set(pipe.get_list_adapters()) == set(networks)
        torch.testing.assert_close(_frames(model, name, pipe), ours, rtol=0, atol=1e-6)
    pipe = _plain(folders(name))
    vader_ray.load_adapter(pipe, tmp_path / "adapter")
    torch.testing.assert_close(_frames(model, name, pipe), ours, rtol=0, atol=1e-6)
    assert (before - ours).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21
def test_peft_loads_a_text_encoders_part_from_its_folder(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    model = load_tiny(tiny_pipeline_folder)
    model.add_adapter(AdapterConfig(rank=2, alpha=4.0, networks=TEXT), 0)
    randomise_adapter(model)
    model.save_adapter(tmp_path)
    assert models.adapter_networks(tmp_path) == ["", "text_encoder"]
    ours = model.sample(model.encode(PROMPTS), SEEDS)
    plain = load_tiny(tiny_pipeline_folder)
    lora.remove(plain.pipe.unet)
    PeftModel.from_pretrained(plain.pipe.text_encoder, str(tmp_path), subfolder="text_encoder")
    PeftModel.from_pretrained(plain.pipe.unet, str(tmp_path))
    torch.testing.assert_close(plain.sample(plain.encode(PROMPTS), SEEDS), ours, rtol=1e-4, atol=1e-4)


def test_formats_mixes_and_merges_have_the_text_encoder(folders: Any, tmp_path: Path) -> None:
    model, ours = _trained(folders, "animatediff", TEXT, tmp_path / "a")
    assert model.adapted == TEXT
    written = models.export_adapter(tmp_path / "a", "peft", tmp_path / "peft")
    assert written == [tmp_path / "peft", tmp_path / "peft" / "text_encoder"]
    models.mix_adapters([(tmp_path / "a", 0.25), (tmp_path / "peft", 0.75)], tmp_path / "mixed")
    for source in (tmp_path / "peft", tmp_path / "mixed"):
        pipe = _plain(folders("animatediff"))
        vader_ray.load_adapter(pipe, source)
        torch.testing.assert_close(_frames(model, "animatediff", pipe), ours, rtol=0, atol=1e-5)
    again = load_case(CASES["animatediff"], folders("animatediff"), networks=TEXT)
    again.load_adapter(tmp_path / "a")
    merged = {path.name: path for path in again.save_merged(tmp_path / "merged")}
    assert tuple(merged) == TEXT
    pipe = _plain(folders("animatediff"))
    pipe.text_encoder = type(pipe.text_encoder).from_pretrained(merged["text_encoder"])
    pipe.unet = type(pipe.unet).from_pretrained(merged["unet"])
    torch.testing.assert_close(_frames(model, "animatediff", pipe), ours, rtol=0, atol=1e-5)


def test_the_hub_gets_one_file_of_diffusers_and_two_folders_of_peft(folders: Any, tmp_path: Path) -> None:
    _trained(folders, "animatediff", TEXT, tmp_path / "a")
    assert models.export_for_hub(tmp_path / "a", tmp_path / "hub", base_model="owner/base")
    names = {str(path.relative_to(tmp_path / "hub")) for path in (tmp_path / "hub").rglob("*.*")}
    peft = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    own = {f"text_encoder/{name}" for name in peft}
    assert names == peft | own | {"pytorch_lora_weights.safetensors"}
    assert models.adapter_networks(tmp_path / "hub") == ["", "text_encoder"]


def test_comfyui_gets_a_text_encoder_under_its_own_names(folders: Any, tmp_path: Path) -> None:
    """Facts of comfyanonymous/ComfyUI at 00728eb, ``comfy/lora.py``: ``model_lora_keys_clip``."""
    case = CASES["animatediff"]
    model = load_case(case, folders("animatediff"), networks=("text_encoder",))
    model.save_adapter(tmp_path / "a")
    (file,) = models.export_adapter(tmp_path / "a", "comfyui", tmp_path / "one.safetensors")
    parts = ("q_proj", "k_proj", "v_proj", "out_proj")
    stems = [f"lora_te_text_model_encoder_layers_0_self_attn_{part}" for part in parts]
    ends = ("lora_down.weight", "lora_up.weight", "alpha")
    tensors = load_file(file)
    assert tensors.keys() == {f"{stem}.{end}" for stem in stems for end in ends}
    layer = model.pipe.text_encoder.encoder.layers[0].self_attn.q_proj
    assert torch.equal(tensors[f"{stems[0]}.lora_down.weight"], layer.lora_A["default"].weight)


def test_an_adapter_of_other_networks_is_refused(folders: Any, tmp_path: Path) -> None:
    model, _ = _trained(folders, "animatediff", TEXT, tmp_path / "both")
    del model
    alone = load_case(CASES["animatediff"], folders("animatediff"))
    message = r"is one of unet, text_encoder, the model's is one of unet; set adapter.networks to the file's"
    with pytest.raises(UserError, match=message):
        alone.load_adapter(tmp_path / "both")
    alone.save_adapter(tmp_path / "unet")
    with pytest.raises(UserError, match="adapts other networks than that in"):
        models.mix_adapters([(tmp_path / "unet", 0.5), (tmp_path / "both", 0.5)], tmp_path / "mixed")
    pipe = _plain(folders("animatediff"))
    pipe.text_encoder = None
    with pytest.raises(
        UserError, match="for the network text_encoder, which this AnimateDiffPipeline does not"
    ):
        vader_ray.load_adapter(pipe, tmp_path / "both")


# ---- what is refused before a run


def _config(folder: Path, family: str, networks: list[str], **changes: Any) -> ExperimentConfig:
    document = {
        "model": {"family": family, "weights": str(folder)},
        "adapter": {"rank": 2, "networks": networks},
    }
    return tiny_config(folder, **document | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"networks": ["unet", "transformer"]},
            r"adapter.networks: model.family=modelscope has no network transformer that can get an adapter; "
            "choose from unet, text_encoder",
        ),
        ({"networks": ["unet", "unet"]}, r"networks=\['unet', 'unet'\] names one network twice"),
        ({"networks": []}, r"adapter.networks"),
        (
            {"adapter": {"networks": ["text_encoder"], "target_modules": ["to_q"]}, "networks": []},
            r"target_modules=\['to_q'\] are layers of a denoiser, and networks=\['text_encoder'\] has none",
        ),
        (
            {"networks": list(TEXT), "algorithm": {"name": "vader", "reference_penalty": 0.1}},
            "adapter.networks: text_encoder changes the prompt embeddings, and sampling.truncation=last with "
            "algorithm.reference_penalty=0.1 needs predictions of the base model",
        ),
    ],
)
def test_networks_that_cannot_be_trained_are_refused(
    tiny_pipeline_folder: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve_names(_config(tiny_pipeline_folder, "modelscope", **changes))


def test_text_encoders_of_other_families_are_refused(folders: Any) -> None:
    message = (
        r"model.family=wan has no network text_encoder that can get an adapter \(diffusers loads no adapter "
        r"of a text encoder for it\); choose from transformer$"
    )
    with pytest.raises(UserError, match=message):
        resolve_names(_config(folders("wan"), "wan", ["transformer", "text_encoder"]))


def test_a_schedule_of_strengths_is_refused_for_a_text_encoder(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    model = load_tiny(tiny_pipeline_folder)
    model.add_adapter(AdapterConfig(rank=2, networks=TEXT), 0)
    model.save_adapter(tmp_path)
    config = tiny_config(tiny_pipeline_folder, generation={"adapter_strength": [[0, 0], [0.5, 1]]})
    with pytest.raises(UserError, match="changes text_encoder, which is called once for all denoising steps"):
        evaluate_adapter(config, tmp_path)


# ---- one of two denoisers

A14B = CASES["wan_a14b"]


def test_the_denoiser_of_each_step_is_known_without_weights(folders: Any) -> None:
    """Against the calls of the pipeline's own loop."""
    case, model = A14B, load_case(A14B, folders("wan_a14b"))
    called = list[str]()
    for name, denoiser in model.denoisers().items():
        denoiser.register_forward_hook(lambda *_, name=name: called.append(name))
    own_call(case, model, [], slice(0, 1), type(model.pipe).__call__)
    config = _config(folders("wan_a14b"), "wan", ["transformer"], sampling=case.sampling)
    assert models.check_networks("wan", config) == called[:: case.calls_per_step]
    assert set(called) == {"transformer", "transformer_2"}


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_one_denoiser_alone_has_the_gradient_of_one_graph(folders: Any, name: str) -> None:
    """The gradient of the early denoiser passes through the late one, which is frozen."""
    model = _load(folders, "wan_a14b", (name,))
    frozen = next(other for other in model.denoisers() if other != name)
    assert not any("lora" in key for key, _ in model.denoisers()[frozen].named_parameters())
    every = tuple(range(STEPS))
    found, expected = _gradient(model, every, 5), one_graph(A14B, model, [], every)
    assert expected.norm() > 0
    assert (found - expected).norm() < A14B.tolerance * expected.norm()
    late = _gradient(model, (STEPS - 1,), 5)
    assert bool(late.any()) == (name == "transformer_2"), "the last step is the late denoiser's"


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_one_denoisers_adapter_is_saved_and_loaded_alone(folders: Any, tmp_path: Path, name: str) -> None:
    model, ours = _trained(folders, "wan_a14b", (name,), tmp_path / "a")
    folder = tmp_path / "a" if name == "transformer" else tmp_path / "a" / name
    assert [path.parent for path in (tmp_path / "a").rglob("*.safetensors")] == [folder]
    (file,) = models.export_adapter(tmp_path / "a", "diffusers", tmp_path / "one.safetensors")
    assert all(key.startswith("transformer.") for key in load_file(file))
    pipe = _plain(folders("wan_a14b"))
    pipe.load_lora_weights(file, load_into_transformer_2=name == "transformer_2")
    before = _frames(model, "wan_a14b", _plain(folders("wan_a14b")))
    assert torch.equal(_frames(model, "wan_a14b", pipe), ours)
    assert not torch.equal(before, ours)
    pipe = _plain(folders("wan_a14b"))
    vader_ray.load_adapter(pipe, tmp_path / "a")
    assert torch.equal(_frames(model, "wan_a14b", pipe), ours)
    shape = models.adapter_shape(tmp_path / "a", denoiser="transformer")
    assert (shape.rank, shape.networks) == (2, (name,))
    other = load_case(A14B, folders("wan_a14b"), networks=(name,))
    randomise_adapter(other, seed=9)
    other.load_adapter(tmp_path / "a")
    other.save_adapter(tmp_path / "again")
    assert file_contents(tmp_path / "again") == file_contents(tmp_path / "a")


def test_the_initial_adapter_of_a_denoiser_does_not_depend_on_the_other(folders: Any) -> None:
    def second(networks: tuple[str, ...] | None) -> list[Tensor]:
        model = load_case(A14B, folders("wan_a14b"), networks=networks)
        model.add_adapter(AdapterConfig(rank=2, networks=networks), 5)
        return [each for each in model.pipe.transformer_2.parameters() if each.requires_grad]

    for one, other in zip(second(None), second(("transformer_2",)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("sampling", "is_reached"),
    [
        ({"truncation_depth": 1}, False),
        ({"truncation_depth": 2}, False),
        ({"truncation_depth": 3}, True),
        ({"truncation": "random", "truncation_depth": 2}, False),
        ({"truncation": "window", "truncation_depth": 1}, True),
        ({"truncation": [{"step": 1}]}, False),
    ],
)
def test_a_denoiser_that_no_gradient_step_calls_is_refused(
    folders: Any, sampling: dict[str, Any], is_reached: bool
) -> None:
    config = _config(folders("wan_a14b"), "wan", ["transformer"], sampling=A14B.sampling | sampling)
    if is_reached:
        assert resolve_names(config).adapter.networks == ("transformer",)
        return
    message = "transformer computes the denoising steps 0 to 0 of 3, and no gradient step is one of them"
    with pytest.raises(UserError, match=message):
        resolve_names(config)


@pytest.mark.parametrize(
    ("networks", "depth", "is_reached"),
    [
        (("transformer",), 2, False),
        (("transformer",), 3, True),
        (("transformer_2",), 1, True),
        (None, 1, True),
    ],
)
def test_the_python_loop_refuses_it_too(
    folders: Any, networks: tuple[str, ...] | None, depth: int, is_reached: bool
) -> None:
    """Without a choice both denoisers have the adapter, whether or not the gradient reaches them."""
    model = load_case(A14B, folders("wan_a14b"), networks=networks)
    arguments: dict[str, Any] = {"num_steps": 1, "truncation_depth": depth}
    if is_reached:
        assert Trainer(model, {"brightness": 1.0}, PROMPTS, **arguments).step == 0
        return
    message = "transformer computes the denoising steps 0 to 0 of 3, and no gradient step is one of them"
    with pytest.raises(UserError, match=message):
        Trainer(model, {"brightness": 1.0}, PROMPTS, **arguments)


def test_a_step_that_does_not_reach_the_chosen_denoiser_trains_nothing(folders: Any) -> None:
    """With a random depth some steps stay with the other denoiser: their gradient is zero."""
    settings = A14B.sampling | {"truncation": "random", "truncation_depth": 3}
    config = _config(
        folders("wan_a14b"), "wan", ["transformer"], sampling=settings, num_steps=4, videos_per_step=1
    )
    keeper = list[Any]()
    train(resolve_names(config), on_step=keeper.append)
    norms = {event.metrics["train/graded_steps"]: event.metrics["train/grad_norm"] for event in keeper[1:]}
    assert any(norms[depth] == 0 for depth in norms if depth < 3)
    assert all((norm > 0) == (depth == 3) for depth, norm in norms.items())
