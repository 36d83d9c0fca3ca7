"""CLIP diversity: the published embedding, distances by scipy, independence of batches and workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.spatial import distance  # type: ignore[import-untyped]
from torch import Tensor

from tests.helpers.recipe import tiny_config
from tests.helpers.reward_inputs import as_pil, pictures, random_images
from tests.helpers.tiny_clips import save_clip
from vader_ray import metrics
from vader_ray.alignment.decoding import decode_all
from vader_ray.config import ExperimentConfig, MetricConfig
from vader_ray.errors import UserError
from vader_ray.metrics.core.statistics import prompt_means
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import build
from vader_ray.training.resolve import resolve_names


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def build_metric(folder: Path, **settings: Any) -> Any:
    spec = {"metric": "clip_diversity", "weights": str(folder), **settings}
    return metrics.build(MetricConfig.model_validate(spec), device="cpu")


def recipe(pipeline: Path, clip: Path, **changes: Any) -> ExperimentConfig:
    """Five held-out videos of two prompts: three of the first, two of the second."""
    changes = {"evaluation": {"every": 3, "num_videos": 5, "num_shown": 5}} | changes
    return tiny_config(
        pipeline,
        eval_metrics=[{"metric": "clip_diversity", "weights": str(clip), "label": "spread"}],
        **changes,
    )


def by_scipy(features: Tensor, prompts: list[str]) -> list[float]:
    distances = distance.cdist(features.double().numpy(), features.double().numpy(), "cosine")
    scores = []
    for one, prompt in enumerate(prompts):
        others = [other for other in range(len(prompts)) if other != one]
        alike = [other for other in others if prompts[other] == prompt]
        scores.append(float(np.mean([distances[one, other] for other in alike or others])))
    return scores


@pytest.mark.parametrize(("height", "width"), [(40, 60), (32, 32)])
def test_features_are_clips(clip_folder: Path, height: int, width: int) -> None:
    frames = pictures(height, width, batch=3, num_frames=4)
    network = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(clip_folder)
    with torch.no_grad():
        pixels = processor(images=as_pil(frames), return_tensors="pt")["pixel_values"]
        embeddings = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
    expected = (embeddings / embeddings.norm(dim=-1, keepdim=True)).unflatten(0, (3, 4)).mean(dim=1)
    # PIL rounds to 8 bits between its passes (see test_rewards): 0.5 % of a unit vector's range
    allowed = 0.01 if height != width else 1e-5
    torch.testing.assert_close(build_metric(clip_folder).features(frames), expected, atol=allowed, rtol=0)
    half = build_metric(clip_folder, precision="bfloat16").features(frames)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.02, rtol=0)  # bfloat16 has 8 bits: 0.4 % per operation


def test_scores_are_mean_distances_to_videos_of_the_same_prompt(clip_folder: Path) -> None:
    diversity = build_metric(clip_folder)
    features = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    prompts = ["a", "b", "a", "c", "a", "b"]
    torch.testing.assert_close(
        diversity.compare(features, prompts).tolist(), by_scipy(features, prompts), atol=1e-6, rtol=0
    )
    alike = features[:1].repeat(3, 1) * torch.tensor([[1.0], [2.0], [3.0]])
    assert diversity.compare(alike, ["a"] * 3).abs().max() < 1e-6
    axes = torch.eye(3)
    assert diversity.compare(axes, ["a", "a", "a"]).tolist() == [1.0] * 3
    assert diversity.compare(features[:1], ["a"]).tolist() == [0.0], "a single video differs from nothing"


@pytest.mark.slow
def test_evaluation_reports_its_mean(tiny_pipeline_folder: Path, clip_folder: Path) -> None:
    config = recipe(tiny_pipeline_folder, clip_folder)
    experiment = build(config, torch.device("cpu"))
    seen = evaluate(config, experiment, WorkerGroup())
    features = []
    with torch.no_grad():
        for video in seen.videos:
            latents = experiment.model.sample(experiment.condition([video.prompt]), [video.noise_seed])
            features.append(build_metric(clip_folder).features(decode_all(latents, experiment.model.decoder)))
    expected = by_scipy(torch.cat(features), [video.prompt for video in seen.videos])
    assert len(set(expected)) > 2
    # the evaluation samples several videos at once: float32 rounding
    assert seen.metric_values["spread"] == pytest.approx(expected, abs=1e-5)
    of_prompts = prompt_means(expected, [video.prompt for video in seen.videos])
    assert seen.metrics["eval/spread"] == pytest.approx(np.mean(of_prompts), abs=1e-5)
    for size in (1, 2, 5):
        again = evaluate(
            recipe(tiny_pipeline_folder, clip_folder, runtime={"prefix_batch_size": size}),
            experiment,
            WorkerGroup(),
        )
        assert again.metric_values["spread"] == pytest.approx(seen.metric_values["spread"], abs=1e-5)


WORKER = """
import json, sys
import torch
from vader_ray.config import ExperimentConfig
from vader_ray.training.evaluation import evaluate
from vader_ray.training.experiment import build
from vader_ray.training.distributed import WorkerGroup
torch.set_num_threads(1)
config, rank = ExperimentConfig.model_validate_json(open(sys.argv[1]).read()), int(sys.argv[2])
meeting, out = sys.argv[3:]
torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
seen = evaluate(config, build(config, torch.device("cpu")), WorkerGroup(rank, 2))
shown = [[len(seen.videos), len(seen.base_features)]]
json.dump([seen.scores, seen.metric_values, *shown], open(out, "w"))
"""


@pytest.mark.slow
def test_two_workers_see_the_scores_of_one(
    tiny_pipeline_folder: Path, clip_folder: Path, tmp_path: Path
) -> None:
    config = recipe(tiny_pipeline_folder, clip_folder, runtime={"prefix_batch_size": 2})
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", WORKER, str(tmp_path / "recipe.json")]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting"), str(tmp_path / f"{rank}.json")])
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    alone = evaluate(config, build(config, torch.device("cpu")), WorkerGroup())
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [
            alone.scores,
            alone.metric_values,
            [0, 0] if rank else [5, 1],
        ]  # the same batches, so bit for bit


def test_it_is_no_reward(tiny_pipeline_folder: Path, clip_folder: Path) -> None:
    config = recipe(tiny_pipeline_folder, clip_folder)
    assert resolve_names(config).eval_metrics[0].name == "spread"
    with pytest.raises(UserError, match=r"there is no (reward )?'clip_diversity'"):
        resolve_names(tiny_config(tiny_pipeline_folder, rewards=[{"reward": "clip_diversity"}]))


def test_it_takes_the_shapes_encoder() -> None:
    metric = build_metric(Path("shapes:aesthetic"))
    metrics.check_contract(metric, name="clip_diversity")
    assert metric.features(random_images(2, 2, 3, 32, 32)).ndim == 2
