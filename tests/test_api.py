"""The public Python API: exported names and signatures, and every call of the README on tiny weights."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vader_ray as vr
from tests.helpers.recipe import write_tiny
from tests.helpers.tiny import SAMPLING

SIGNATURES = {
    "Callback": "()",
    "ExperimentConfig": None,
    "RunFailed": None,
    "RunSummary": None,
    "Trainer": "(model, rewards, prompts, *, learning_rate=0.0002, schedule='constant', warmup_steps=0,"
    " ema_decay=0.0, optimizer='adamw', num_steps=100, videos_per_step=1,"
    " truncation_depth=1, prefix_batch_size=2, micro_batch_size=1, decode_chunk_size=4,"
    " max_grad_norm=1.0, seed=0, callbacks=())",
    "TrainerStep": "(step, reward, rewards, grad_norm, seconds)",
    "UserError": None,
    "VideoModel": None,
    "choice": "(categories)",
    "evaluate": "(recipe, *, adapter=None)",
    "generate": "(recipe, prompt, *, adapter=None, seed=0, output='video.mp4')",
    "grid_search": "(values)",
    "load_adapter": "(pipe, folder)",
    "load_recipe": "(recipe, overrides=None, /, **settings)",
    "load_reward": "(name, *, device='cpu', precision='float32', **options)",
    "loguniform": None,  # of Ray Tune
    "packaged_weights": "(name)",
    "push_to_hub": "(adapter, repository, *, base_model=None, licence=None, private=False)",
    "sweep": "(recipe, space, *, num_trials=None, search=None, early_stopping=False, name=None,"
    " workers_per_trial=1, max_concurrent=None, runs_dir='runs', storage=None, resume=False)",
    "train": "(recipe, *, workers=None, rewards=None, eval_rewards=None, prompts=None,"
    " validation_prompts=None, test_prompts=None, callbacks=(), run_name=None, resume=False,"
    " runs_dir='runs', storage=None)",
    "uniform": "(lower, upper)",
}
FROM_PIPELINE = (
    "(pipe, *, num_frames, height, width, num_clips=1, num_inference_steps=None, guidance_scale=None, "
    "negative_prompt='', lora_rank=16, lora_alpha=None, target_modules=None, networks=None, "
    "decode_chunk_size=None, seed=0)"
)


def contrast(frames: Tensor, prompts: list[str]) -> Tensor:
    return frames.flatten(2).std(2).mean(1)


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def test_the_exported_names_and_signatures_are_these() -> None:
    assert sorted(vr.__all__) == sorted([*SIGNATURES, "__version__"])
    found = {name: _signature(getattr(vr, name)) for name, wanted in SIGNATURES.items() if wanted is not None}
    assert found == {name: wanted for name, wanted in SIGNATURES.items() if wanted is not None}
    assert _signature(vr.VideoModel.from_pipeline) == FROM_PIPELINE


def test_importing_the_package_imports_no_framework() -> None:
    program = "import sys, vader_ray; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    for framework in ("torch", "ray", "mlflow", "diffusers", "transformers", "peft", "pydantic", "numpy"):
        assert f"'{framework}'" not in modules


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'vader_ray' has no attribute 'nothing'"):
        vr.nothing  # noqa: B018


def test_a_recipe_is_loaded_with_python_values() -> None:
    recipe = vr.load_recipe("shapes_hps", {"sampling.truncation_depth": 2}, num_steps=16)
    assert (recipe.sampling.truncation_depth, recipe.num_steps) == (2, 16)
    with pytest.raises(vr.UserError, match=r"sampling\.depth: there is no such setting"):
        vr.load_recipe("shapes_hps", {"sampling.depth": 2})


def test_packaged_weights_are_named() -> None:
    assert (vr.packaged_weights("text_to_video") / "model_index.json").is_file()
    with pytest.raises(vr.UserError, match="there are no packaged weights 'nothing'; there are action, "):
        vr.packaged_weights("nothing")


def test_a_reward_model_is_loaded_by_name() -> None:
    reward = vr.load_reward("hps", weights="shapes:hps")
    frames = torch.rand(1, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reward(frames, ["a red star moving up"]).sum().backward()
    assert frames.grad is not None
    assert frames.grad.any()


def test_a_pipeline_in_memory_is_trained_in_a_plain_loop(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    model = vr.VideoModel.from_pipeline(pipe, **(SAMPLING | {"lora_rank": 2}))
    prompts = ["a red star moving up", "a blue circle moving left"]
    rewards: dict[Any, float] = {"brightness": 1.0, contrast: 0.1}
    trainer = vr.Trainer(model, rewards=rewards, prompts=prompts, learning_rate=2e-4, num_steps=2)
    steps = [(step.reward, step.rewards) for step in trainer]
    assert [sorted(scores) for _, scores in steps] == [["brightness", "contrast"]] * 2
    folder = trainer.save_adapter(tmp_path / "my_adapter")
    vr.load_adapter(DiffusionPipeline.from_pretrained(tiny_pipeline_folder), folder)


@pytest.mark.ray
@pytest.mark.slow
def test_a_recipe_is_trained_evaluated_used_and_swept(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    events = list[str]()

    class Recorder(vr.Callback):
        def on_step_end(self, event: Any) -> None:
            events.append(f"step {event.step}")

        def on_evaluate(self, event: Any) -> None:
            events.append(f"evaluation {event.step}")

        def on_checkpoint(self, event: Any) -> None:
            events.append(f"checkpoint {event.step}")

        def on_train_end(self, result: vr.RunSummary) -> None:
            events.append(result.status)

    recipe = vr.load_recipe(
        write_tiny(tmp_path, tiny_pipeline_folder), {"sampling.truncation_depth": 2}, num_steps=2
    )
    rewards: list[Any] = ["brightness", {"reward": contrast, "weight": 0.5}]
    prompts = (text for text in ["a red star moving up", "a blue circle moving left"])
    result = vr.train(recipe, workers=2, rewards=rewards, prompts=prompts, callbacks=[Recorder()])
    assert result.status == "completed"
    assert {"eval/reward/brightness", "eval/reward/contrast"} <= result.metrics.keys()
    assert result.queries().num_rows == result.reward_queries == 8
    assert set(result.queries()["prompt"].to_pylist()) == {
        "a red star moving up",
        "a blue circle moving left",
    }
    assert all(video.is_file() for video in result.videos)
    assert result.mlflow_url.startswith("sqlite:///")
    assert "<table>" in result._repr_html_()
    assert "data:image/png;base64," in result._repr_html_()
    assert events == [
        "evaluation 0", "step 1", "step 2", "evaluation 2", "checkpoint 2", "completed",
    ]  # fmt: skip

    metrics = vr.evaluate(recipe, adapter=result.adapter)
    assert metrics["eval/reward/brightness"] == pytest.approx(
        result.metrics["eval/reward/brightness"], rel=1e-6
    )
    video = vr.generate(recipe, "a red star moving up", adapter=result.adapter, output=tmp_path / "star.mp4")
    assert video.stat().st_size > 0

    space = {"optimizer.learning_rate": vr.loguniform(1e-4, 1e-2)}
    swept = vr.sweep(recipe, space, num_trials=2)
    rates = {trial.values["optimizer.learning_rate"] for trial in swept.trials}
    assert len(rates) == 2
    assert [trial.status for trial in swept.trials] == ["completed", "completed"]
    scores = [trial.summary.selected for trial in swept.trials if trial.summary is not None]
    assert swept.best.selected == max(filter(None, scores))
    assert (swept.best.best_adapter / "adapter_model.safetensors").is_file()
    assert swept.best.path.parent == swept.path == tmp_path / "runs" / swept.path.name
