"""The base of every section of a recipe, and types that several sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

ActivationCheckpointing = Literal["none", "block", "attention"]
"""Activations of the denoiser that are recomputed in the backward pass."""

Precision = Literal["float32", "bfloat16", "float64"]
"""Floating-point type of a model's weights and activations."""

FrameRule = Annotated[
    str, Field(pattern=r"^(all|first_middle_last|(random|first|stride):[1-9]\d*|frame:\d+)$")
]
"""Rule that chooses frames of a video."""


class Settings(BaseModel):
    """Base of every section: immutable, without unknown keys, described by the sentence under each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
