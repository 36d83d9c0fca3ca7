"""Find, download and read the pretrained weights of rewards, metrics and models.

On the meta device (``with torch.device("meta")``) weights are neither downloaded nor read: of a local
checkpoint the shapes alone are read, and a network without a local checkpoint keeps its initial shapes.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.error import URLError

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from pydantic import AfterValidator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from vader_ray.config import Weights, locate
from vader_ray.errors import UserError
from vader_ray.paths import expand_user

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
"""Endings of a file of weights."""
HASH = re.compile(r"-([0-9a-f]{8,})\.")
"""First digits of the SHA-256 in the name of a file, as torch's own weights have them."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""Form of a repository's name on the Hugging Face hub: ``owner/name``."""
NUM_SHOWN = 3
"""Names of weights in an error message."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
"""Torch types by their name in safetensors files."""


def _local_or_hub(source: str) -> str:
    """Refuse what is neither an existing path nor a hub id: a mistyped path is not searched on the hub."""
    exists = os.path.exists(expand_user(locate(source)))
    if not exists and (source.endswith(SUFFIXES) or not HUB_ID.fullmatch(source)):
        raise ValueError(
            f"{source} does not exist; give an existing file or folder, a hub id (owner/name) or shapes:NAME"
        )
    return source


Source: TypeAlias = Annotated[Weights, AfterValidator(_local_or_hub)]
"""A local file or folder, ``shapes:NAME``, or a hub id."""


def resolve_weights(source: str, *files: str) -> Path:
    """Return the local file or folder of ``source``; the ``files`` of a hub id are downloaded first.

    Raises:
        UserError: a path that does not exist, or a hub that cannot be reached; names the command that gets
            the files.
    """
    if without_weights():
        files = tuple(file for file in files if not file.endswith(SUFFIXES))
    try:
        local = expand_user(locate(_local_or_hub(source)))
    except ValueError as error:
        raise UserError(str(error)) from None
    return local if local.exists() else _download(source, files)


def without_weights() -> bool:
    """Whether networks are now created on the meta device."""
    return torch.get_default_device().type == "meta"


def _download(repository: str, files: Sequence[str]) -> Path:
    if not files:
        return Path(repository)  # on the meta device, when all files are weights
    try:
        paths = [Path(hf_hub_download(repository, file)) for file in files]
    except (EntryNotFoundError, OSError) as error:
        unreachable = isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled))
        reason = (
            "the hub is out of reach and the local cache has no copy" if unreachable else type(error).__name__
        )
        raise UserError(
            f"cannot get {' and '.join(files)} from the hub repository {repository} ({reason}); "
            f"run `hf download {repository} {' '.join(files)}` where there is internet, or give a local path"
        ) from error
    return paths[0].parent


def resolve_url(url: str, option: str = "weights") -> Path:
    """Return the local copy of a published file that is on no hub; it is downloaded to torch hub's folder.

    If the name of the file states its hash, the download is compared with it.

    Args:
        url: of the file.
        option: setting by which a local copy is given, for the message.

    Raises:
        UserError: the server cannot be reached; names the command that gets the file.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / url.rpartition("/")[2]
    if path.is_file() or without_weights():
        return path
    stated = HASH.search(path.name)
    try:
        if constants.HF_HUB_OFFLINE:
            raise URLError("HF_HUB_OFFLINE is set")
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), stated[1] if stated else None, progress=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot get {url} ({error}); run `curl -L -o {path} {url}` where there is internet, or give a "
            f"local copy as {option}"
        ) from error
    return path


def only_file(folder: Path, pattern: str) -> Path:
    """Return the only file of ``folder`` that matches the pattern.

    Raises:
        UserError: there is none, or several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found) or "none"
    raise UserError(
        f"{folder} must hold exactly one {pattern} file, not {listed}; give the folder of one checkpoint"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors or torch file, plain or under ``state_dict``, by name.

    Raises:
        UserError: the file is missing, truncated, or contains anything but tensors.
    """
    if not path.is_file():
        if without_weights():
            return {}
        raise UserError(f"{path} does not exist; give the path of a checkpoint")
    device = str(torch.get_default_device())
    try:
        content: Any = (
            _load_safetensors(path, device)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location=device, weights_only=True)
        )
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        LookupError,
    ) as error:
        raise UserError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as a checkpoint of plain tensors "
            f"({type(error).__name__}); it was cut short or is of another format, so get it again"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds no table of tensors; give a checkpoint of weights, plain or under 'state_dict'"
        )
    return dict(state)


def _load_safetensors(path: Path, device: str) -> dict[str, Tensor]:
    if device != "meta":
        loaded: dict[str, Tensor] = load_file(path, device=device)
        return loaded
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: torch.empty(part.get_shape(), dtype=_DTYPES[part.get_dtype()])
            for name, part in parts.items()
        }


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Set every weight of ``network``.

    Raises:
        UserError: weights are missing or unexpected, or their shapes differ; names a few of each.
    """
    if without_weights() and not state:
        return
    expected = network.state_dict()
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(found)} {kind} ({_few(found)})"
        for kind, found in (
            ("missing", [name for name in expected if name not in state]),
            ("unexpected", [name for name in state if name not in expected]),
            ("of another shape", reshaped),
        )
        if found
    ]
    if problems:
        raise UserError(
            f"{source} belongs to another network, with weights {', '.join(problems)}; give one that fits"
        )
    on_meta = any(parameter.is_meta for parameter in network.parameters())
    network.load_state_dict(
        state, assign=on_meta
    )  # parameters of the meta device have no memory to copy into


def _few(found: Iterable[str]) -> str:
    listed = sorted(found)
    return ", ".join(listed[:NUM_SHOWN]) + (", …" if len(listed) > NUM_SHOWN else "")
