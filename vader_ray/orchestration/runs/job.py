"""The description of a run that its driver passes to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from ray.util.queue import Queue

from vader_ray.orchestration.reward_service.remote_reward import PooledReward
from vader_ray.orchestration.tracking.address import MlflowRun


class Job(TypedDict):
    """A run as its driver describes it to every worker."""

    config: dict[str, Any]
    """The recipe as plain JSON."""
    folder: str
    """The run's folder on the driver's machine."""
    storage: str | None
    """URI of the folder's copy in the storage."""
    mlflow_run: MlflowRun
    remote_rewards: Mapping[str, PooledReward]
    """Rewards that are computed by actors, by name."""
    functions: bytes
    """Rewards given as Python functions, from `pack_functions`."""
    end_key: NotRequired[str]
    """Name of the driver's request to end, for `vader_ray.orchestration.ray_private.is_end_requested`."""
    messages: NotRequired[Queue]
    """Queue to the driver: ``("stage", (name, done, total))``, ``("step", pickled StepEvent)``,
    ``("log", text)``, ``("user_error", text)``,
    ``("failed", (text, traceback of the cause or an empty text))``."""
