"""Frozen linear layers with weights of 8 or 4 bits, through which a gradient flows to their input.

torchao's and bitsandbytes' layers are not used: the graph of torchao's (0.18) keeps the weights of every
layer in full precision until the backward pass, and bitsandbytes' in diffusers need a GPU. These keep the
quantized weights alone, and preflight counts them without a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from vader_ray.config import Quantization
from vader_ray.errors import UserError
from vader_ray.models.core import memory_optimizations

_FP8 = torch.float8_e4m3fn
_NF4_BLOCK = 64
_NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip
"""The 16 values of "4-bit NormalFloat" (arXiv 2305.14314, appendix E)."""

Quantized = tuple[Tensor, Tensor]
"""Weights of one byte, or of two per byte, and the scales, float32."""


def quantize_denoisers(pipe: Any, kind: Quantization | None) -> None:
    """Quantize the blocks of every denoiser of a diffusers pipeline; ``None`` leaves them as they are.

    Raises:
        UserError: the pipeline has no such layers, or not under the library's names.
    """
    if kind is None:
        return
    networks = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    blocks = [block for each in networks if each is not None for block in memory_optimizations.blocks(each)]
    quantize(blocks, kind)
    if not any(isinstance(part, QuantizedLinear) for block in blocks for part in block.modules()):
        raise UserError(
            f"model.quantization={kind}: no linear layer was found in the denoiser's blocks of "
            f"{type(pipe).__name__}; leave the setting out"
        )


def quantize(blocks: Iterable[nn.Module], kind: Quantization) -> None:
    """Replace every linear layer inside the blocks of a denoiser that has no adapter yet."""
    for block in blocks:
        for parent in list(block.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Linear:
                    setattr(parent, name, QuantizedLinear(child, kind))


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weights are stored quantized.

    They are converted to the input's dtype at every forward and backward pass, one layer at a time.

    Args:
        linear: the layer; its bias is kept as it is.
        kind: see `vader_ray.config.ModelConfig`.
    """

    quantized: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make weights
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._dtype = linear.weight.dtype
        make, self._restore = _KINDS[kind]
        quantized, scales = make(linear.weight.detach().float())
        self.register_buffer("quantized", quantized)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weights in the dtype that they had, computed at each access."""
        return self.dense(self._dtype)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weights, ``out × in``, in a dtype."""
        weights = self._restore(self.quantized, self.scales)
        shape = self.out_features, self.in_features
        return weights.flatten()[: shape[0] * shape[1]].view(shape).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; the graph keeps no weights."""
        output: Tensor = _FrozenLinear.apply(input, self)  # type: ignore[no-untyped-call]
        return output


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, layer: QuantizedLinear) -> Tensor:  # type: ignore[override]
        ctx.layer = layer  # type: ignore[attr-defined]
        bias = None if layer.bias is None else layer.bias.to(inputs.dtype)
        return functional.linear(inputs, layer.dense(inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dense(gradient.dtype), None


def _to_int8(weights: Tensor) -> Quantized:
    scales = _positive(weights.abs().amax(dim=1, keepdim=True)) / 127
    return (weights / scales).round().to(torch.int8), scales


def _to_fp8(weights: Tensor) -> Quantized:
    scales = _positive(weights.abs().amax(dim=1, keepdim=True)) / torch.finfo(_FP8).max
    # as bytes, since a network's dtype is that of its smallest floating-point tensor
    return (weights / scales).to(_FP8).view(torch.uint8), scales


def _to_nf4(weights: Tensor) -> Quantized:
    flat = functional.pad(weights.flatten(), (0, -weights.numel() % _NF4_BLOCK)).view(-1, _NF4_BLOCK)
    scales = _positive(flat.abs().amax(dim=1, keepdim=True))
    levels = torch.tensor(_NF4_LEVELS, device=weights.device)
    codes = torch.bucketize(flat / scales, (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    return codes[:, 0::2] * 16 + codes[:, 1::2], scales


def _from_int8(quantized: Tensor, scales: Tensor) -> Tensor:
    return quantized * scales


def _from_fp8(quantized: Tensor, scales: Tensor) -> Tensor:
    return quantized.view(_FP8).to(scales.dtype) * scales


def _from_nf4(quantized: Tensor, scales: Tensor) -> Tensor:
    levels = torch.tensor(_NF4_LEVELS, dtype=scales.dtype, device=quantized.device)
    codes = torch.stack([quantized // 16, quantized % 16], dim=-1).flatten(start_dim=1)
    return levels[codes.int()] * scales


def _positive(scales: Tensor) -> Tensor:
    """Return the scales, 1 in place of 0: rows of zeros stay zeros."""
    return torch.where(scales == 0, 1.0, scales)


_KINDS: dict[Quantization, tuple[Callable[[Tensor], Quantized], Callable[[Tensor, Tensor], Tensor]]] = {
    "int8": (_to_int8, _from_int8),
    "fp8": (_to_fp8, _from_fp8),
    "nf4": (_to_nf4, _from_nf4),
}
