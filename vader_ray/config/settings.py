"""The base of every section of a recipe, and types that several sections share."""

from __future__ import annotations

from numbers import Integral
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    field_validator,
)

from vader_ray.errors import UserError
from vader_ray.prompt_files import text_problem
from vader_ray.uris import HIDDEN, Uri, full_uri, redact

ActivationCheckpointing = Literal["none", "block", "attention"]
"""Activations of the denoiser that are recomputed in the backward pass."""

Precision = Literal["float32", "bfloat16", "float64"]
"""Floating-point type of a model's weights and activations."""

Quantization = Literal["int8", "fp8", "nf4"]
"""Format of frozen weights in fewer bits."""

MatmulPrecision = Literal["tf32", "highest"]
"""Precision of products of float32 matrices and of float32 convolutions on NVIDIA GPUs."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""Seed of random numbers."""

Count = Annotated[int, Field(gt=0, le=2**20)]
"""Number of things that a run lists or holds one by one: videos, workers, denoising steps."""

NonNegativeCount = Annotated[int, Field(ge=0, le=2**20)]
"""A `Count` that may be 0."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
"""Fraction of a whole."""
Steps = Annotated[int, Field(gt=0, le=10**9)]
"""Number of training steps."""

FrameRule = Annotated[
    str, Field(pattern=r"^(all|first_middle_last|(random|first|stride):[1-9]\d{0,8}|frame:\d{1,9})$")
]
"""Rule that chooses frames of a video."""


def frames_needed(rule: str) -> int:
    """Return the length of the shortest video of which a rule can choose frames."""
    name, _, number = rule.partition(":")
    if name == "frame":
        return int(number) + 1
    return int(number) if name in ("first", "random") else 1


def check_seed(seed: int) -> None:
    """Check a seed that comes from no recipe.

    Raises:
        UserError: it is no whole number of 63 bits.
    """
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise UserError(f"seed={seed!r}: give a whole number from 0 to {2**63 - 1}")


KEEP_PASSWORDS = {"keep_passwords": True}
"""Context of ``model_dump`` for settings that stay in memory; any other dump is without passwords."""


def _dump_uri(uri: str, info: SerializationInfo) -> str:
    return full_uri(uri) if info.context == KEEP_PASSWORDS else redact(uri)


SecretUri = Annotated[str, AfterValidator(Uri), PlainSerializer(_dump_uri, return_type=str)]
"""A URI that may contain a password."""


def _check_env_vars(runtime_env: dict[str, Any]) -> dict[str, Any]:
    """Check the environment variables, and give those without a value `HIDDEN`."""
    env_vars = runtime_env.get("env_vars", {})
    if not isinstance(env_vars, dict) or not all(isinstance(name, str) for name in env_vars):
        raise ValueError("env_vars must map names to texts")
    if wrong := [name for name, value in env_vars.items() if not isinstance(value, str | None)]:
        raise ValueError(
            f"env_vars.{wrong[0]} is no text; put it in quotes, or give null to take the value from the "
            "environment of the driver"
        )
    if not env_vars:
        return runtime_env
    return runtime_env | {
        "env_vars": {name: HIDDEN if value is None else value for name, value in env_vars.items()}
    }


def _dump_runtime_env(runtime_env: dict[str, Any], info: SerializationInfo) -> dict[str, Any]:
    if info.context == KEEP_PASSWORDS:
        return runtime_env
    hidden = {"env_vars": dict.fromkeys(runtime_env["env_vars"], HIDDEN)} if "env_vars" in runtime_env else {}
    return {name: _redacted(value) for name, value in runtime_env.items()} | hidden


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _redacted(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each) for each in value]
    return redact(value) if isinstance(value, str) else value


RuntimeEnv = Annotated[
    dict[str, Any],
    AfterValidator(_check_env_vars),
    PlainSerializer(_dump_runtime_env, return_type=dict[str, Any]),
]
"""A runtime environment of Ray, whose environment variables and URIs may contain passwords."""


class Settings(BaseModel):
    """Base of every section: immutable, without unknown keys, described by the sentence under each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse text that no file and no tokenizer takes, and the truth values that Python counts as 0 and
        1."""
        if isinstance(value, str) and (problem := text_problem(value)):
            raise ValueError(f"the text has {problem}; remove it")
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(value).lower()} is no value of this setting; give a number or a text")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))
