"""The model card of an adapter: base model, recipe, rewards before and after, guard, videos, licences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import jinja2
import yaml

from vader_ray.orchestration.publishing.finished_run import FinishedRun
from vader_ray.orchestration.runs.summary import OPTIMISTIC, REWARD, Results
from vader_ray.paths import SHAPES_PREFIX
from vader_ray.plugins import FAMILIES, REWARDS
from vader_ray.training.web import number, signed
from vader_ray.weights import HUB_ID


def model_card(  # noqa: PLR0913
    title: str,
    source: str,
    base_model: str,
    run: FinishedRun | None,
    *,
    is_for_diffusers: bool,
    networks: Sequence[str],
    licence: str | None = None,
    videos: Mapping[str, str] | None = None,
    sheet: str | None = None,
) -> str:
    """Return the text of a model card, as the Hugging Face hub shows it.

    Args:
        title: heading of the card.
        source: ``owner/name`` of the adapter, or its folder, from which the card's example loads it.
        base_model: hub id, ``shapes:NAME`` or name of the base model.
        run: the run that trained the adapter; without one the card has no results.
        is_for_diffusers: diffusers' own loader reads the adapter; else peft's does.
        networks: networks that the adapter is for, by their names in the pipeline; the first denoiser may be
            empty.
        licence: the hub's name of the adapter's licence; by default that of the base model, by a link.
        videos: prompt of each sample video by its file in the repository.
        sheet: file of the picture of videos before and after.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=False, trim_blocks=True,  # noqa: S701
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    is_packaged = base_model.startswith(SHAPES_PREFIX)
    packaged = f'vr.packaged_weights("{base_model.removeprefix(SHAPES_PREFIX)}")'
    return environment.get_template("model_card.md.j2").render(
        metadata=_metadata(base_model, run, licence or ("apache-2.0" if is_packaged else None), videos or {}),
        title=title,
        source=source,
        is_for_diffusers=is_for_diffusers,
        networks=[name or _denoiser(run) for name in networks],
        denoiser=_denoiser(run),
        loras=_merged_adapters(run) if run else [],
        base=f"[{base_model}](https://huggingface.co/{base_model})"
        if _is_hub_id(base_model)
        else f"`{base_model}`",
        is_packaged=is_packaged,
        pretrained=packaged if is_packaged else f'"{base_model}"',
        run=_described(run, sheet) if run else None,
        licences=list(_licences(run)) if run else [],
    )


def _merged_adapters(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the recipe's ``model.loras``; of a local file only the name, as its path is private."""
    adapters: list[dict[str, Any]] = run.recipe["model"].get("loras", [])
    return [each | {"weights": Path(each["weights"]).name} if _is_local(each) else each for each in adapters]


def _is_local(adapter: Mapping[str, Any]) -> bool:
    return str(adapter["weights"]).startswith("/")


def _denoiser(run: FinishedRun | None) -> str:
    """Return the name of the (first) denoiser in the pipeline of the run's model."""
    family = run.recipe["model"].get("family") if run else None
    if family not in FAMILIES.names():
        return "unet"
    return str(FAMILIES.read(family).attributes["denoiser_name"])


def _is_hub_id(name: str) -> bool:
    return bool(HUB_ID.fullmatch(name))


def _metadata(
    base_model: str, run: FinishedRun | None, licence: str | None, videos: Mapping[str, str]
) -> str:
    """Return the block of YAML at the head of the card."""
    with_images = run is not None and any(" | " in prompt for prompt in run.recipe["prompts"]["validation"])
    metadata: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "image-to-video" if with_images else "text-to-video",
        "tags": ["lora", "vader", "reward-gradients"],
    }
    if _is_hub_id(base_model):
        metadata |= {"base_model": base_model, "base_model_relation": "adapter"}
    metadata |= {"license": licence or "other"}
    if licence is None and _is_hub_id(base_model):
        metadata |= {"license_name": "that-of-the-base-model"}
        metadata |= {"license_link": f"https://huggingface.co/{base_model}"}
    if videos:
        metadata["widget"] = [{"text": prompt, "output": {"url": file}} for file, prompt in videos.items()]
    return yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip()


def _described(run: FinishedRun, sheet: str | None) -> dict[str, Any]:
    """Return the values of the card's sections about the run."""
    recipe, summary = run.recipe, run.summary
    trained = {_name(spec) for spec in recipe["rewards"]}
    results = run.results
    chosen = recipe["adapter"].get("networks")
    on = f" on {' and '.join(chosen)}" if chosen else ""
    return {
        "description": recipe["description"].rstrip(".") or "Trained on rewards",
        "recipe": summary.recipe,
        "setup": (
            f"{run.step} of {recipe['num_steps']} steps of {recipe['videos_per_step']} videos, rank "
            f"{recipe['adapter']['rank']}{on}, learning rate {recipe['optimizer']['learning_rate']}."
        ),
        "step": run.step,
        "is_tested": results.split == "test",
        "optimistic": OPTIMISTIC,
        "rewards": [
            _row(results, f"{REWARD}{name}") | {"kind": "trained" if name in trained else "held out"}
            for name in results.rewards
            if f"{REWARD}{name}" in results.after
        ],
        "metrics": [_row(results, name) for name in results.metrics],
        "guard_metrics": summary.guard_metrics,
        "alarms": [alarm.removeprefix("guard: ") for alarm in summary.alarms],
        "sheet": sheet,
    }


def _row(results: Results, metric: str) -> dict[str, str]:
    gain = results.gains.get(metric)
    interval = f" ({signed(gain.low)} to {signed(gain.high)})" if gain and isfinite(gain.low) else ""
    return {
        "name": metric.removeprefix(REWARD).removeprefix("eval/"),
        "before": number(results.before[metric]),
        "after": number(results.after[metric]),
        "gain": f"{signed(gain.mean)}{interval}" if gain else "",
    }


def _name(spec: Mapping[str, Any]) -> str:
    return str(spec.get("label") or str(spec["reward"]).rsplit(".", 1)[-1])


def _licences(run: FinishedRun) -> Iterator[tuple[str, str]]:
    """Yield name and licence of the default weights of the rewards of this package that the run trained."""
    for spec in run.recipe["rewards"]:
        if spec["reward"] in REWARDS.names():
            licence = REWARDS.read(spec["reward"]).attributes.get("licence")
            if licence:
                yield _name(spec), str(licence)
