"""What `vader_ray.training.preflight` counts without weights against what the training loop takes with them, on the CPU.

    python -m benchmarks.preflight                       # counted against measured: tiny networks of several families
    python -m benchmarks.preflight --published           # counted: the packaged recipes at their published sizes

Measured is the peak of live tensors (`LiveTensors`) over two whole training steps with random weights, optimizer included,
added to the weights. Counted never sees a weight. The published sizes are those that the configuration files on the hub
state; they are written out below, as nothing is fetched, and text encoders have their published sizes but a small tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vader_ray.config import ExperimentConfig
from vader_ray.training import preflight
from vader_ray.training.checkpoint import State
from vader_ray.training.experiment import build
from vader_ray.training.group import Group
from vader_ray.training.loop import make_optimizer
from vader_ray.training.meter import LiveTensors
from vader_ray.training.step import take_step


def measure(config: ExperimentConfig) -> int:
    """Bytes at the peak of two training steps on the CPU: weights, conditioning, gradients, optimizer and activations."""
    with LiveTensors() as loading:
        experiment = build(config, torch.device("cpu"))
    optimizer = make_optimizer(config, experiment)
    weights = preflight.num_bytes([*experiment.model.networks(), *preflight.reward_networks(experiment)])
    state = State()
    with LiveTensors() as meter:
        for _ in range(2):
            take_step(config, experiment, optimizer, Group(), state, 0.0)
    conditioning = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in experiment.conditioning.tensors.values()
        if isinstance(tensor, torch.Tensor)
    }
    return weights + sum(conditioning.values()) + meter.peak
