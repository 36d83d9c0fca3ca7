"""The embedded shapes: procedural captioned videos, and tiny checkpoints in the real file formats trained on
them."""

from pathlib import Path

from vader_ray.errors import UserError

__all__ = ["CHECKPOINTS", "PROMPTS", "checkpoint"]

_ROOT = Path(__file__).parent
CHECKPOINTS = _ROOT / "checkpoints"
PROMPTS = _ROOT / "prompts"
"""Folder with `train.txt`, `validation.txt` and `test.txt`, one prompt per line."""


def checkpoint(name: str) -> Path:
    """Folder of the packaged checkpoint `name`, such as `text_to_video`; raises ValueError where there is
    none."""
    folder = CHECKPOINTS / name
    if not folder.is_dir():
        known = sorted(path.name for path in CHECKPOINTS.iterdir() if path.is_dir())
        raise UserError(f"no packaged checkpoint {name!r}; there are: {', '.join(known)}")
    return folder
