"""What `vader_ray.preflight.estimate` counts without weights: the packaged recipes at their published sizes.

    python -m benchmarks.preflight                                   # all cases, a few minutes, any machine
    python -m benchmarks.preflight --case wan_1_3b_hps --output estimate.json
    python -m benchmarks.preflight --case wan_1_3b_hps --case wan_14b --beside hpsv3 --beside video_reward

With ``--beside`` the table has the memory of rewards on all frames, beside each model in one process and on a
GPU of their own. Model and reward are counted once each: the peak is that of the step, or what the model has
in memory while the reward computes with the reward's own peak, whichever is larger.

Nothing is downloaded: the sizes are those of `benchmarks.published`. ``tests/preflight/test_estimate.py``
compares such estimates with measurements.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.published import (
    BY_WEIGHTS,
    MODELS,
    write_configuration,
    write_motion_adapter,
    write_open_sora,
)
from benchmarks.published_rewards import (
    IN_USE,
    QWEN_REWARDS,
    Memory,
    count_memory,
    reward_of,
    writers_of,
    written,
)
from vader_ray.config import ExperimentConfig, load, override
from vader_ray.preflight import estimate
from vader_ray.preflight.devices import DEVICES

GIB = 2**30


def size(num_frames: int, height: int, width: int) -> tuple[str, ...]:
    """Settings of a video's size."""
    sizes = {"num_frames": num_frames, "height": height, "width": width}
    return tuple(f"sampling.{name}={value}" for name, value in sizes.items())


NO_BLOCK = ("runtime.activation_checkpointing=none", "sampling.recompute=true")
BLOCK = ("runtime.activation_checkpointing=block", "sampling.recompute=nested")
ALL, FIRST = "rewards.0.frames=all", "rewards.0.frames=first:1"
EIGHT = ("videos_per_step=8", "runtime.num_workers=8", "runtime.shard=8")
OFFLOAD = "runtime.offload_weights=true"
FRAMES = ((FIRST, *BLOCK), (ALL, *BLOCK))
CASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "modelscope_hps": (NO_BLOCK, (ALL, *NO_BLOCK), BLOCK),
    "videocrafter2_hps": (NO_BLOCK, BLOCK),
    "svd_vjepa": (NO_BLOCK, BLOCK),
    "svd": FRAMES,
    "wan_1_3b_hps": (NO_BLOCK, BLOCK, (ALL, *BLOCK)),
    "wan_14b": (BLOCK, (*BLOCK, *EIGHT), (*BLOCK, OFFLOAD)),
    "ltx": FRAMES,
    "hunyuan_video": FRAMES,
    "mochi": FRAMES,
    "cogvideox_5b": FRAMES,
}
"""Packaged recipes, or models of `LIKE`, and the settings with which they are counted."""
HPS = ("name=counted", "rewards=[{reward: hps, weights: xswu/HPSv2, version: v2.1, frames: first:1}]")
IN_HOST_MEMORY = "model.offload_decoder_cache=true"
EXACT = "model.decoder_precision=float32"
LIKE = {
    "svd": ("models/svd", *HPS),
    "wan_14b": ("models/wan_14b", *HPS),
    "wan_a14b": ("models/wan_a14b", *HPS, *size(81, 720, 1280)),
    "ltx": ("models/ltx", *HPS, IN_HOST_MEMORY),
    "hunyuan_video": ("models/hunyuan_video", *HPS, *size(129, 720, 1280), IN_HOST_MEMORY, EXACT),
    "mochi": ("models/mochi", *HPS, *size(163, 480, 848)),
    "cogvideox_5b": ("models/cogvideox_5b", *HPS),
}
"""Packaged models, and what completes them to a recipe."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case: counted bytes and operations, and seconds estimated from them."""

    recipe: str
    overrides: tuple[str, ...]
    peak_gib: float
    weights_gib: float
    step_gib: float
    host_gib: float
    tflop_per_video: float
    h100_seconds_per_video: float


def recipe_of(name: str, overrides: tuple[str, ...], folder: Path) -> ExperimentConfig:
    """Return a packaged recipe, or that of a model of `LIKE`, with configuration files of published sizes."""
    packaged, *found = LIKE.get(name, (name,))
    recipe = load(packaged, found)
    write = MODELS.get(name) or BY_WEIGHTS.get(recipe.model.weights)
    if write is not None:
        found.append(f"model.weights={write_configuration(write, folder / name)}")
    if recipe.model.family == "opensora":
        found.append(f"model.weights={write_open_sora(folder / name)}")
    if recipe.model.motion_adapter is not None:
        found.append(f"model.motion_adapter={write_motion_adapter(folder / 'motion_adapter')}")
    config = load(packaged, [*found, *overrides])
    files = [
        f"{section}.{index}.{setting}={path}"
        for section in ("rewards", "eval_rewards")
        for index, spec in enumerate(getattr(config, section))
        for setting, path in written(writers_of(spec), folder / spec.reward).items()
    ]
    return override(config, files)


