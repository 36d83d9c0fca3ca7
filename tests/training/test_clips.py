"""Runs whose videos are chains of clips: training, evaluation, generation, workers, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.clip_chains import gradient_of_a_step
from tests.helpers.families import CASES, Case, save, save_images
from tests.helpers.recipe import tiny_config, tiny_document
from tests.helpers.video_files import decode
from tests.helpers.workers import run_workers
from vader_ray.api import load_reward
from vader_ray.config import ExperimentConfig, SamplingConfig, validate
from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.training.events import StepEvent
from vader_ray.training.inference import evaluate_adapter, generate_video
from vader_ray.training.loop import train
from vader_ray.training.resolve import resolve_names
from vader_ray.training.trainer import Trainer

CLIPS = 3
CASE: Case = CASES["cogvideox_i2v"]
FRAMES = CLIPS * (CASE.sampling["num_frames"] - 1) + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(CASE, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    first, second = save_images(tmp_path_factory.mktemp("images"))
    return {"train": [f"{first} | a dog", f"{second} | a bird"], "validation": [f"{second} | a cat"]}


def _document(folder: Path, prompts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    document = tiny_document(
        folder,
        model={"family": "auto", "weights": str(folder)},
        prompts=prompts,
        sampling=CASE.sampling | {"num_clips": CLIPS},
        videos_per_step=2,
        num_steps=1,
        evaluation={"num_videos": 1, "num_shown": 1},
    )
    return document | changes


def test_a_run_trains_and_evaluates_whole_videos(
    folder: Path, prompts: dict[str, Any], tmp_path: Path
) -> None:
    """Frame 20 is in the third clip."""
    reports, rewards = list[StepEvent](), [{"reward": "brightness", "frames": "frame:20"}]
    config = resolve_names(validate(_document(folder, prompts, rewards=rewards)))
    train(config, on_step=reports.append)
    last = reports[-1]
    assert {query.prompt for query in last.queries} == {"a dog", "a bird"}
    assert last.metrics["train/grad_norm"] > 0
    assert last.state is not None
    assert last.state.reward_queries == 2
    assert last.state.denoiser_calls == 2 * CLIPS * 2 * CASE.sampling["num_inference_steps"]
    (video,) = last.videos
    assert video.frames.shape[0] == FRAMES
    shown = torch.from_numpy(video.frames[20]).permute(2, 0, 1) / 255
    brightness = load_reward("brightness")(shown[None, None], ["a cat"])
    assert video.scores["brightness"] == pytest.approx(float(brightness), abs=1 / 255)
    assert evaluate_adapter(config, None)["eval/reward/brightness"] == pytest.approx(
        reports[0].metrics["eval/reward/brightness"]
    )
    path = tmp_path / "long.mp4"
    generate_video(config, prompts["validation"][0], None, 0, path)
    assert len(decode(path)[1]) == FRAMES


@pytest.mark.slow
def test_two_workers_compute_the_gradient_of_one(
    folder: Path, prompts: dict[str, Any], tmp_path: Path
) -> None:
    model = {"family": "auto", "weights": str(folder), "precision": "float64", "decoder_precision": "float64"}
    results = []
    for num_workers in (1, 2):
        meetings = tmp_path / f"{num_workers}"
        meetings.mkdir()
        runtime = {"num_workers": num_workers}
        document = _document(folder, prompts, model=model, runtime=runtime)
        results.append(run_workers(gradient_of_a_step, num_workers, meetings, document))
    ((scores, gradient),), two = results
    for _, found in two:
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-9)  # the adapter is float32
    mean = sum(found["brightness"] for found, _ in two) / 2
    assert scores["brightness"] == pytest.approx(mean, rel=1e-6)


def test_a_trainer_makes_clips_of_a_loaded_pipeline(prompts: dict[str, Any]) -> None:
    sizes = {name: CASE.sampling[name] for name in ("num_frames", "height", "width", "num_inference_steps")}
    model = VideoModel.from_pipeline(CASE.build(), **sizes, num_clips=2, lora_rank=2)
    seen = list[int]()

    def contrast(frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(frames.shape[1])
        return frames.flatten(1).var(dim=1)

    (step,) = Trainer(model, {contrast: 1.0}, prompts["train"], num_steps=1)
    assert step.grad_norm > 0
    assert seen[-1] == 2 * (CASE.sampling["num_frames"] - 1) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clips": 0}, "greater than 0"),
        ({"num_clips": 2, "num_frames": 1}, "continues from the last frame of a clip"),
        ({"num_clips": 2, "num_endings": 2}, "num_clips=2 has several"),
        ({"num_clips": 2, "truncation": "refl"}, "choose last or random or uniform or window, without"),
        (
            {"num_clips": 2, "truncation_depth": 2, "truncation_options": {"coupling": 0.5}},
            "without coupling",
        ),
        ({"num_clips": 2, "truncation_clips": 3}, "more than num_clips=2"),
        ({"truncation_clips": 2}, "more than num_clips=1"),
        ({"num_clips": 1000, "height": 576, "width": 1024, "num_frames": 25}, "choose at most 128 GiB"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**CASE.sampling | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": {"name": "ddpo"}}, "sampling.num_clips=3 has no effect on algorithm.name=ddpo"),
        ({"algorithm": {"name": "dpo"}}, "sampling.num_clips=3 has no effect on algorithm.name=dpo"),
        (
            {"algorithm": {"name": "vader", "gradient_clip_quantile": 0.8}},
            "algorithm.gradient_clip_quantile=0.8 clips the gradient",
        ),
        (
            {"rewards": [{"reward": "brightness", "frames": "frame:25"}]},
            "frames=frame:25 needs 26 frames and sampling.num_frames=9 with num_clips=3 \\(25 frames\\)",
        ),
        (
            {"runtime": {"num_workers": 2, "guidance_parallel": True}},
            "sampling.num_clips=3 has a gradient in the image",
        ),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    folder: Path, prompts: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_names(validate(_document(folder, prompts, **changes)))


def test_models_that_take_no_image_are_refused_before_and_after_their_weights_are_loaded(
    tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    def config(folder: Path, family: str) -> ExperimentConfig:
        sampling = CASE.sampling | {"num_clips": 2}
        return tiny_config(folder, model={"family": family, "weights": str(folder)}, sampling=sampling)

    with pytest.raises(UserError, match=r"TextToVideoSDPipeline makes no videos from images; set it to 1"):
        resolve_names(config(tiny_pipeline_folder, "modelscope"))
    with pytest.raises(UserError, match=r"ImageToVideoPipeline does more with an image than to encode it"):
        resolve_names(config(tiny_pipeline_folder, "hunyuan_video_i2v"))
    text_to_video = save(CASES["cogvideox"], tmp_path)
    with pytest.raises(UserError, match=r"CogVideoXPipeline makes no videos from images; set it to 1"):
        resolve_names(config(text_to_video, "cogvideox"))
    sizes = {name: CASE.sampling[name] for name in ("num_frames", "height", "width")}
    with pytest.raises(UserError, match=r"CogVideoXPipeline makes no videos from images; set it to 1"):
        VideoModel.from_pipeline(CASES["cogvideox"].build(), **sizes, num_clips=2)
