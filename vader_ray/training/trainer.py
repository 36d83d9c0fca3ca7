"""`Trainer`: reward-gradient training of a model in memory as a plain Python loop, without recipe, Ray or
MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vader_ray import rewards
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.frames import choose_frames
from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.alignment.truncation import draw_plan
from vader_ray.config import (
    Count,
    OptimizerConfig,
    RewardConfig,
    SamplingConfig,
    Settings,
    Steps,
    check_seed,
    section,
)
from vader_ray.config.schema import OptimizerName
from vader_ray.errors import UserError
from vader_ray.training.callbacks import Callback, notify
from vader_ray.training.events import StepEvent
from vader_ray.training.experiment import check_texts, encode
from vader_ray.training.optimizer import AdapterOptimizer
from vader_ray.training.resolve import check_reached
from vader_ray.training.seeding import derive_seed, generator, prompt_of
from vader_ray.types import Reward

RewardLike: TypeAlias = str | Callable[..., Tensor]
"""A reward by its name (``"hps"``, ``"my_lab.contrast"``), or a function ``f(frames, prompts) -> scores``."""


@dataclass(frozen=True, slots=True)
class TrainerStep:
    """Result of one optimizer step."""

    step: int
    """Number of optimizer steps so far."""
    reward: float
    """Mean objective over the videos of the step: the weighted sum of the rewards."""
    rewards: dict[str, float]
    """Mean score of each reward over the videos of the step, in the reward's own unit."""
    grad_norm: float
    """Norm of the adapter's gradient before clipping."""
    seconds: float
    """Wall-clock time of the step."""


class TrainerSettings(Settings):
    """Numbers among the arguments of a `Trainer`, with the bounds that they have in a recipe."""

    num_steps: Steps
    videos_per_step: Count
    prefix_batch_size: Count
    micro_batch_size: Count
    decode_chunk_size: Count
    optimizer: OptimizerName


class Trainer:
    """Train the adapter of a model by the gradient of rewards, one optimizer step per iteration.

    The engine, the seeds and the optimizer are those of a recipe's worker, on one device and in this process.
    Workers on many GPUs, evaluation on held-out prompts, checkpoints and tracking are `vader_ray.train`.

    Args:
        model: a model with an adapter, as `vader_ray.VideoModel.from_pipeline` returns it.
        rewards: reward → weight. A reward is a name, a function of frames
            ``(batch, frames, 3, height, width)`` in [0, 1] and prompts that returns one differentiable
            score per video, or anything `vader_ray.load_reward` returned.
        prompts: texts to train on, in an order that the seed shuffles.
        learning_rate: learning rate of AdamW; with a schedule or a warm-up its largest value.
        schedule: ``constant``, ``cosine`` or ``linear``: the learning rate's decay to 0 over ``num_steps``.
        warmup_steps: number of steps in which the learning rate rises from 0.
        ema_decay: decay of a moving average of the adapter's weights, which `save_adapter` then writes
            and `averaged_weights` applies; 0 keeps none.
        optimizer: ``adamw``, or ``adamw8bit`` of bitsandbytes.
        num_steps: number of optimizer steps of the iteration.
        videos_per_step: number of videos per optimizer step.
        truncation_depth: K, the number of last denoising steps that carry gradient.
        prefix_batch_size: number of videos sampled together up to the first gradient step.
        micro_batch_size: number of videos whose gradient is computed at once.
        decode_chunk_size: number of frames of a video that frame rewards score at once.
        max_grad_norm: norm to which the adapter's gradient is clipped.
        seed: seed of noise, prompt order and random frames.
        callbacks: objects whose methods are called in this process after every step.

    Raises:
        UserError: an unknown reward, or one without a finite gradient with respect to the frames, or no
            gradient step calls a denoiser that was chosen for the adapter.
    """

    def __init__(  # noqa: PLR0913
        self,
        model: Any,
        rewards: Mapping[RewardLike, float],
        prompts: Iterable[str],
        *,
        learning_rate: float = 2e-4,
        schedule: str = "constant",
        warmup_steps: int = 0,
        ema_decay: float = 0.0,
        optimizer: str = "adamw",
        num_steps: int = 100,
        videos_per_step: int = 1,
        truncation_depth: int = 1,
        prefix_batch_size: int = 2,
        micro_batch_size: int = 1,
        decode_chunk_size: int = 4,
        max_grad_norm: float = 1.0,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        section(
            TrainerSettings,
            {
                "num_steps": num_steps,
                "videos_per_step": videos_per_step,
                "prefix_batch_size": prefix_batch_size,
                "micro_batch_size": micro_batch_size,
                "decode_chunk_size": decode_chunk_size,
                "optimizer": optimizer,
            },
            "Trainer",
        )
        settings = section(
            OptimizerConfig,
            {
                "name": optimizer,
                "learning_rate": learning_rate,
                "schedule": schedule,
                "warmup_steps": warmup_steps,
                "ema_decay": ema_decay,
                "max_grad_norm": max_grad_norm,
            },
            "Trainer",
        )
        _check_steps(settings, num_steps)
        check_seed(seed)
        self.model = model
        self.step = 0
        self._prompts = tuple(prompts)
        check_texts(self._prompts)
        if not rewards:
            raise UserError("rewards: give a mapping of one reward or more to its weight")
        self._sampling = _with_depth(model.sampling, truncation_depth)
        check_reached(
            [name for name in model.chosen_networks or () if name in model.denoisers()],
            model.denoisers_of_own_steps(),
            self._sampling,
            seed=seed,
            num_steps=num_steps,
        )
        self._terms = [_term(reward, weight, model) for reward, weight in rewards.items()]
        self._optimizer = AdapterOptimizer(model.adapter_parameters(), settings, num_steps=num_steps)
        self._batching = Batching(prefix_batch_size, micro_batch_size, decode_chunk_size)
        self._num_steps, self._videos_per_step, self._seed = num_steps, videos_per_step, seed
        self._max_grad_norm, self._callbacks = max_grad_norm, tuple(callbacks)
        self._conditioning = encode(model, self._prompts)

    def __len__(self) -> int:
        """Return the number of optimizer steps of the whole iteration."""
        return self._num_steps

    def __iter__(self) -> Iterator[TrainerStep]:
        """Take the remaining optimizer steps, one per iteration; a loop that was left goes on where it
        stopped."""
        while self.step < self._num_steps:
            yield self.train_step()
        for callback in self._callbacks:
            callback.on_train_end(self)

    def train_step(self) -> TrainerStep:
        """Take one optimizer step: sample videos, add the reward's gradient, clip, update the adapter."""
        started = time.monotonic()
        self._optimizer.start_step(self.step)
        plan = draw_plan(
            self._sampling,
            generator(self._seed, "truncation", self.step),
            lambda: self.model.sampling_schedule(self._conditioning[:1]),
        )
        outputs = accumulate_gradient(
            self.model, self._terms, self._rollout(), plan, self._batching, scale=1 / self._videos_per_step
        )
        parameters = self.model.adapter_parameters()
        grad_norm = float(
            torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm, error_if_nonfinite=True)
        )
        self._optimizer.update()
        self.step += 1
        result = _summarise(self.step, outputs, grad_norm, time.monotonic() - started)
        notify(self._callbacks, StepEvent(self.step, _metrics(result) | self._optimizer.metrics()))
        return result

    def _rollout(self) -> Rollout:
        """Choose prompts, noise and frames of the step's videos as functions of the seed and the video's
        index."""
        first = self.step * self._videos_per_step
        videos = range(first, first + self._videos_per_step)
        rows = [prompt_of(range(len(self._prompts)), self._seed, video) for video in videos]
        return Rollout(
            prompts=[self._prompts[row] for row in rows],
            conditioning=self._conditioning[rows],
            seeds=[derive_seed(self._seed, "noise", video) for video in videos],
            frame_indices=[
                [
                    choose_frames(
                        term.frames, self._sampling.total_frames(), generator(self._seed, "frames", video, i)
                    )
                    for video in videos
                ]
                for i, term in enumerate(self._terms)
            ],
        )

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Give the model the averaged weights inside a ``with`` block, if ``ema_decay`` is not 0."""
        return self._optimizer.averaged_weights()

    def save_adapter(self, folder: str | Path) -> Path:
        """Write the adapter in the format documented by the model's family; return the folder."""
        with self.averaged_weights():
            self.model.save_adapter(Path(folder))
        return Path(folder)


