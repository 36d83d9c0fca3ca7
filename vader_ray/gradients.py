"""The backward pass, and identity functions whose backward pass changes the gradient."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def backward(tensor: Tensor, gradient: Tensor | None = None) -> None:
    """Backpropagate from a tensor, unless no trained weight had a part in it.

    A truncated backward path, or a drawn denoising step, may reach only a denoiser without an adapter.
    """
    if tensor.requires_grad:
        tensor.backward(gradient)


def scale_gradient(tensor: Tensor, factor: Tensor | float) -> Tensor:
    """Return the same tensor; its gradient is multiplied by ``factor`` in the backward pass."""
    is_one = not isinstance(factor, Tensor) and factor == 1.0
    return tensor if is_one else cast(Tensor, _ScaleGradient.apply(tensor, factor))


def penalize_distance(tensor: Tensor, other: Tensor, weight: float) -> Tensor:
    """Return the same tensor; the gradient of a penalty is added to its gradient in the backward pass.

    The penalty is ``weight · mean((tensor − other)²)`` per row, where ``other`` is a constant.
    """
    return cast(Tensor, _DistancePenalty.apply(tensor, other, weight))


class _ScaleGradient(torch.autograd.Function):
    """Identity with derivative ``factor``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _DistancePenalty(torch.autograd.Function):
    """Identity whose backward pass adds the gradient of the penalty."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, other: Tensor, weight: float) -> Tensor:
        ctx.save_for_backward(tensor - other)
        ctx.weight = 2 * weight / tensor[0].numel()
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (distance,) = ctx.saved_tensors
        return gradients[0] + ctx.weight * distance, None, None
