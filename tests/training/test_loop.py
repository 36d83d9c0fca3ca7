"""The loop of one worker, without Ray."""

from __future__ import annotations

import dataclasses
import gc
import re
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.training import Keeper, file_contents
from tests.helpers.video_files import decode
from vader_ray.config import RewardConfig, load
from vader_ray.errors import RunFailed, UserError
from vader_ray.training import checkpoint, seeding
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import build
from vader_ray.training.inference import evaluate_adapter, generate_video
from vader_ray.training.loop import is_due, train
from vader_ray.training.model_cache import ModelCache
from vader_ray.types import Frames, Granularity, Scores


@pytest.mark.slow
def test_resumed_run_equals_the_straight_run_bit_for_bit(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_pipeline_folder,
        sampling=_random_depth(),
        rewards=[{"reward": "brightness", "frames": "random:1"}],
    )
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    train(config, on_step=straight)
    train(config, on_step=resumed, resume_from=tmp_path / "straight" / "2")
    for part in ("adapter", "best_adapter", "optimizer.pt"):
        first, second = tmp_path / "straight" / "6" / part, tmp_path / "resumed" / "6" / part
        assert (
            first.read_bytes() == second.read_bytes()
            if first.is_file()
            else file_contents(first) == file_contents(second)
        )
    names = (
        "train/reward_mean",
        "train/grad_norm",
        "eval/objective",
        "cost/reward_queries",
        "cost/denoiser_calls",
    )
    assert straight.metrics(*names)[3:] == resumed.metrics(*names)
    assert [report.queries[0].prompt for report in straight.reports[3:]] == [
        report.queries[0].prompt for report in resumed.reports
    ]


def _random_depth() -> dict[str, object]:
    return {
        "num_frames": 3, "height": 8, "width": 8, "num_inference_steps": 5, "guidance_scale": 3.0,
        "truncation": "random", "truncation_depth": 4,
    }  # fmt: skip


IN_A_FRESH_PROCESS = """
import sys, shutil
from vader_ray.config import load
from vader_ray.training.loop import train
keep = lambda report: report.checkpoint and shutil.copytree(report.checkpoint, sys.argv[2])
train(load(sys.argv[1]), on_step=keep)
"""


@pytest.mark.slow
def test_a_run_on_what_an_earlier_one_loaded_gives_the_files_of_a_fresh_process(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    last = {"num_steps": 2, "checkpoint": {"every": 2}, "runtime": {"activation_checkpointing": "block"}}
    first = tiny_config(tiny_pipeline_folder, **last, optimizer={"learning_rate": 0.1})
    changes = last | {
        "seed": 1,
        "adapter": {"rank": 3},
        "sampling": _random_depth(),
        "rewards": [{"reward": "brightness", "weight": 2}],
    }
    recipe = write_tiny(tmp_path, tiny_pipeline_folder, **changes)
    cache, keeper = ModelCache(), Keeper(tmp_path / "kept")
    loaded = build(first, cache=cache)
    train(first, loaded, on_step=Keeper(tmp_path / "first"))
    again = build(load(str(recipe)), cache=cache)
    train(load(str(recipe)), again, on_step=keeper)
    assert again.model is loaded.model
    assert again.terms[0].reward is loaded.terms[0].reward
    assert (again.terms[0].weight, loaded.terms[0].weight) == (2, 1)
    subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(recipe), str(tmp_path / "fresh")],
        check=True,
        timeout=300,
    )
    for name in ("adapter", "best_adapter"):
        assert file_contents(tmp_path / "kept" / "2" / name) == file_contents(tmp_path / "fresh" / name)


def test_what_a_run_does_not_need_leaves_the_shelf(tiny_pipeline_folder: Path) -> None:
    cache, config = ModelCache(), tiny_config(tiny_pipeline_folder)
    model = weakref.ref(build(config, cache=cache).model)
    build(tiny_config(tiny_pipeline_folder, rewards=[{"reward": "sharpness"}]), cache=cache)
    assert model() is not None
    sampling = config.sampling.model_dump() | {"guidance_scale": 2.0}
    build(tiny_config(tiny_pipeline_folder, sampling=sampling), cache=cache)
    gc.collect()
    assert model() is None