def _check_steps(settings: OptimizerConfig, num_steps: int) -> None:
    try:
        settings.check_steps(num_steps)
    except ValueError as error:
        raise UserError(f"Trainer: {error}") from None


def _with_depth(sampling: SamplingConfig, truncation_depth: int) -> SamplingConfig:
    settings = sampling.model_dump() | {"truncation_depth": truncation_depth}
    return section(SamplingConfig, settings, "Trainer")


def _term(reward: RewardLike, weight: float, model: Any) -> RewardTerm:
    """Load a reward, or wrap a function; hold it to its contract on random frames."""
    if isinstance(reward, str):
        spec = RewardConfig(reward=reward)
        return RewardTerm(
            spec.name, _checked(rewards.build(spec, device=_device(model)), spec.name, model), weight
        )
    name = getattr(reward, "__name__", type(reward).__name__)
    built = reward if isinstance(reward, Reward) else rewards.FunctionReward(reward)
    return RewardTerm(name, _checked(built, name, model), weight)


def _checked(reward: Reward, name: str, model: Any) -> Reward:
    sampling = model.sampling
    num_frames = 2 if reward.granularity == "frame" else sampling.total_frames()
    rewards.check_contract(
        reward,
        name=name,
        device=_device(model),
        num_frames=num_frames,
        height=sampling.height,
        width=sampling.width,
    )
    return reward


def _device(model: Any) -> torch.device:
    device: torch.device = model.adapter_parameters()[0].device
    return device


def _metrics(result: TrainerStep) -> dict[str, float]:
    rewards = {f"train/reward/{name}": value for name, value in result.rewards.items()}
    return {
        "train/reward_mean": result.reward,
        **rewards,
        "train/grad_norm": result.grad_norm,
        "time/step_seconds": result.seconds,
    }


def _summarise(step: int, outputs: Sequence[RewardOutput], grad_norm: float, seconds: float) -> TrainerStep:
    rewards = {
        name: fmean(value for output in outputs for value in output.scores[name].tolist())
        for name in outputs[0].scores
    }
    objective = fmean(value for output in outputs for value in output.objective.tolist())
    return TrainerStep(step, objective, rewards, grad_norm, seconds)
