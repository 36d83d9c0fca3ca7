"""The command that writes a recipe for a model, rewards and GPUs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from vader_ray.cli.recipes import Overrides, load_recipe
from vader_ray.config import ExperimentConfig, apply_overrides, merge, model_names, read_recipe
from vader_ray.display import display_stages
from vader_ray.errors import UserError
from vader_ray.files import scratch_folder, write_text
from vader_ray.plugins import REWARDS
from vader_ray.preflight.devices import check_devices, is_machine
from vader_ray.stages import announce

_HELD_OUT: tuple[Mapping[str, Any], ...] = (
    {"reward": "pickscore", "weights": "yuvalkirstain/PickScore_v1"},
    {"reward": "hps", "version": "v2.1"},
    {"reward": "aesthetic"},
)
"""Rewards to hold out; the first that is not trained is taken if the model's own one is trained."""


def init(
    path: Annotated[Path, typer.Argument(help="The YAML file to write; its name is the recipe's.")],
    model: Annotated[
        str,
        typer.Option(help="A model of `vader-ray list recipes`, such as wan_1_3b, or any recipe to extend."),
    ],
    reward: Annotated[list[str], typer.Option(help="A reward to train; may be repeated.")],
    gpu: Annotated[
        str | None,
        typer.Option(
            help="GPUs, e.g. rtx4090, 24GB or 8xh100: settings that fit are found and written. Takes "
            "minutes; needs the model's configuration files, but no weights and no GPU."
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a recipe that trains rewards on a model, with settings that fit some GPUs."""
    if path.exists():
        raise UserError(f"{path} exists; name another file, or delete it")
    for name in reward:
        REWARDS.check_name(name)
    machine = gpu if gpu is None or is_machine(gpu) else f"1x{gpu}"
    if machine is not None:
        check_devices([machine])
    base = f"models/{model}" if f"models/{model}" in model_names() else model
    if Path(base).is_file():
        base = str(Path(base).resolve())
    settings = _settings(path.stem, base, reward)
    apply_overrides(settings, overrides or [])
    comments = [f"vader-ray train {path}", f"vader-ray show {path} # all settings, and where each comes from"]
    with display_stages(sys.stderr, f"init {path}: checking the recipe"):
        with scratch_folder() as folder:
            draft = folder / path.name
            draft.write_text(_text(base, settings, comments), encoding="utf-8")
            config = load_recipe(str(draft), None)
        if machine is not None:
            found, described = _fit(config, machine)
            apply_overrides(settings, found)
            comments += described
    write_text(path, _text(base, settings, comments))
    print(path)


def to_yaml(value: object) -> str:
    """Return a value as one line of YAML, as it stands in an override ``KEY=VALUE``."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _settings(name: str, base: str, rewards: Sequence[str]) -> dict[str, Any]:
    """Return the recipe's own settings: its rewards, and one to hold out if the base's own one is trained."""
    settings: dict[str, Any] = {"name": name, "rewards": [{"reward": each} for each in rewards]}
    held_out = merge(read_recipe(base)).get("eval_rewards", [])
    if not held_out or any(each["reward"] in rewards for each in held_out):
        other = next(each for each in _HELD_OUT if each["reward"] not in rewards)
        settings["eval_rewards"] = [dict(other)]
        settings["guard"] = {"metrics": [f"eval/reward/{other['reward']}", "eval/motion"]}
    return settings


def _fit(config: ExperimentConfig, name: str) -> tuple[Sequence[str], list[str]]:
    """Return settings with which a recipe fits GPUs, and lines that describe them."""
    announce(f"counting the memory of a step for {name}, which takes some minutes")
    from vader_ray.preflight.machine_report import describe
    from vader_ray.preflight.machines import StepCounter, find_plan, machine

    gpus = machine(name)
    plan = find_plan(config, gpus, StepCounter())
    lines = [line.strip() for line in describe(gpus, plan).splitlines()]
    if not plan.fits:
        raise UserError(f"{lines[0]}, {lines[1]}; name larger GPUs or a smaller video")
    return plan.settings, ["Counted or estimated, not measured:", *lines]


def _text(base: str, settings: Mapping[str, Any], comments: Iterable[str]) -> str:
    own = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=110)
    return "".join(f"# {line}\n" for line in comments) + f"extends: {base}\n{own}"