@pytest.mark.slow
def test_the_trained_reward_rises_on_held_out_prompts(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    state = train(tiny_config(tiny_pipeline_folder), on_step=keeper)
    gain, error = (
        keeper.reports[-1].metrics[f"eval/{name}/brightness"] for name in ("gain", "gain_standard_error")
    )
    assert gain > 2 * error > 0
    assert state.best_step == 6
    assert state.reward_queries == 24
    assert state.denoiser_calls == 24 * 5 * 2
    assert [report.step for report in keeper.reports] == list(range(7))


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "reward"), [("shapes_svd_vjepa", "vjepa"), ("shapes_wan", "pickscore")])
def test_the_recipes_of_further_families_take_a_step(recipe: str, reward: str, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    short = [
        "num_steps=1",
        "videos_per_step=1",
        "sampling.num_inference_steps=2",
        "sampling.truncation_depth=2",
        "prompts.test=null",
    ]
    state = train(load(recipe, [*short, "evaluation.num_videos=1", "evaluation.num_shown=1"]), on_step=keeper)
    assert state.reward_queries == 1
    before, after = keeper.metrics(f"eval/reward/{reward}")
    assert before != after


@pytest.mark.slow
def test_a_pull_to_the_base_keeps_the_videos_near_it(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    distances, calls = [], []
    for pull in (0.0, 1e4):
        keeper = Keeper(tmp_path / str(pull))
        state = train(
            tiny_config(tiny_pipeline_folder, algorithm={"name": "vader", "reference_penalty": pull}),
            on_step=keeper,
        )
        distances.append(keeper.reports[-1].metrics["eval/distance_to_base"])
        calls.append(state.denoiser_calls)
    assert 0 < distances[1] < 0.5 * distances[0]
    assert calls == [
        24 * 5 * 2,
        24 * 5 * 2 + 24 * 2,
    ]  # one more for the graded denoising step, in both branches of guidance


@pytest.mark.slow
def test_micro_batches_and_chunks_change_nothing_but_rounding(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    norms = []
    for place, machine in enumerate(
        ({}, {"micro_batch_size": 2, "decode_chunk_size": 1}, {"prefix_batch_size": 4})
    ):
        keeper = Keeper(tmp_path / str(place))
        train(
            tiny_config(
                tiny_pipeline_folder, runtime=machine, num_steps=1, model=_in_float64(tiny_pipeline_folder)
            ),
            on_step=keeper,
        )
        norms.append(keeper.reports[1].metrics["train/grad_norm"])
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-9)


def _in_float64(weights: Path) -> dict[str, str]:
    return {
        "family": "modelscope",
        "weights": str(weights),
        "precision": "float64",
        "decoder_precision": "float64",
    }


@pytest.mark.slow
def test_queries_hold_everything_about_a_video(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    config = tiny_config(
        tiny_pipeline_folder, num_steps=2, rewards=[{"reward": "brightness", "weight": 2.0, "target": 0.9}]
    )
    train(config, on_step=keeper)
    queries = [query for report in keeper.reports for query in report.queries]
    assert [query.video for query in queries] == list(range(8))
    assert [query.noise_seed for query in queries] == [
        seeding.derive_seed(0, "noise", video) for video in range(8)
    ]
    for query in queries:
        assert query.objective == pytest.approx(-2 * abs(query.scores["brightness"] - 0.9), rel=1e-5)
        assert query.grad_steps == (4,)


def test_draws_are_functions_of_seed_and_index() -> None:
    prompts = ["a", "b", "c"]
    drawn = [seeding.prompt_of(prompts, 7, video) for video in range(9)]
    assert all(sorted(drawn[start : start + 3]) == prompts for start in (0, 3, 6))
    assert drawn == [seeding.prompt_of(prompts, 7, video) for video in range(9)]
    assert (
        len(
            {
                seeding.derive_seed(seed, stream, index)
                for seed in (0, 1)
                for stream in ("noise", "prompt")
                for index in range(50)
            }
        )
        == 200
    )


def test_shares_cover_every_video_once_and_in_order() -> None:
    for num_items in (1, 4, 7, 8):
        shares = [WorkerGroup(rank, 3).share(num_items) for rank in range(3)]
        assert [item for share in shares for item in share] == list(range(num_items))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    pairs = [WorkerGroup(rank, 3).share(8, group_size=2) for rank in range(3)]
    assert sorted(map(len, pairs)) == [2, 2, 4], "pairs stay together when a worker is missing"


def test_cadences_always_include_the_last_step() -> None:
    assert [step for step in range(1, 8) if is_due(step, 3, is_last=step == 7)] == [3, 6, 7]


class Explodes:
    """Finite on the two random frames of the contract check, NaN on the three of one trained video."""

    granularity: Granularity = "frame"
    unit = "none"

    def __call__(self, frames: Frames, prompts: Sequence[str]) -> Scores:
        scores = frames.mean(dim=(1, 2, 3, 4))
        return scores * float("nan") if frames.shape[:2] == (1, 3) else scores


class Reward(Explodes):
    """Found by the dotted name ``tests.training.test_loop``."""


@pytest.mark.slow
def test_nonfinite_gradients_are_skipped_counted_and_fail_with_their_cause(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    keeper = Keeper(tmp_path)
    config = tiny_config(
        tiny_pipeline_folder, rewards=[{"reward": "tests.training.test_loop", "label": "mine"}]
    )
    with pytest.raises(
        RunFailed,
        match=r"step 3: the gradient was nan for 3 steps in a row; reward 'mine' returned nan for video 8",
    ):
        train(config, on_step=keeper)
    assert [report.metrics["train/nonfinite_steps"] for report in keeper.reports[1:]] == [1.0, 2.0]


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def sound_checkpoint(tiny_pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run after two steps."""
    folder = tmp_path_factory.mktemp("sound")
    train(tiny_config(tiny_pipeline_folder, num_steps=2), on_step=Keeper(folder))
    return folder / "2"


CHECKPOINT_FILES = [
    "state.json",
    "optimizer.pt",
    "base.pt",
    "manifest.json",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "adapter/manifest.json",
    "best_adapter/adapter_model.safetensors",
    "best_adapter/adapter_config.json",
    "best_adapter/manifest.json",
]


def test_these_are_all_files_of_a_checkpoint(sound_checkpoint: Path) -> None:
    found = [
        str(path.relative_to(sound_checkpoint)) for path in sound_checkpoint.rglob("*") if path.is_file()
    ]
    assert sorted(found) == sorted(CHECKPOINT_FILES)
    checkpoint.verify(sound_checkpoint)


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
@pytest.mark.parametrize("damage", [_damage, _flip_a_bit, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    sound_checkpoint: Path, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    bad, said = tmp_path / "4", list[str]()
    shutil.copytree(sound_checkpoint, bad)
    damage(bad / name)
    named = ".+" if name == "manifest.json" else re.escape(name)  # a wrong sum blames the file that it is of
    expected = rf"{bad} is not a complete checkpoint: {named} (is (missing|damaged)|cannot be read)"
    with pytest.raises(UserError, match=expected):
        checkpoint.verify(bad)
    both = [("runs/mine/4", bad), ("runs/mine/2", sound_checkpoint)]
    assert checkpoint.choose_undamaged(both, said.append) == sound_checkpoint
    assert len(said) == 1
    assert said[0].startswith("runs/mine/4 is not a complete checkpoint: ")
    with pytest.raises(
        UserError, match="and there is no earlier one; start the run again under another name"
    ):
        checkpoint.choose_undamaged(both[:1], said.append)


def test_a_run_without_checkpoints_starts_at_its_beginning() -> None:
    assert checkpoint.choose_undamaged([], print) is None


def test_a_damaged_checkpoint_is_not_loaded(
    tiny_pipeline_folder: Path, tmp_path: Path, sound_checkpoint: Path
) -> None:
    bad = tmp_path / "2"
    shutil.copytree(sound_checkpoint, bad)
    _flip_a_bit(bad / "optimizer.pt")
    with pytest.raises(UserError, match=r"2 is not a complete checkpoint: optimizer\.pt is damaged"):
        train(tiny_config(tiny_pipeline_folder, num_steps=4), on_step=print, resume_from=bad)


@pytest.mark.slow
def test_a_checkpoint_of_another_adapter_is_refused(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    train(tiny_config(tiny_pipeline_folder, num_steps=2), on_step=Keeper(tmp_path))
    other = tiny_config(tiny_pipeline_folder, num_steps=4, adapter={"rank": 3})
    with pytest.raises(ValueError, match=r"has rank 2 and alpha 8\.0, the model's has rank 3"):
        train(other, on_step=Keeper(tmp_path / "more"), resume_from=tmp_path / "2")
    narrower = tiny_config(tiny_pipeline_folder, num_steps=4, adapter={"rank": 2, "target_modules": ["to_q"]})
    with pytest.raises(ValueError, match=r"belongs to another model: \d+ tensors differ, the first is"):
        train(narrower, on_step=Keeper(tmp_path / "more"), resume_from=tmp_path / "2")


def test_damaged_weights_are_named(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "damaged"
    shutil.copytree(tiny_pipeline_folder, weights)
    _damage(weights / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=rf"model.weights: .*{weights}"):
        train(tiny_config(weights))


def test_an_unreachable_hub_is_one_sentence(tiny_pipeline_folder: Path) -> None:
    config = tiny_config(tiny_pipeline_folder)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"weights": "nobody/nothing"})}
    )
    with pytest.raises(
        ValueError,
        match=r"'nobody/nothing' is neither a local folder nor in the Hugging Face cache.*"
        r"hf download nobody/nothing",
    ) as error:
        train(config)
    assert "\n" not in str(error.value)


def test_unknown_layers_for_the_adapter_are_named(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"adapter.target_modules \['nothing'\] do not fit this denoiser"):
        train(tiny_config(tiny_pipeline_folder, adapter={"target_modules": ["nothing"]}))


@pytest.mark.slow
def test_saved_adapter_reproduces_the_evaluation_and_loads_in_peft(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    from diffusers import UNet3DConditionModel
    from peft import PeftModel

    config, keeper = tiny_config(tiny_pipeline_folder, num_steps=3), Keeper(tmp_path)
    train(config, on_step=keeper)
    again = evaluate_adapter(
        config.model_copy(update={"adapter": config.adapter.model_copy(update={"rank": 5})}),
        tmp_path / "3" / "adapter",
    )
    assert again["eval/reward/brightness"] == keeper.reports[3].metrics["eval/reward/brightness"]
    assert again["eval/reward/brightness"] != evaluate_adapter(config, None)["eval/reward/brightness"]

    plain = UNet3DConditionModel.from_pretrained(tiny_pipeline_folder / "unet")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "3" / "adapter")
    from safetensors.torch import load_file

    mine = load_file(tmp_path / "3" / "adapter" / "adapter_model.safetensors")
    theirs = {
        name.replace(".default", ""): value for name, value in loaded.named_parameters() if "lora" in name
    }
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(value.any() for name, value in mine.items() if "lora_B" in name)


def test_generate_writes_a_playable_video(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_pipeline_folder)
    videos = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        path = tmp_path / "folder" / f"{name}.mp4"
        generate_video(config, "a red star moving up", None, seed, path)
        videos.append(decode(path)[1])
    first, again, other = videos
    assert len(first) == config.sampling.num_frames
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_state_survives_json() -> None:
    import json

    state = State(step=3, before={"a": [0.1, 1e-17]}, best_metrics={"eval/objective": float("-inf")})
    assert State(**json.loads(json.dumps(dataclasses.asdict(state)))) == state


def test_reward_config_keeps_options_apart() -> None:
    assert RewardConfig(reward="hps", weights="x").options == {"weights": "x"}
