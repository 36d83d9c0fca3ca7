"""Options of plugins (rewards, metrics), validated against the annotations of the class's ``__init__``."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import nn

from vader_ray.config import PluginConfig
from vader_ray.errors import UserError, did_you_mean, explain_plugin_errors


def check_options(plugin: type, spec: PluginConfig, folder: Path | None = None) -> dict[str, Any]:
    """Return the options that ``spec`` gives, validated and with absolute paths.

    Args:
        plugin: class of the plugin; its keyword arguments are the options.
        folder: folder at which relative paths start.

    Raises:
        UserError: an unknown option, a wrong type, or a path that does not exist; one line each.
    """
    model = _option_model(plugin, spec)
    try:
        options = model.model_validate(spec.options, context={"folder": folder})
    except ValidationError as error:
        problems = (_explain(spec.name, model, problem) for problem in error.errors())
        raise UserError("\n".join(problems)) from None
    return {name: getattr(options, name) for name in options.model_fields_set}


def load_plugin(plugin: type, spec: PluginConfig, *, device: torch.device | str) -> Any:
    """Create a plugin with its weights: frozen, in eval mode, on ``device`` and in the precision of ``spec``.

    On the meta device its networks are made without weights.

    Raises:
        UserError: as `check_options`, and weights that are missing, unreadable or of another network.
        RunFailed: the plugin raised another exception.
    """
    options = check_options(plugin, spec)
    on_meta = torch.device(device).type == "meta"
    try:
        with (
            explain_plugin_errors(f"{spec.kind} {spec.name!r}"),
            torch.device(device) if on_meta else nullcontext(),
        ):
            loaded = plugin(**options)
    except UserError as error:
        raise UserError(f"{spec.name}: {error}") from error.__cause__
    if isinstance(loaded, nn.Module):
        loaded.to(device=device, dtype=getattr(torch, spec.precision)).requires_grad_(False).eval()
    return loaded


def _option_model(plugin: type, spec: PluginConfig) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(plugin, eval_str=True).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name in type(spec).model_fields:
            raise UserError(
                f"{spec.name}: its option {parameter.name!r} is a setting of every {spec.kind}; "
                "rename it in the class"
            )
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (annotation, default)
    strict = ConfigDict(
        extra="forbid", allow_inf_nan=False, protected_namespaces=(), arbitrary_types_allowed=True
    )
    return create_model(f"{plugin.__module__}.{plugin.__qualname__}", __config__=strict, **fields)


def _explain(label: str, model: type[BaseModel], problem: Any) -> str:
    option = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields)) or "no options"
        nearest = did_you_mean(option, model.model_fields)
        return f"{label}: there is no option {option!r}; {nearest}it has {known}"
    if problem["type"] == "missing":
        return f"{label}.{option}: is required"
    if "Value error" not in problem["msg"]:
        message = f"{message}, not {problem['input']!r}"
    return f"{label}.{option}: {message}"
