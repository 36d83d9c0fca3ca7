"""Align video diffusion models with reward gradients (VADER, arXiv 2407.08737), orchestrated by Ray and MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_adapter(pipe: Any, folder: str | Path) -> None:
    """Add a trained adapter to any diffusers pipeline; see `vader_ray.models.load_adapter`."""
    from vader_ray import models  # the package itself imports no framework

    models.load_adapter(pipe, folder)
