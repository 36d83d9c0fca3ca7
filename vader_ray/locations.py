"""Where weights and prompts lie: packaged, local or on a hub. Part of the configuration; imports no framework."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

PACKAGE = Path(__file__).parent
WORLD_PREFIX = "world:"


def locate(weights: str) -> str:
    """Where weights lie: the packaged folder for ``world:NAME``, else the local path or hub id as it was given."""
    if weights.startswith(WORLD_PREFIX):
        return str(PACKAGE / "world" / "checkpoints" / weights.removeprefix(WORLD_PREFIX))
    return weights


def _absolute_if_local(weights: str, info: ValidationInfo) -> str:
    """Workers run in another directory, so a local path is made absolute when the recipe is read."""
    if weights.startswith(WORLD_PREFIX):
        if not Path(locate(weights)).exists():
            raise ValueError(f"{weights!r} names no packaged checkpoint; there are {', '.join(_packaged_checkpoints())}")
        return weights
    looks_local = weights.startswith((".", "/", "~")) or Path(weights).exists()
    if not looks_local:
        return weights
    path = _from_recipe(weights, info)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give an existing path, a hub id (owner/name) or world:NAME")
    return str(path)


def _packaged_checkpoints() -> list[str]:
    return sorted(path.name for path in (PACKAGE / "world" / "checkpoints").iterdir() if path.is_dir())


def _from_recipe(path: str, info: ValidationInfo) -> Path:
    """An absolute path; a relative one starts at the recipe's folder, then at the working directory."""
    folder = (info.context or {}).get("folder")
    expanded = Path(path).expanduser()
    if folder is not None and (beside := Path(folder) / expanded).exists():
        return beside.resolve()
    return expanded.resolve()


def _read_prompts(value: object, info: ValidationInfo) -> object:
    """A file with one prompt per line is read at load, so that a run carries its prompts with it."""
    if not isinstance(value, str):
        return value
    path = PACKAGE / "world" / "prompts" / f"{value.removeprefix(WORLD_PREFIX)}.txt"
    if not value.startswith(WORLD_PREFIX):
        path = _from_recipe(value, info)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"cannot read the prompt file {path} ({type(error).__name__}); give a text file, one prompt per line"
        ) from None
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one prompt per line")
    return prompts


Weights = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_local)]
Prompts = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_read_prompts)]
