"""Adapters of others under the trained one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import CASES, save
from tests.helpers.family_runs import (
    PROMPTS,
    SEEDS,
    STEPS,
    decode_all,
    encode_prompts,
    freeze,
    load_case,
    one_graph,
    own_call,
    parts_of,
)
from tests.helpers.nonlinear_rewards import ClipReward
from tests.helpers.tiny import load_tiny, randomise_adapter
from vader_ray import models
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import MergedAdapter, ModelConfig
from vader_ray.errors import UserError
from vader_ray.models.adapters import lora
from vader_ray.types import TruncationPlan

CASE = CASES["wan"]
SCALES = (1.0, 0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan, and two adapters in diffusers' form as others would publish them."""
    folder: Path = tmp_path_factory.mktemp("stack")
    save(CASE, folder / "wan")
    for name in ("first", "second"):
        model = load_case(CASE, folder / "wan")
        for index, parameter in enumerate(model.adapter_parameters()):
            generator = torch.Generator().manual_seed(index + 100 * len(name))
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        model.save_adapter(folder / name)
        shutil.copy(folder / name / "pytorch_lora_weights.safetensors", folder / f"{name}.safetensors")
    return folder


def _stack(folder: Path) -> list[MergedAdapter]:
    files = [folder / "first.safetensors", folder / "second"]
    return [MergedAdapter(weights=str(file), scale=scale) for file, scale in zip(files, SCALES, strict=True)]


def _plain(folder: Path, *adapters: Path) -> Any:
    """Plain diffusers with the same adapters, merged, and further ones as they are."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder / "wan")
    for name, scale in zip(("first", "second"), SCALES, strict=True):
        pipe.load_lora_weights(folder / f"{name}.safetensors")
        pipe.fuse_lora(lora_scale=scale)
        pipe.unload_lora_weights()
    for adapter in adapters:
        pipe.load_lora_weights(adapter)
    pipe.set_progress_bar_config(disable=True)
    return freeze(pipe)


def test_videos_and_gradients_are_those_of_plain_diffusers_with_the_same_adapters(
    folder: Path, tmp_path: Path
) -> None:
    """The video with the trained adapter on top, bit for bit; the gradient of all steps against one graph."""
    model = load_case(CASE, folder / "wan", loras=_stack(folder))
    latents = model.sample(encode_prompts(model, []), SEEDS)
    with torch.no_grad():
        ours = decode_all(model, latents)
    model.save_adapter(tmp_path)
    loaded = load_case(CASE, folder / "wan", loras=_stack(folder))
    loaded.pipe = _plain(folder, tmp_path)
    (part,) = parts_of(loaded)
    assert torch.equal(own_call(CASE, loaded, [], part, type(loaded.pipe).__call__), ours)
    loaded.pipe = _plain(folder)
    assert not torch.equal(own_call(CASE, loaded, [], part, type(loaded.pipe).__call__), ours)

    plan = TruncationPlan(STEPS, tuple(range(STEPS)))
    seen = [[tuple(range(CASE.sampling["num_frames"]))]]
    rollout = Rollout(PROMPTS[:1], encode_prompts(model, [])[0:1], SEEDS[:1], seen)
    term = RewardTerm("clip", ClipReward())
    accumulate_gradient(model, [term], rollout, plan, Batching(), scale=1.0)
    found = torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])
    expected = one_graph(CASE, model, [], plan.grad_steps)
    assert (found - expected).norm() < CASE.tolerance * expected.norm()


def test_what_cannot_be_merged_is_refused(folder: Path, tmp_path: Path) -> None:
    def load(name: str, **adapter: Any) -> None:
        load_case(CASES[name], folder / name, loras=[MergedAdapter(**adapter)])

    with pytest.raises(ValueError, match="owner/name is a hub id, so name the adapter's file in it"):
        MergedAdapter(weights="owner/name")
    with pytest.raises(UserError, match=r"other\.safetensors does not exist; correct `weights` or `file`"):
        load("wan", weights=str(folder), file="other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken\.safetensors cannot be loaded into WanPipeline"):
        load("wan", weights=str(tmp_path / "broken.safetensors"))
    save(CASES["svd"], folder / "svd")
    with pytest.raises(UserError, match="no loader of adapters for StableVideoDiffusionPipeline"):
        load("svd", weights=str(folder / "first"))
    hub = ModelConfig(
        weights=str(folder / "wan"), loras=(MergedAdapter(weights="a/b", file="c.safetensors"),)
    )
    with pytest.raises(UserError, match="a/b"):
        models.fetch(hub)


def test_a_folder_in_the_format_of_peft_is_merged_where_diffusers_has_no_loader(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """diffusers loads no adapter into ModelScope's denoiser."""
    model = load_tiny(tiny_pipeline_folder)
    randomise_adapter(model)
    model.save_adapter(tmp_path)
    adapter = MergedAdapter(weights=str(tmp_path), scale=0.5)
    merged = load_tiny(tiny_pipeline_folder, loras=[adapter])
    with lora.scaled(model.denoiser, 0.5):
        expected = model.sample(model.encode(PROMPTS), SEEDS)
    found = merged.sample(merged.encode(PROMPTS), SEEDS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # summed in another order
    assert not torch.allclose(found, model.sample(model.encode(PROMPTS), SEEDS), atol=1e-2)

    second = adapter.model_copy(update={"denoiser": "transformer_2"})
    with pytest.raises(UserError, match="is in peft's format, whose folders name the networks"):
        load_tiny(tiny_pipeline_folder, loras=[second])
    (tmp_path / "one.safetensors").write_bytes(b"")
    file = MergedAdapter(weights=str(tmp_path / "one.safetensors"))
    with pytest.raises(UserError, match=r"no loader of adapters for .*; give a folder with adapter_config"):
        load_tiny(tiny_pipeline_folder, loras=[file])


def test_an_adapter_of_the_second_denoiser_changes_it_alone(folder: Path) -> None:
    """Those of Wan 2.2 A14B are published in pairs."""
    case = CASES["wan_a14b"]
    save(case, folder / "a14b")
    adapter = MergedAdapter(weights=str(folder / "first.safetensors"), denoiser="transformer_2")
    before, after = (load_case(case, folder / "a14b", loras=loras) for loras in ([], [adapter]))
    for name, changes in (("transformer", False), ("transformer_2", True)):
        old, new = (model.denoisers()[name].state_dict() for model in (before, after))
        same = all(torch.equal(old[key], new[key]) for key in old if "lora" not in key)
        assert same != changes


def test_the_scheduler_of_a_model_of_few_steps_draws_the_same_noise_in_both_stages(tmp_path: Path) -> None:
    """LCM's steps are stochastic; AnimateLCM is this scheduler with an adapter of the image model."""
    case = CASES["animatediff"]
    save(case, tmp_path / "pipeline")
    load_case(case, tmp_path / "pipeline").save_adapter(tmp_path / "lcm")
    stack = [MergedAdapter(weights=str(tmp_path / "lcm"), scale=0.8)]
    model = load_case(case, tmp_path / "pipeline", "LCMScheduler", loras=stack)
    conditioning = encode_prompts(model, [])
    latents = model.sample(conditioning, SEEDS)
    assert torch.equal(latents, model.sample(conditioning, SEEDS))
    for plan in (TruncationPlan(STEPS, (0, 1, 2)), TruncationPlan(STEPS, (2,))):
        state = model.sample_prefix(conditioning, plan, SEEDS)
        again = model.sample_with_grad(state, conditioning, plan)
        assert torch.equal(again, latents)
        again.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.adapter_parameters())
