"""The optimizer of an adapter: AdamW, the learning rate of each step, and the average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from vader_ray.config import OptimizerConfig
from vader_ray.errors import UserError


class AdapterOptimizer:
    """AdamW over the adapter, with a schedule and an exponential moving average (`OptimizerConfig`).

    Everything is a function of the settings, the step and the gradients, so equal gradients on all workers
    give equal weights and averages there.

    Args:
        parameters: the adapter's.
        settings: of the recipe.
        num_steps: number of training steps of the run.

    Raises:
        UserError: the optimizer's package is missing.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerConfig, *, num_steps: int
    ) -> None:
        self.parameters, self._settings = tuple(parameters), settings
        self._optimizer = _optimizer_class(settings)(
            self.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        self._learning_rate = learning_rates(settings, num_steps)
        self._num_updates = 0
        self._average = self._copies()

    def start_step(self, step: int) -> None:
        """Clear the gradients, and set the learning rate of the step after ``step`` steps."""
        self.zero_grad()
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(step)

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def update(self) -> None:
        """Update the weights by their gradients, and their average, and clear the gradients."""
        self._optimizer.step()
        self.zero_grad()
        if self._average:
            weight = 1 - average_decay(self._settings.ema_decay, self._num_updates)
            torch._foreach_lerp_(self._average, [each.detach() for each in self.parameters], weight)
        self._num_updates += 1

    def metrics(self) -> dict[str, float]:
        """Return the learning rate of the step if it is not constant."""
        if self._settings.has_constant_rate():
            return {}
        return {"train/learning_rate": float(self._optimizer.param_groups[0]["lr"])}

    @property
    def is_averaged(self) -> bool:
        """Whether the average of the weights is kept."""
        return bool(self._average)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Give the adapter the average of its weights inside a ``with`` block; nothing without one."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, average in enumerate(self._average):
            parameter = self.parameters[index]
            self._average[index], parameter.data = parameter.data, average

    def _copies(self) -> list[torch.Tensor]:
        return [each.detach().clone() for each in self.parameters] if self._settings.ema_decay else []

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights and their average."""
        return self._optimizer.state_dict() | {"num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`; the adapter has the averaged weights now, and gets its own next."""
        self._num_updates = state["num_updates"]
        self._optimizer.load_state_dict({name: state[name] for name in ("state", "param_groups")})
        self._average = self._copies()


def learning_rates(settings: OptimizerConfig, num_steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the number of steps before: transformers' schedules."""
    if settings.has_constant_rate():
        return lambda step: settings.learning_rate
    from transformers import get_scheduler  # takes seconds, and the driver of a run needs no schedule

    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
    carrier = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)  # required by get_scheduler
    schedule = get_scheduler(name, carrier, settings.warmup_steps, settings.decay_steps(num_steps))
    (factor,) = schedule.lr_lambdas
    return lambda step: settings.learning_rate * float(factor(step))


def average_decay(decay: float, num_updates: int) -> float:
    """Return the decay of the average after a number of updates: that of diffusers' ``EMAModel``.

    The first update replaces the average; then it rises to ``decay`` as (1 + n) / (10 + n).
    """
    return min(decay, (1 + num_updates) / (10 + num_updates)) if num_updates else 0.0


def check_package(settings: OptimizerConfig) -> None:
    """Refuse an optimizer whose package is missing.

    Raises:
        UserError: it is; the message names the command that installs it.
    """
    if settings.name == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer.name=adamw8bit needs the package bitsandbytes, which is not installed; "
            "pip install 'vader-ray[8bit]', or set optimizer.name=adamw"
        )


def _optimizer_class(settings: OptimizerConfig) -> Callable[..., torch.optim.Optimizer]:
    if settings.name == "adamw":
        return torch.optim.AdamW
    check_package(settings)
    from bitsandbytes.optim import AdamW8bit

    optimizer: Callable[..., torch.optim.Optimizer] = AdamW8bit
    return optimizer