def memory_report(recipe: str, overrides: tuple[str, ...], folder: Path) -> Row:
    """The counts of a packaged recipe, or of a model, at its published size."""
    config = recipe_of(recipe, overrides, folder)
    needed = estimate.estimate_step(config)
    num_videos = config.videos_per_step // config.runtime.num_workers
    return Row(
        recipe,
        overrides,
        peak_gib=needed.peak_bytes / GIB,
        weights_gib=needed.weights_bytes / GIB,
        step_gib=needed.step_bytes / GIB,
        host_gib=needed.host_bytes / GIB,
        tflop_per_video=needed.flops / num_videos / 1e12,
        h100_seconds_per_video=DEVICES["h100"].seconds(needed.operations) / num_videos,
    )


RECORDED = (
    "rewards=[{reward: benchmarks.published_rewards.record_memory}]",
    "eval_rewards=[]",
    "guard.metrics=[eval/motion]",
)
"""Settings for a reward that takes no memory, scores all frames and is the only one."""
NO_REWARD = (*BLOCK, *RECORDED, "sampling.num_inference_steps=1")
"""Settings with which a model is counted for `show_beside`. Steps without gradient take less memory than the
one with, and are left out."""


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Counted bytes of one worker whose reward takes no memory and scores all frames."""

    frames: tuple[int, int, int]
    """Number, height and width in pixels."""
    constant: int
    """Weights, conditioning and optimizer."""
    step: int
    """Peak of a step beyond them."""
    during_reward: int
    """In use beyond them while a reward computes."""

    def peak(self, reward: Memory | None = None) -> int:
        """Return the peak of a step, with a reward in the same process or with none."""
        if reward is None:
            return self.constant + self.step
        activations = reward.peak - reward.weights
        return self.constant + reward.weights + max(self.step, self.during_reward + activations)


def model_memory(config: ExperimentConfig) -> ModelMemory:
    """Count a recipe whose only reward is `record_memory`."""
    IN_USE.clear()
    needed = estimate.estimate_step(config)
    sampling = config.sampling
    return ModelMemory(
        (sampling.num_frames, sampling.height, sampling.width),
        needed.weights_bytes + needed.state_bytes,
        needed.step_bytes,
        IN_USE[0],  # of the step; the evaluation follows
    )


def show_beside(names: list[str], models: list[str], folder: Path) -> None:
    """Print the memory of rewards beside models, in one process and on a GPU of their own."""
    found = {model: model_memory(recipe_of(model, NO_REWARD, folder / "models")) for model in models}
    headings = [f"{model}, alone {each.peak() / GIB:.1f}" for model, each in found.items()]
    table = Table("reward, GiB", "own GPU", *headings, box=None)
    (frames,) = {each.frames for each in found.values()}
    for name in names:
        for index, changes in enumerate(({}, {"checkpointing": False})[: 1 + (name in QWEN_REWARDS)]):
            reward = count_memory(reward_of(name, folder / f"{name}{index}", **changes), *frames)
            peaks = [reward.peak, *(each.peak(reward) for each in found.values())]
            label = f"{name}, layers kept" if changes else name
            table.add_row(label, *(f"{peak / GIB:.1f}" for peak in peaks))
    Console(width=120, highlight=False).print(table)


def main(
    case: Annotated[list[str] | None, typer.Option(help="only these recipes")] = None,
    more: Annotated[
        list[str] | None, typer.Option(help="one more set of settings, separated by blanks")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of all numbers")] = None,
    beside: Annotated[
        list[str] | None, typer.Option(help="a reward to count beside each case instead; several times")
    ] = None,
) -> None:
    """Count the packaged recipes at their published sizes."""
    if beside:
        with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as files:
            show_beside(beside, case or ["wan_1_3b_hps"], Path(files))
        return
    table, rows = Table(title="counted, of one worker; seconds are estimated"), []
    for column in (
        "recipe and settings",
        "peak GiB",
        "weights",
        "step",
        "host",
        "TFLOP / video",
        "h100: s / video",
    ):
        table.add_column(column, justify="left" if column.startswith("recipe") else "right")
    with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as folder:
        for recipe in case or CASES:
            for overrides in [tuple(text.split()) for text in more] if more else CASES[recipe]:
                row = memory_report(recipe, overrides, Path(folder))
                rows.append(asdict(row))
                numbers = list(rows[-1].values())[2:]
                table.add_row(f"{recipe} {' '.join(overrides)}", *(f"{number:.3g}" for number in numbers))
    Console(width=140, highlight=False).print(table)
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
