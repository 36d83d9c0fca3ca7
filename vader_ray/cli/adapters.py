"""Commands that convert and merge saved adapters."""

from __future__ import annotations

import sys
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from vader_ray.cli.recipes import ADAPTER_HELP, load_recipe
from vader_ray.config import ExperimentConfig
from vader_ray.display import display_stages
from vader_ray.errors import UserError
from vader_ray.outputs import check_output_folder, explain_write_errors

Format: TypeAlias = Literal["diffusers", "comfyui", "peft"]


def export(
    adapter: Annotated[Path, typer.Argument(help=ADAPTER_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a .safetensors file.")],
    format: Annotated[Format, typer.Option(help="Program whose key names are written.")] = "diffusers",
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Write the recipe's denoiser with the adapter merged into its weights."),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe of the model, needed for --merge and for the alpha of a .pt file."),
    ] = None,
) -> None:
    """Write a saved adapter for other programs, or the whole denoiser with the adapter merged."""
    with display_stages(sys.stderr, f"export {adapter}: importing diffusers"):
        written = _export(adapter, output, format, merge, recipe)
    for path in written:
        print(path.resolve())


def _export(adapter: Path, output: Path, format: Format, merge: bool, recipe: str | None) -> list[Path]:
    config = load_recipe(recipe, None) if recipe else None
    if merge and config is None:
        raise UserError("--merge needs the model into which the adapter goes; name its recipe by --recipe")
    check_output_folder(output if merge or output.suffix != ".safetensors" else output.parent)
    from vader_ray import models
    from vader_ray.hub import find_adapter
    from vader_ray.models.adapters.files import PEFT_ALPHA
    from vader_ray.training.inference import merge_adapter

    adapter = find_adapter(adapter)
    if format == "comfyui" and not merge:
        _check_comfyui(adapter, config)
    with explain_write_errors(output):
        if merge and config is not None:
            return merge_adapter(config, adapter, output)
        alpha = PEFT_ALPHA if config is None else config.adapter.alpha
        return models.export_adapter(adapter, format, output, bare_alpha=alpha)


def _check_comfyui(adapter: Path, config: ExperimentConfig | None) -> None:
    """Refuse the adapter of a family that ComfyUI does not have, if the family is known."""
    from vader_ray import models
    from vader_ray.orchestration.publishing.finished_run import recipe_of_adapter

    family = config.model.family if config else recipe_of_adapter(adapter).get("model", {}).get("family")
    if family is not None and not models.resolve(family).loads_in_comfyui:
        raise UserError(
            f"ComfyUI has no network of model.family={family}, so it cannot load this adapter; choose "
            "--format diffusers or peft"
        )


def push(
    adapter: Annotated[
        Path, typer.Argument(help="Folder of a saved adapter, such as runs/mine/best_adapter.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    base_model: Annotated[
        str | None,
        typer.Option(help="Hub id of the base model. Default: the weights of the run's recipe."),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            "--license", help="The hub's name of the adapter's licence. Default: as the base model's."
        ),
    ] = None,
) -> None:
    """Push a saved adapter to the Hugging Face hub, with a model card, its recipe and sample videos.

    The token is that of HF_TOKEN or `hf auth login`.
    """
    with display_stages(sys.stderr, f"push {adapter} to {repository}"):
        from vader_ray.orchestration.publishing.push import push_to_hub

        url = push_to_hub(adapter, repository, base_model=base_model, licence=licence, private=private)
    print(url)


def mix(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="WEIGHT=ADAPTER...", help="Two or more, e.g. 0.5=runs/a/best_adapter."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
) -> None:
    """Write an adapter soup: one adapter with the weighted sum of the effects of several adapters."""
    parts = [_parse_part(text) for text in adapters]
    check_output_folder(output)
    with display_stages(sys.stderr, f"mix {len(parts)} adapters"), explain_write_errors(output):
        from vader_ray.models import mix_adapters

        mix_adapters(parts, output)
    print(output.resolve())


def _parse_part(text: str) -> tuple[Path, float]:
    weight, _, folder = text.partition("=")
    try:
        number = float(weight)
    except ValueError:
        number = nan
    if not isfinite(number) or not folder:
        raise UserError(f"{text!r} is not WEIGHT=ADAPTER with a finite weight; write 0.5=runs/a/best_adapter")
    return Path(folder), number
