"""Adapters on the Hugging Face hub: find one by its id, and explain why the hub does not work.

The hub's own settings hold: ``HF_ENDPOINT``, ``HF_TOKEN`` or ``hf auth login``, ``HF_HUB_OFFLINE``.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from vader_ray.errors import UserError
from vader_ray.paths import expand_user
from vader_ray.weights import HUB_ID, SUFFIXES

HUB_ERRORS = (HTTPError, OSError)
"""Errors of requests to the hub; an `HfHubHTTPError` is both."""
_ADAPTER_FILES = ("adapter_*", "pytorch_lora_weights.safetensors", "manifest.json")
_PATTERNS = ["recipe.yaml", *_ADAPTER_FILES, *(f"*/{name}" for name in _ADAPTER_FILES)]
"""Files of an adapter, that of a second denoiser in a folder of its own, and its recipe."""


def find_adapter(source: str | Path) -> Path:
    """Return the local folder or file of a saved adapter; that of a hub id is downloaded first.

    Args:
        source: a path, or ``owner/name`` on the hub if there is no such path.

    Raises:
        UserError: the hub cannot be reached, or has no such repository.
    """
    path, name = expand_user(source), str(source)
    if path.exists() or name.endswith(SUFFIXES) or not HUB_ID.fullmatch(name):
        return path
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except HUB_ERRORS as error:
        raise UserError(
            f"there is no folder {name}, and the hub's repository of this name cannot be read "
            f"({hub_problem(error)}); give the folder of a saved adapter, or owner/name on the hub"
        ) from None


def hub_problem(error: BaseException) -> str:
    """Return why a request to the hub failed, without anything that the request contained."""
    endpoint = constants.ENDPOINT
    if isinstance(error, RepositoryNotFoundError):
        return f"{endpoint} has no such repository, or it is private and HF_TOKEN is not set"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return (
                f"{endpoint} refused the token; run `hf auth login`, or set HF_TOKEN to one with this right"
            )
        return f"{endpoint} replied with status {status}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set, and the local cache has no copy"
    return f"{endpoint} is out of reach"
