"""Calls of the Python API that are refused, with a piece of the sentence: what is wrong, and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vader_ray as vr

RATE = {"optimizer.learning_rate": vr.loguniform(1e-4, 1e-2)}
SIZE: dict[str, Any] = {"num_frames": 3, "height": 8, "width": 8}
REWARD: Any = {"brightness": 1.0}


def load(overrides: Any = None, recipe: Any = "shapes_hps", /, **settings: Any) -> Callable[[], object]:
    return lambda: vr.load_recipe(recipe, overrides, **settings)


def sweep(space: Any, recipe: Any = "shapes_hps", **arguments: Any) -> Callable[[], object]:
    return lambda: vr.sweep(recipe, space, **arguments)


def trainer(rewards: Any = REWARD, prompts: Any = ("a star",), **arguments: Any) -> Callable[[], object]:
    return lambda: vr.Trainer(None, rewards, prompts, **arguments)


def reward(name: Any, **options: Any) -> Callable[[], object]:
    return lambda: vr.load_reward(name, **options)


def train(recipe: Any = "shapes_hps", **arguments: Any) -> Callable[[], object]:
    return lambda: vr.train(recipe, **arguments)


class Pipeline:
    """No pipeline of diffusers."""


REFUSED: list[tuple[Callable[[], object], str]] = [
    (load(None, "shape_hps"), "there is no recipe 'shape_hps'; did you mean 'shapes_hps'?"),
    (load(None, ""), "there is no recipe ''; give the path of a YAML file or one of"),
    (load(None, None), "there is no recipe 'None'; give the path of a YAML file"),
    (load(None, "a\0b"), "there is no recipe 'a\\x00b'; give the path of a YAML file"),
    (load({"sampling.depth": 2}), "sampling.depth: there is no such setting; here are"),
    (load({1: 2}), "1 is no dotted path of a setting; give a text such as 'sampling.eta'"),
    (load({None: 2}), "None is no dotted path of a setting"),
    (load({"": 2}), ": there is no such setting; here are adapter"),
    (load(num_step=3), "num_step: there is no such setting; did you mean 'num_steps'?"),
    (load(seed=2**64), "seed: Input should be less than 9223372036854775808, not 18446744073709551616"),
    (load(seed=10**5000), "seed: Input should be less than 9223372036854775808, not a number of 16610 bits"),
    (load(seed=float("nan")), "seed: Input should be a finite number, not nan"),
    (load(seed=object()), "seed: Input should be a valid integer, not <object object at"),
    (load(name="a\0b"), "name: the text has a NUL character or half of a UTF-16 pair; remove it"),
    (load(description="\ud800"), "description: the text has a NUL character or half of a UTF-16 pair"),
    (load(model=3), "model: Input should be a valid dictionary or instance of ModelConfig, not 3"),
    (
        load({"prompts.train": ["a\ud800b"]}),
        "prompts.train: prompt 1 has a NUL character or half of a UTF-16 pair",
    ),
    (load({"prompts.train": "x" * 5000}), "which is no file; give a .txt file with one prompt per line"),
    (
        load({"sampling.num_frames": 10**30}),
        "sampling.num_frames: Input should be less than or equal to 1048576",
    ),
    (
        load(rewards=["hps"]),
        "rewards.0: Input should be a valid dictionary or instance of RewardConfig, not 'hps'",
    ),
    (reward("hsp"), "reward: there is no 'hsp'; did you mean 'hps'? give one of action"),
    (reward(""), "load_reward.reward: String should have at least 1 character, not ''"),
    (reward(None), "load_reward.reward: Input should be a valid string, not None"),
    (reward("brightness", precision="int8"), "load_reward.precision: Input should be 'float32'"),
    (reward("brightness", colour="red"), "brightness: there is no option 'colour'; it has"),
    (reward("hps", weights="shapes:hsp"), "names no packaged checkpoint; did you mean 'shapes:hps'?"),
    (reward("hps", weights="/no/where"), "hps.weights: /no/where does not exist; give an existing path"),
    (reward("hps", weights="a\0b"), "hps.weights: 'a\\x00b' has a NUL character"),
    (reward("hps", weights=3), "hps.weights: Input should be a valid string, not 3"),
    (reward("brightness", device="gpu"), "device='gpu': "),
    (
        lambda: vr.packaged_weights("hsp"),
        "there are no packaged weights 'hsp'; did you mean 'hps'? there are",
    ),
    (lambda: vr.packaged_weights("../.."), "there are no packaged weights '../..'; there are action"),
    (lambda: vr.packaged_weights(""), "there are no packaged weights ''; there are action"),
    (sweep({}), "sweep shapes_hps_sweep: its space is empty; map a setting to its values"),
    (sweep({"seed": [0, 1]}), "'seed': [0, 1] gives no values; map each swept name to tune.grid_search"),
    (sweep({"seed": 3}), "'seed': 3 gives no values; map each swept name to tune.grid_search"),
    (sweep({"seed": vr.grid_search([])}), "'seed': {'grid_search': []} gives no values"),
    (sweep({1: vr.grid_search([1])}), "1: {'grid_search': [1]} gives no values"),
    (sweep({"": vr.grid_search([1])}), "'': {'grid_search': [1]} gives no values"),
    (sweep(RATE, num_trials=0), "num_trials=0: give a whole number from 1 to 100000"),
    (sweep(RATE, num_trials=-1), "num_trials=-1: give a whole number from 1 to 100000"),
    (sweep(RATE, num_trials=10**9), "num_trials=1000000000: give a whole number from 1 to 100000"),
    (sweep(RATE, num_trials=1.5), "num_trials=1.5: give a whole number"),
    (sweep(RATE, num_trials=True), "num_trials=True: give a whole number"),
    (sweep(RATE, max_concurrent=0), "max_concurrent=0: give a whole number from 1"),
    (sweep(RATE, workers_per_trial=0), "workers_per_trial=0: give a whole number from 1"),
    (sweep(RATE, workers_per_trial=3), "videos_per_step=8 cannot be shared evenly by runtime.num_workers=3"),
    (sweep(RATE, search="tep"), "search='tep': did you mean 'tpe'? choose 'grid', 'random' or 'tpe'"),
    (sweep(RATE, search=3), "search=3: choose 'grid', 'random' or 'tpe'"),
    (
        sweep(RATE, search="grid"),
        "'optimizer.learning_rate' is no tune.grid_search; set search to 'random' or",
    ),
    (sweep({"seed": vr.grid_search([1])}, search="tpe"), "'seed' is a grid; give search='tpe' domains only"),
    (sweep(RATE, name="../x"), "sweep '../x': the name is that of a folder; begin with a letter or a digit"),
    (sweep(RATE, name="x" * 300), "the name is that of a folder; begin with a letter or a digit"),
    (sweep(RATE, name="a\0b"), "the name is that of a folder; begin with a letter or a digit"),
    (sweep(RATE, recipe="nothing"), "there is no recipe 'nothing'; give the path of a YAML file"),
    (sweep(RATE, storage=""), "--storage '': give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a shared folder"),
    (
        sweep({"optimizer.lr": vr.uniform(1, 2)}),
        "can work; optimizer.lr=1.55: optimizer.lr: there is no such setting",
    ),
    (
        sweep({"seed": vr.grid_search([-1, -2])}),
        "no trial of the sweep shapes_hps_sweep can work; seed=-1: seed: Input",
    ),
    (
        sweep({"model.weights": vr.grid_search(["/a", "/b"])}),
        "cannot be the name of a folder; change the values",
    ),
    (
        sweep({"description": vr.grid_search(["x" * 300])}),
        "cannot be the name of a folder; change the values",
    ),
    (trainer(rewards={}), "rewards: give a mapping of one reward or more to its weight"),
    (trainer(prompts=()), "prompts=(): give one text or more"),
    (trainer(prompts=[1]), "prompts=(1,): give one text or more"),
    (trainer(prompts=["a star", ""]), "prompts: prompt 2 is empty; write a text, or delete it"),
    (trainer(prompts=["a\0b"]), "prompts: prompt 1 has a NUL character"),
    (trainer(prompts=["a" * 10_001]), "prompts: prompt 1 has 10001 characters; shorten it"),
    (trainer(learning_rate=0), "Trainer.learning_rate: Input should be greater than 0, not 0"),
    (trainer(learning_rate=float("nan")), "Trainer.learning_rate: Input should be a finite number, not nan"),
    (trainer(learning_rate="fast"), "Trainer.learning_rate: Input should be a valid number"),
    (trainer(schedule="step"), "Trainer.schedule: Input should be 'constant', 'cosine' or 'linear'"),
    (trainer(ema_decay=1.0), "Trainer.ema_decay: Input should be less than 1"),
    (trainer(optimizer="sgd"), "Trainer.optimizer: Input should be 'adamw' or 'adamw8bit'"),
    (trainer(num_steps=0), "Trainer.num_steps: Input should be greater than 0, not 0"),
    (trainer(num_steps=10**12), "Trainer.num_steps: Input should be less than or equal to 1000000000"),
    (trainer(videos_per_step=0), "Trainer.videos_per_step: Input should be greater than 0"),
    (trainer(prefix_batch_size=-1), "Trainer.prefix_batch_size: Input should be greater than 0"),
    (trainer(micro_batch_size=1.5), "Trainer.micro_batch_size: Input should be a valid integer"),
    (trainer(decode_chunk_size=0), "Trainer.decode_chunk_size: Input should be greater than 0"),
    (trainer(max_grad_norm=-1), "Trainer.max_grad_norm: Input should be greater than 0"),
    (trainer(seed=-1), "seed=-1: give a whole number from 0 to 9223372036854775807"),
    (trainer(seed=2**63), "seed=9223372036854775808: give a whole number from 0"),
    (trainer(seed=1.5), "seed=1.5: give a whole number from 0"),
    (train(prompts=[]), "prompts.train: Tuple should have at least 1 item"),
    (train(prompts=["a\0b"]), "prompts.train: prompt 1 has a NUL character"),
    (train(rewards=[]), "rewards: Tuple should have at least 1 item"),
    (train(rewards=["hsp"]), "reward: there is no 'hsp'; did you mean 'hps'?"),
    (train(rewards=[3]), "rewards.0.reward: Input should be a valid string, not 3"),
    (train(workers=0), "runtime.num_workers: Input should be greater than 0"),
    (train(run_name="../x"), "--run-name '../x' cannot name a run; begin with a letter or a digit"),
    (train(run_name="x" * 300), "cannot name a run; begin with a letter or a digit"),
    (lambda: vr.generate("shapes_hps", "a\0b"), "prompts: prompt 1 has a NUL character"),
    (
        lambda: vr.generate("shapes_hps", "a star", seed=2**64),
        "seed=18446744073709551616: give a whole number",
    ),
    (lambda: vr.generate("shapes_hps", "a star", output="x.png"), "x.png does not end in .mp4"),
    (lambda: vr.generate("shapes_hps", "a star", output="a\0b.mp4"), "a\0b.mp4 has a NUL character"),
    (
        lambda: vr.VideoModel.from_pipeline(Pipeline(), **SIZE),
        "Pipeline is not a known video pipeline; give one of",
    ),
    (
        lambda: vr.VideoModel.from_pipeline(None, **SIZE),
        "NoneType is not a known video pipeline; give one of",
    ),
]

OF_A_PIPELINE: list[tuple[dict[str, Any], str]] = [
    ({"num_frames": 0}, "from_pipeline.num_frames: Input should be greater than 0, not 0"),
    ({"height": 10**7}, "from_pipeline.height: Input should be less than or equal to 32768"),
    ({"num_inference_steps": 0}, "from_pipeline.num_inference_steps: Input should be greater than 0"),
    ({"guidance_scale": 0.5}, "from_pipeline.guidance_scale: Input should be greater than or equal to 1"),
    ({"guidance_scale": float("nan")}, "from_pipeline.guidance_scale: Input should be a finite number"),
    ({"negative_prompt": "a\0b"}, "from_pipeline.negative_prompt: the text has a NUL character"),
    ({"lora_rank": 0}, "from_pipeline: adapter.rank: Input should be greater than 0"),
    ({"lora_rank": 10**6}, "from_pipeline: adapter.rank: Input should be less than or equal to 16384"),
    ({"lora_alpha": float("inf")}, "from_pipeline: adapter.alpha: Input should be a finite number"),
    ({"target_modules": []}, "from_pipeline: adapter.target_modules: Tuple should have at least 1 item"),
    ({"target_modules": "to_q"}, "from_pipeline: adapter.target_modules: Input should be a valid tuple"),
    ({"target_modules": ["nothing"]}, "adapter.target_modules ['nothing'] do not fit this denoiser"),
    ({"decode_chunk_size": 0}, "from_pipeline.decode_chunk_size: Input should be greater than 0"),
    ({"seed": -1}, "seed=-1: give a whole number from 0"),
    ({"seed": 2**64}, "seed=18446744073709551616: give a whole number from 0"),
]
"""Arguments of `VideoModel.from_pipeline` for a loaded pipeline."""
