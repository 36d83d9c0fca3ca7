"""A reward of a recipe, loaded and checked.

This module does not import the models, so that the process of a reward actor starts faster.
"""

from __future__ import annotations

import torch

from vader_ray import rewards
from vader_ray.alignment.frames import choose_frames
from vader_ray.config import RewardConfig
from vader_ray.types import Reward


def load_reward(spec: RewardConfig, num_frames: int, height: int, width: int, device: torch.device) -> Reward:
    """Load a reward and check its contract on random frames, as many as it will get.

    Raises:
        UserError: the reward cannot be loaded or breaks the contract.
    """
    reward = rewards.build(spec, device=device)
    if device.type == "meta":
        return reward
    seen = len(choose_frames(spec.frames, num_frames, torch.Generator()))
    shown = 2 if reward.granularity == "frame" else seen
    rewards.check_contract(
        reward, name=spec.name, device=device, num_frames=shown, height=height, width=width
    )
    return reward
