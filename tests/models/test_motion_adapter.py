"""AnimateDiff from an image model and motion modules, against the pipeline that diffusers makes of them."""

from __future__ import annotations

from pathlib import Path

import diffusers as d
import pytest
import torch

from tests.helpers.families import CASES, animatediff_parts
from tests.helpers.family_runs import PROMPTS, SEEDS
from vader_ray import models
from vader_ray.config import AdapterConfig, ModelConfig, SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.preflight.meta_device import META


def _build(device: str = "cpu", family: str = "animatediff", **model: str) -> VideoModel:
    settings = ModelConfig(family=family, **model)
    sampling = SamplingConfig(**CASES["animatediff"].sampling)
    adapter = AdapterConfig(rank=2, alpha=4.0)
    return models.build(settings, sampling, adapter, seed=0, chunk_size=2, device=torch.device(device))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders, as on the hub, and the pipeline of both, as diffusers' documentation makes it."""
    made = tmp_path_factory.mktemp("animatediff")
    torch.manual_seed(0)
    parts = animatediff_parts()
    for parameter in parts["motion_adapter"].parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # some are zero, and would hide that others are missing
    motion = parts.pop("motion_adapter")
    motion.save_pretrained(made / "motion")
    published = d.PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
    )
    image = parts | {"scheduler": published, "safety_checker": None, "feature_extractor": None}
    d.StableDiffusionPipeline(**image, requires_safety_checker=False).save_pretrained(made / "image")
    whole = d.AnimateDiffPipeline.from_pretrained(made / "image", motion_adapter=motion)
    whole.scheduler = d.DDIMScheduler.from_pretrained(
        made / "image",
        subfolder="scheduler",
        clip_sample=False,
        timestep_spacing="linspace",
        beta_schedule="linear",
        steps_offset=1,
    )
    whole.save_pretrained(made / "whole")
    return made


def test_two_folders_give_the_videos_of_the_pipeline_of_both(folder: Path) -> None:
    apart = _build(weights=str(folder / "image"), motion_adapter=str(folder / "motion"))
    whole = _build(weights=str(folder / "whole"))
    latents = [model.sample(model.encode(PROMPTS), seeds=SEEDS) for model in (apart, whole)]
    assert torch.equal(*latents)
    assert latents[0].std() > 0


def test_without_weights_the_networks_are_the_same(folder: Path) -> None:
    real = _build(weights=str(folder / "image"), motion_adapter=str(folder / "motion"))
    counted = _build(META.type, weights=str(folder / "image"), motion_adapter=str(folder / "motion"))
    shapes = [
        {name: (each.shape, each.dtype) for name, each in model.denoiser.named_parameters()}
        for model in (real, counted)
    ]
    assert shapes[0] == shapes[1]
    assert all(each.is_meta for each in counted.denoiser.parameters())


def test_another_family_has_no_motion_modules(folder: Path, tiny_pipeline_folder: Path) -> None:
    weights = {"weights": str(tiny_pipeline_folder), "motion_adapter": str(folder / "motion")}
    with pytest.raises(
        UserError, match=r"model\.motion_adapter: TextToVideoSDPipeline has no motion modules"
    ):
        _build(family="modelscope", **weights)


def test_a_folder_without_motion_modules_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.motion_adapter: .*image cannot be loaded"):
        _build(weights=str(folder / "image"), motion_adapter=str(folder / "image"))
