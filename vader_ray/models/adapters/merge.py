"""Weighted sums of adapters, as in rewarded soups (arXiv 2306.04488)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor

from vader_ray.errors import UserError
from vader_ray.hub import find_adapter
from vader_ray.models.adapters.checks import DOWN, check_weights
from vader_ray.models.adapters.files import read, saved_networks, write_peft


def mix(adapters: Sequence[tuple[Path, float]], output: Path) -> None:
    """Write the adapter whose updates are the weighted sums of other adapters' updates, in peft's format.

    ΔW = Σ wᵢ (αᵢ / rᵢ) Bᵢ Aᵢ is a LoRA of rank Σ rᵢ, exactly. (The mean of the Aᵢ times the mean of the Bᵢ is
    another, smaller update.) peft's ``add_weighted_adapter`` needs the loaded base model for the same.

    Args:
        adapters: folder or hub id, and weight, of each.
        output: folder of the new adapter.

    Raises:
        UserError: a weight is not finite, or a folder has no adapter, a damaged one, or one of other networks
            or layers than the first.
    """
    if infinite := [f"{weight}={folder}" for folder, weight in adapters if not math.isfinite(weight)]:
        raise UserError(
            f"{infinite[0]}: the weight of an adapter is a finite number, e.g. 0.5={adapters[0][0]}"
        )
    adapters = [(find_adapter(source), weight) for source, weight in adapters]
    first, networks = adapters[0][0], saved_networks(adapters[0][0])
    for source, _ in adapters:
        if saved_networks(source) != networks:
            raise UserError(f"the adapter in {source} adapts other networks than that in {first}")
    for network in networks:
        _mix_one(adapters, network, output / network)


def _mix_one(adapters: Sequence[tuple[Path, float]], network: str, output: Path) -> None:
    parts = [(*read(folder, network), weight) for folder, weight in adapters]
    names = parts[0][0].keys()
    for (folder, _), (weights, _, _) in zip(adapters, parts, strict=True):
        if different := sorted(weights.keys() ^ names):
            raise UserError(
                f"the adapter in {folder} adapts other layers than that in {adapters[0][0]}: {different[0]}"
            )
    mixed: dict[str, Tensor] = {}
    for name in names:
        if name.endswith(DOWN):
            mixed[name] = torch.cat([weights[name] for weights, _, _ in parts], dim=0)
        else:
            scaled = [weights[name] * (weight * shape.alpha / shape.rank) for weights, shape, weight in parts]
            mixed[name] = torch.cat(scaled, dim=1)
    rank = sum(shape.rank for _, shape, _ in parts)
    check_weights(mixed, rank, output)
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(parts[0][1].target_modules or ()))
    write_peft(mixed, settings, output)
