"""Commands that convert and merge saved adapters."""

from __future__ import annotations

from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Literal

import typer

from vader_ray.cli.recipes import ADAPTER_HELP, load_recipe
from vader_ray.errors import UserError
from vader_ray.outputs import check_output_folder, explain_write_errors


def export(
    adapter: Annotated[Path, typer.Argument(help=ADAPTER_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a .safetensors file.")],
    format: Annotated[
        Literal["diffusers", "comfyui", "peft"], typer.Option(help="Program whose key names are written.")
    ] = "diffusers",
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
    config = load_recipe(recipe, None) if recipe else None
    if merge and config is None:
        raise UserError("--merge needs the model into which the adapter goes; name its recipe by --recipe")
    check_output_folder(output if merge or output.suffix != ".safetensors" else output.parent)
    from vader_ray import models
    from vader_ray.training.inference import merge_adapter

    with explain_write_errors(output):
        if merge and config is not None:
            written = merge_adapter(config, adapter, output)
        else:
            alpha = {} if config is None else {"bare_alpha": config.adapter.alpha}
            written = models.export_adapter(adapter, format, output, **alpha)
    for path in written:
        print(path.resolve())


def mix(
    adapters: Annotated[
        list[str],
        typer.Argument(metavar="WEIGHT=ADAPTER...", help="Two or more, e.g. 0.5=runs/a/best_adapter."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
) -> None:
    """Write an adapter soup: one adapter with the weighted sum of the effects of several adapters."""
    from vader_ray.models import mix_adapters

    parts = [_parse_part(text) for text in adapters]
    check_output_folder(output)
    with explain_write_errors(output):
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
