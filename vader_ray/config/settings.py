"""The base of every section of a recipe, and types that several sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
)

from vader_ray.uris import Uri, full_uri, redact

ActivationCheckpointing = Literal["none", "block", "attention"]
"""Activations of the denoiser that are recomputed in the backward pass."""

Precision = Literal["float32", "bfloat16", "float64"]
"""Floating-point type of a model's weights and activations."""

FrameRule = Annotated[
    str, Field(pattern=r"^(all|first_middle_last|(random|first|stride):[1-9]\d*|frame:\d+)$")
]
"""Rule that chooses frames of a video."""


KEEP_PASSWORDS = {"keep_passwords": True}
"""Context of ``model_dump`` for settings that stay in memory; any other dump is without passwords."""


def _dump_uri(uri: str, info: SerializationInfo) -> str:
    return full_uri(uri) if info.context == KEEP_PASSWORDS else redact(uri)


SecretUri = Annotated[str, AfterValidator(Uri), PlainSerializer(_dump_uri, return_type=str)]
"""A URI that may contain a password."""


class Settings(BaseModel):
    """Base of every section: immutable, without unknown keys, described by the sentence under each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
