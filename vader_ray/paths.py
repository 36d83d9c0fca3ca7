"""Paths of weights, prompts and pairs in a recipe: packaged, local or on a hub. Imports no framework."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from vader_ray.dataset_prompts import DATASETS_PREFIX, EXPECTED, read_dataset
from vader_ray.errors import UserError, did_you_mean
from vader_ray.prompt_files import COLUMN, check_prompts, read_prompt_file, text_problem

PACKAGE = Path(__file__).parent
RECIPES = PACKAGE / "recipes"
"""Folder of the packaged recipes."""
PACKAGED_PREFIX = "packaged:"
"""Prefix of the names of packaged lists of prompts for published models."""
SHAPES_PREFIX = "shapes:"
"""Prefix of the names of packaged weights and prompts: those of the embedded shapes data set."""
_NAME = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
"""Form of a name on the Hugging Face hub or of an architecture in a library; any other text is a path."""
PAIR_SUFFIXES = (".parquet", ".jsonl")
"""Endings of a file of preference pairs."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of a prompt's image."""


def expand_user(path: str | Path) -> Path:
    """Return a path with the home folder in place of ``~`` or ``~USER``.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path} begins with a user whose home folder is not known; give it in full"
        ) from None


def locate(weights: str) -> str:
    """Return the packaged folder for ``shapes:NAME``, else the local path or hub id as it was given."""
    if weights.startswith(SHAPES_PREFIX):
        return str(PACKAGE / "shapes" / "checkpoints" / weights.removeprefix(SHAPES_PREFIX))
    return weights


def _absolute_if_local(weights: str, info: ValidationInfo) -> str:
    """Make a local path absolute when the recipe is read, as workers run in another directory."""
    if problem := text_problem(weights):
        raise ValueError(f"{weights!r} has {problem}; remove it")
    if weights.startswith(SHAPES_PREFIX):
        if weights.removeprefix(SHAPES_PREFIX) not in (known := packaged_checkpoints()):
            nearest = did_you_mean(weights, [f"{SHAPES_PREFIX}{name}" for name in known])
            raise ValueError(
                f"{weights!r} names no packaged checkpoint; {nearest}there are {', '.join(known)}"
            )
        return weights
    looks_local = weights.startswith((".", "/", "~")) or os.path.exists(weights)
    if not looks_local and _NAME.fullmatch(weights):
        return weights
    path = _from_recipe(weights, info)
    if not os.path.exists(path):
        raise ValueError(
            f"{path} does not exist; give an existing path, a hub id (owner/name) or shapes:NAME"
        )
    return str(path)


def packaged_checkpoints() -> list[str]:
    """List the names of the packaged weights, ``shapes:NAME``."""
    return sorted(path.name for path in (PACKAGE / "shapes" / "checkpoints").iterdir() if path.is_dir())


def _from_recipe(path: str, info: ValidationInfo) -> Path:
    """Return an absolute path; a relative one starts at the recipe's folder or the working directory."""
    folder = (info.context or {}).get("folder")
    expanded = expand_user(path)
    if folder is not None and os.path.exists(in_folder := Path(folder) / expanded):
        return in_folder.resolve()
    return expanded.resolve()


def _read_prompts(value: object, info: ValidationInfo) -> object:
    """Read a file of prompts when the recipe is read, so that a run records its prompts."""
    if not isinstance(value, str):
        return value
    if value.startswith(DATASETS_PREFIX):
        return _read_dataset(value, info)
    if value.startswith(SHAPES_PREFIX):
        packaged = PACKAGE / "shapes" / "prompts" / value.removeprefix(SHAPES_PREFIX)
        path = packaged if packaged.is_dir() else packaged.with_suffix(".txt")
    elif value.startswith(PACKAGED_PREFIX):
        path = RECIPES / "prompts" / f"{value.removeprefix(PACKAGED_PREFIX)}.txt"
        if path not in (known := sorted(path.parent.glob("*.txt"))):
            names = ", ".join(f"{PACKAGED_PREFIX}{each.stem}" for each in known)
            raise ValueError(f"{value!r} names no packaged list of prompts; there are {names}")
    else:
        path = _from_recipe(value, info)
    if os.path.isdir(path):
        return _read_images(path)
    prompts = read_prompt_file(path, info.data.get("column", COLUMN))
    return tuple(_image_in(prompt, path.parent) for prompt in prompts)


def _read_dataset(address: str, info: ValidationInfo) -> tuple[str, ...]:
    """Read a data set, ``datasets:NAME`` or ``datasets:NAME:SPLIT``, whose name may be a local folder."""
    name, _, split = address.removeprefix(DATASETS_PREFIX).partition(":")
    if name.startswith((".", "/", "~")):
        name = str(_from_recipe(name, info))
    elif not _NAME.fullmatch(name):
        raise ValueError(f"{address!r} names no data set; {EXPECTED}")
    return read_dataset(address, name, split or "train", info.data.get("column", COLUMN))


def _read_images(folder: Path) -> tuple[str, ...]:
    """Make a prompt of each image of a folder, with the words of its file name as text."""
    images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise ValueError(f"{folder} holds no image; put {', '.join(IMAGE_SUFFIXES)} files there")
    return tuple(f"{path.resolve()} | {path.stem.replace('_', ' ').replace('-', ' ')}" for path in images)


def split_image(prompt: str) -> tuple[Path | None, str]:
    """Split a prompt into image and text: ``path/to/image.png | text`` has both, any other prompt is text."""
    path, bar, text = prompt.partition("|")
    if bar and path.strip().lower().endswith(IMAGE_SUFFIXES):
        return Path(path.strip()), text.strip()
    return None, prompt


def _image_in(prompt: str, folder: Path) -> str:
    """Prepend the folder of the prompt file to the prompt's image, if the image is there."""
    image, text = split_image(prompt)
    return f"{folder / image} | {text}" if image is not None and os.path.exists(folder / image) else prompt


def _find_images(prompts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """Make the images' paths absolute when the recipe is read, as workers run in another directory."""
    found = []
    for prompt in check_prompts(prompts):
        image, text = split_image(prompt)
        if image is not None and not os.path.isfile(path := _from_recipe(str(image), info)):
            raise ValueError(
                f"the image {path} does not exist; write `path/to/image.png | text` with an existing image"
            )
        found.append(prompt if image is None else f"{path} | {text}")
    if len({split_image(prompt)[0] is None for prompt in found}) > 1:
        raise ValueError("some prompts have an image and some have none; give every prompt one, or none")
    return tuple(found)


def _find_pairs(path: str, info: ValidationInfo) -> str:
    """Make the path of a file of pairs absolute, as workers run in another directory."""
    found = _from_recipe(path, info)
    if not os.path.isfile(found) or found.suffix not in PAIR_SUFFIXES:
        raise ValueError(f"{found} is no file of pairs; give an existing {' or '.join(PAIR_SUFFIXES)} file")
    return str(found)


Weights = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_local)]
"""A local path, a hub id (``owner/name``) or ``shapes:NAME``."""
Prompts = Annotated[
    tuple[str, ...], Field(min_length=1), BeforeValidator(_read_prompts), AfterValidator(_find_images)
]
"""Prompts, given as a list, a file of prompts, a folder of images, ``packaged:NAME``, ``shapes:NAME`` or
``datasets:NAME:SPLIT``."""
PairsFile = Annotated[str, AfterValidator(_find_pairs)]
"""Path of a file of preference pairs."""
