"""The Ray actor that computes one reward for other processes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from threading import Event
from typing import Any

import ray
import torch
from numpy.typing import NDArray

from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.alignment.scoring import score_only
from vader_ray.config import RewardConfig
from vader_ray.errors import UserError
from vader_ray.orchestration.reward_service.transport import (
    EncodedFrames,
    RewardSpec,
    decode_frames,
    encode_frames,
    spec_of,
)
from vader_ray.training.load_reward import load_reward
from vader_ray.types import Frames, Reward, Scores

STATUS_GROUP = "status"
"""Concurrency group of calls that do not wait for the request in progress."""


class RewardActor:
    """One replica of a remote reward; it loads the reward at its first use, also after a restart.

    Args:
        settings: a reward section of a recipe (`reward_settings`).
        num_gpus: GPUs of the actor; 0 computes on the CPU.
        num_threads: CPU threads of torch.
    """

    def __init__(self, settings: dict[str, Any], num_gpus: float, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        self._config = RewardConfig.model_validate(settings)
        self._device = torch.device("cuda" if num_gpus else "cpu")
        self._reward: Reward | None = None
        self._load_ended = Event()

    @ray.method(concurrency_group=STATUS_GROUP)  # type: ignore[untyped-decorator]
    def settings(self) -> dict[str, Any]:
        """Return the settings of the reward, also while it computes."""
        return reward_settings(self._config)

    @ray.method(concurrency_group=STATUS_GROUP)  # type: ignore[untyped-decorator]
    def wait_until_loaded(self) -> None:
        """Return when a request has loaded the reward, or has failed to."""
        self._load_ended.wait()

    def prepare(self, num_frames: int, height: int, width: int) -> RewardSpec:
        """Load the reward and check its contract on videos of this size.

        Raises:
            UserError: the reward cannot be loaded or breaks its contract.
        """
        try:
            self._reward = load_reward(self._config, num_frames, height, width, self._device)
        finally:
            self._load_ended.set()
        return spec_of(self._reward, height, width)

    def scores(self, frames: EncodedFrames, prompts: Sequence[str], chunk_size: int) -> NDArray[Any]:
        """Return one score per video.

        Raises:
            UserError: a score is not finite.
        """
        decoded = decode_frames(frames, self._device)
        scores = score_only(self._loaded(decoded), decoded, prompts, chunk_size, name=self._config.name)
        _check_finite(scores, prompts, self._config.name)
        return scores.cpu().numpy()

    def gradient(
        self, frames: EncodedFrames, prompts: Sequence[str], chunk_size: int
    ) -> tuple[NDArray[Any], EncodedFrames]:
        """Return one score per video, and ∂(sum of scores)/∂frames.

        Raises:
            UserError: a score or the gradient is not finite.
        """
        decoded = decode_frames(frames, self._device)
        scores, gradient = score_and_gradient(
            self._loaded(decoded), decoded, prompts, chunk_size, name=self._config.name
        )
        _check_finite(scores, prompts, self._config.name)
        if not gradient.isfinite().all():
            raise UserError(
                f"the gradient of reward {self._config.name!r} with respect to the frames is not finite; "
                f"the prompts were {list(prompts)}"
            )
        return scores.cpu().numpy(), encode_frames(gradient, frames.region, frames.dtype, is_gradient=True)

    def _loaded(self, frames: Frames) -> Reward:
        if self._reward is None:
            self.prepare(frames.shape[1], *frames.shape[-2:])
        assert self._reward is not None
        return self._reward


def reward_settings(config: RewardConfig) -> dict[str, Any]:
    """Return the settings on which scores and gradients depend, without those of the objective."""
    of_the_objective = {"weight", "target", "hinge", "dropout", "frames", "placement", "label"}
    return config.model_dump(mode="json", exclude=of_the_objective)


def _check_finite(scores: Scores, prompts: Sequence[str], name: str) -> None:
    for score, prompt in zip(scores.tolist(), prompts, strict=True):
        if not isfinite(score):
            raise UserError(f"reward {name!r} returned {score} for a video of {prompt!r}")
