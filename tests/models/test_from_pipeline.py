"""A user's loaded pipeline, wrapped: the library's own output, and the gradient of the same model from a
recipe."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.helpers import videocrafter2_tiny
from tests.helpers.families import CASES, Case, save, save_images
from tests.helpers.family_runs import (
    PROMPTS,
    SEEDS,
    STEPS,
    decode_all,
    encode_prompts,
    load_case,
    own_call,
    parts_of,
    plain_pipe,
)
from tests.helpers.tiny import SAMPLING, adapter_gradient, load_tiny, randomise_adapter
from vader_ray.config import AdapterConfig
from vader_ray.models import VideoModel
from vader_ray.types import TruncationPlan

pytestmark = pytest.mark.filterwarnings(
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning"
)  # Mochi


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: save(CASES[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_images(tmp_path_factory.mktemp("images"))


def _wrap(pipe: Any, sampling: dict[str, Any], **changes: Any) -> Any:
    return VideoModel.from_pipeline(pipe, **{"lora_rank": 2, "lora_alpha": 4.0, **sampling, **changes})


def _gradient(model: Any, images: list[Path], plan: TruncationPlan) -> Tensor:
    randomise_adapter(model)
    conditioning = encode_prompts(model, images)
    state = model.sample_prefix(conditioning, plan, SEEDS)
    return adapter_gradient(model, model.sample_with_grad(state, conditioning, plan).square().sum())


@pytest.mark.parametrize("name", CASES)
def test_every_family_gives_the_pipelines_own_output_and_the_recipes_gradient(
    folders: Any, images: list[Path], name: str
) -> None:
    """Bit for bit: the wrapped pipeline runs the same operations as both."""
    case = CASES[name]
    recipe = load_case(case, folders(name), case.schedulers[0])
    model = _wrap(plain_pipe(folders(name), recipe), case.sampling)
    assert type(model) is type(recipe)
    found = model.sample(encode_prompts(model, images), SEEDS)
    plan = TruncationPlan(STEPS, (1, 2))
    assert torch.equal(_gradient(model, images, plan), expected := _gradient(recipe, images, plan))
    assert expected.norm() > 0
    recipe.pipe = plain_pipe(folders(name), recipe)
    theirs = [own_call(case, recipe, images, part, type(recipe.pipe).__call__) for part in parts_of(recipe)]
    with torch.no_grad():
        ours = torch.cat([decode_all(model, found[part]) for part in parts_of(model)])
    assert torch.equal(ours, torch.cat(theirs))


def test_a_fresh_adapter_has_the_recipes_initial_values(folders: Any) -> None:
    model = _wrap(diffusers.DiffusionPipeline.from_pretrained(folders("wan")), CASES["wan"].sampling, seed=7)
    recipe = load_case(CASES["wan"], folders("wan"))
    recipe.add_adapter(AdapterConfig(rank=2, alpha=4.0), 7)
    pairs = zip(model.adapter_parameters(), recipe.adapter_parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_modelscope_equals_the_recipe(tiny_pipeline_folder: Path) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    model, recipe = _wrap(pipe, SAMPLING), load_tiny(tiny_pipeline_folder)
    plan = TruncationPlan(5, (3, 4))
    assert torch.equal(
        model.sample(model.encode(PROMPTS), SEEDS), recipe.sample(recipe.encode(PROMPTS), SEEDS)
    )
    assert torch.equal(_gradient(model, [], plan), _gradient(recipe, [], plan))


def test_videocrafter2_equals_the_recipe(tmp_path: Path) -> None:
    weights = videocrafter2_tiny.write_checkpoint(tmp_path, videocrafter2_tiny.random_weights())
    recipe = videocrafter2_tiny.load_tiny(weights)
    model = _wrap(recipe.pipe, {k: v for k, v in videocrafter2_tiny.SAMPLING.items() if k != "eta"})
    assert model.sampling.eta == 1.0, "the default of the pipeline's call"
    assert torch.equal(
        model.sample(model.encode(PROMPTS), SEEDS), recipe.sample(recipe.encode(PROMPTS), SEEDS)
    )


def test_settings_that_are_not_given_are_the_pipelines_own(tiny_pipeline_folder: Path, folders: Any) -> None:
    size: dict[str, Any] = {"num_frames": 3, "height": 16, "width": 16}
    modelscope = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    sampling = VideoModel.from_pipeline(modelscope, **size).sampling
    assert (sampling.num_inference_steps, sampling.guidance_scale, sampling.eta) == (50, 9.0, 0.0)
    svd = diffusers.DiffusionPipeline.from_pretrained(folders("svd"))
    model = VideoModel.from_pipeline(svd, **size, target_modules=["to_q"])
    assert (model.sampling.num_inference_steps, model.sampling.guidance_scale) == (25, 3.0)
    rank, alpha = 16, 16.0
    denoiser: Any = model.denoiser
    settings = denoiser.peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.target_modules) == (rank, alpha, {"to_q"})


def test_what_cannot_be_wrapped_is_named(folders: Any, tmp_path: Path) -> None:
    case: Case = CASES["wan"]
    unet = diffusers.UNet2DModel(sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",),
                                 up_block_types=("UpBlock2D",))  # fmt: skip
    images_only = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    message = "from_pipeline: DDPMPipeline is not a known video pipeline; give one of Anim.*WanPipeline"
    with pytest.raises(ValueError, match=message):
        _wrap(images_only, case.sampling)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folders("wan"))
    with pytest.raises(ValueError, match=r"num_frames=8 is not a number of frames .* choose 5 or 9"):
        _wrap(pipe, case.sampling | {"num_frames": 8})
    with pytest.raises(ValueError, match=r"adapter.target_modules .*'nothing'.* do not fit this denoiser"):
        _wrap(pipe, case.sampling, target_modules=["nothing"])
    _wrap(pipe, case.sampling)
    _wrap(pipe, case.sampling)  # an adapter of ours is replaced
    load_case(case, folders("wan")).save_adapter(tmp_path)
    foreign = diffusers.DiffusionPipeline.from_pretrained(folders("wan"))
    foreign.load_lora_weights(tmp_path)
    with pytest.raises(
        ValueError, match=r"the pipeline's transformer already has an adapter, .*unload_lora_weights"
    ):
        _wrap(foreign, case.sampling)
