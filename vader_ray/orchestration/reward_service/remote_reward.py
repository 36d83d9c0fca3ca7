"""A reward that replicas in Ray actors compute, and the futures of its results.

The staged gradient needs only the scores and ∂R/∂frames of a reward, so another process can compute both.
With ``resize_frames=false`` and the transport float32 the result equals that of the same reward in the worker
bit for bit; resized frames differ by rounding at most. Ray repeats a request if its replica dies.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

from vader_ray.config import PlacementConfig
from vader_ray.errors import RunFailed, first_line
from vader_ray.orchestration.reward_service.transport import RewardSpec, decode_frames, encode_frames
from vader_ray.rewards.core.resizing import Resizing
from vader_ray.types import Frames, Scores

START_SECONDS = 600
"""Longest time in seconds for a restarted replica to become available."""


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request to one replica of a remote reward."""

    reward: str
    """Name of the reward, for messages."""
    placement: PlacementConfig
    replica: ActorHandle
    reference: ray.ObjectRef[Any]

    def wait(self) -> Any:
        """Wait for the result; restart the replica and repeat the request after each time-out.

        Raises:
            RunFailed: the reward raised an error, or the replica died or timed out too often.
        """
        name, placement = self.reward, self.placement
        try:
            for attempt in range(placement.max_retries + 1):
                if ray.wait([self.reference], timeout=placement.timeout_seconds)[0]:
                    return ray.get(self.reference)
                if attempt < placement.max_retries:
                    _restart(self.replica)
        except GetTimeoutError as error:
            raise RunFailed(
                f"reward {name!r}: a replica of {placement.actor!r} timed out, was restarted, and did not "
                f"become available within {START_SECONDS} seconds; look at `ray status`: the cluster may "
                "lack the resources of its placement"
            ) from error
        except RayTaskError as error:
            raise RunFailed(f"actor {placement.actor!r}: {error.cause}") from error
        except (ActorDiedError, ActorUnavailableError) as error:
            raise RunFailed(
                f"reward {name!r}: a replica of {placement.actor!r} died more than {placement.max_retries} "
                f"times during one request ({first_line(error)}); give it more memory or raise "
                "placement.max_retries"
            ) from error
        raise RunFailed(
            f"reward {name!r}: a replica of {placement.actor!r} returned nothing within "
            f"placement.timeout_seconds={placement.timeout_seconds:g}, {placement.max_retries + 1} times; "
            "raise it, or send fewer frames at once (runtime.micro_batch_size)"
        )


@dataclass(frozen=True, slots=True)
class RemoteScores:
    """Pending scores of a remote reward."""

    request: PendingRequest
    frames: Frames

    def result(self) -> Scores:
        """Wait for the scores, in the dtype and on the device of the frames."""
        return torch.from_numpy(self.request.wait().copy()).to(self.frames)


@dataclass(frozen=True, slots=True)
class RemoteGradient:
    """Pending scores and gradient of a remote reward."""

    request: PendingRequest
    frames: Frames
    sent_as: Resizing
    """Resizing of the frames before they were sent."""

    def result(self) -> tuple[Scores, Frames]:
        """Wait for scores and gradient, in the dtype and on the device of the frames."""
        scores, encoded = self.request.wait()
        decoded = decode_frames(encoded, self.frames.device)
        gradient = self.sent_as.gradient(decoded, *self.frames.shape[-2:])
        return torch.from_numpy(scores.copy()).to(self.frames), gradient.to(self.frames.dtype)


class PooledReward:
    """A `vader_ray.types.RemoteReward` that sends its requests to the replicas of a pool in turn."""

    def __init__(
        self, name: str, placement: PlacementConfig, replicas: Sequence[ActorHandle], spec: RewardSpec
    ) -> None:
        self.granularity, self.unit = spec.granularity, spec.unit
        self._name, self._placement, self._replicas = name, placement, list(replicas)
        self._sent_as = spec.resized if placement.resize_frames else spec.unresized
        self._requests = count()

    def submit_scores(self, frames: Frames, prompts: Sequence[str], chunk_size: int) -> RemoteScores:
        """Send frames to be scored."""
        return RemoteScores(self._submit("scores", frames, prompts, chunk_size), frames)

    def submit_gradient(self, frames: Frames, prompts: Sequence[str], chunk_size: int) -> RemoteGradient:
        """Send frames to be scored and differentiated."""
        request = self._submit("gradient", frames, prompts, chunk_size)
        return RemoteGradient(request, frames, self._sent_as)

    def _submit(self, method: str, frames: Frames, prompts: Sequence[str], chunk_size: int) -> PendingRequest:
        wide = frames.detach().to(torch.promote_types(frames.dtype, torch.float32))
        region = (self._sent_as.rows, self._sent_as.columns)
        encoded = ray.put(encode_frames(self._sent_as.apply(wide), region, self._placement.transport))
        # Workers begin with different replicas, so that their first requests do not queue at one of them.
        replica = self._replicas[(os.getpid() + next(self._requests)) % len(self._replicas)]
        reference = getattr(replica, method).remote(encoded, list(prompts), chunk_size)
        return PendingRequest(self._name, self._placement, replica, reference)


def _restart(replica: ActorHandle) -> None:
    """Kill a replica, which Ray restarts with its pending requests, and wait until it has loaded its reward.

    The time-out of the repeated request therefore does not include the start.
    """
    ray.kill(replica, no_restart=False)
    ray.get(replica.wait_until_loaded.remote(), timeout=START_SECONDS)
