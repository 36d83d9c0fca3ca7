"""The one training loop of the embedded shapes data set, and the atomic way its results reach their
folder."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from math import cos, pi
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vader_ray.files import atomic_write


def fit(  # noqa: PLR0913
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    num_steps: int,
    learning_rate: float,
    ema_decay: float = 0.998,
    weight_decay: float = 0.01,
    matrices: Sequence[nn.Parameter] = (),
    matrix_rate: float = 0.02,
    every: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """The exponential moving average of `model`, trained on `loss_of(step)` with AdamW, warm-up and a cosine.

    `matrices` among its parameters are trained by Muon instead, at `matrix_rate`: of a transformer, those
    within its blocks.
    `every` is called with the step and the average after each tenth of the steps.
    """
    average = deepcopy(model).requires_grad_(False)
    chosen = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    optimizers: list[Optimizer] = [
        AdamW(others, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=matrix_rate, weight_decay=weight_decay))

    def share(step: int) -> float:
        return min((step + 1) / 100, 0.5 + 0.5 * cos(pi * step / num_steps))

    schedules = [LambdaLR(optimizer, share) for optimizer in optimizers]
    columns = (
        TextColumn("loss {task.fields[loss]:.4f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("train", total=num_steps, loss=float("nan"))
        smooth = None
        for step in range(num_steps):
            loss = loss_of(step)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            update_average(average, model, decay=min(ema_decay, (step + 1) / (step + 10)))
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            progress.update(task, advance=1, loss=smooth)
            if (step + 1) % max(num_steps // 10, 1) == 0:
                progress.console.print(f"step {step + 1}: loss {smooth:.4f}")
                if every is not None:
                    every(step + 1, average)
    return average.eval()


def matrices_of(*blocks: nn.Module) -> list[nn.Parameter]:
    """Matrices within the blocks of transformers, which Muon trains."""
    return [parameter for part in blocks for parameter in part.parameters() if parameter.ndim == 2]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, *, decay: float) -> None:
    """Moves `average` towards `model`, by one minus `decay` of the way."""
    for kept, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)
        else:
            kept.copy_(new)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` to write into; it takes the place of `folder` when the block ends well.

    What diffusers notes of where a part was loaded from, a path of this machine, is taken out.
    """
    with atomic_write(folder) as fresh:
        fresh.mkdir()
        yield fresh
        for path in fresh.rglob("config.json"):
            config = json.loads(path.read_text())
            if config.pop("_name_or_path", None) is not None:
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
