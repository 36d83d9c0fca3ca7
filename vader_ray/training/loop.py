"""The training loop of one worker: step, evaluate, save, emit an event. Uses neither Ray nor MLflow."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from vader_ray.config import ExperimentConfig
from vader_ray.files import scratch_folder
from vader_ray.metrics import Features
from vader_ray.training import checkpoint, guard
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import Evaluation, evaluate, paired_gains
from vader_ray.training.events import StepEvent, Video
from vader_ray.training.experiment import Experiment, build
from vader_ray.training.final_test import is_test_due, run_test
from vader_ray.training.optimizer import AdapterOptimizer
from vader_ray.training.step import train_step


def train(
    config: ExperimentConfig,
    experiment: Experiment | None = None,
    *,
    group: WorkerGroup = WorkerGroup(),
    on_step: Callable[[StepEvent], object] = print,
    resume_from: Path | None = None,
    should_checkpoint: Callable[[], bool] = lambda: False,
    should_end: Callable[[], bool] = lambda: False,
) -> State:
    """Run a recipe on this worker, from the start or from a checkpoint; return the final state.

    All workers of a group call it with the same recipe and emit the same number of events.

    Args:
        experiment: the loaded recipe with a fresh adapter (`build`); by default it is loaded here, on the
            CPU.
        group: the workers of the run.
        on_step: receives an event before training, after every step, and after the test at the end; on worker
            0 those that are kept name a checkpoint.
        resume_from: checkpoint after which the run continues.
        should_checkpoint: called after every step; True, on all workers alike, keeps the step: a machine is
            about to be preempted.
        should_end: called after every step; True, on all workers alike, keeps the step and ends the loop.

    Raises:
        RunFailed: the gradient was not finite for several steps in a row.
        UserError: weights, rewards or the checkpoint do not fit the recipe.
    """
    experiment = experiment or build(config, group=group)
    group = group.of_recipe(config.runtime)
    optimizer = make_optimizer(config, experiment)
    with scratch_folder() as scratch:
        best_adapter = scratch / "best_adapter"
        if resume_from is None:
            state, started = State(), time.monotonic()
            first, alarms = evaluate_and_select(config, experiment, group, state, best_adapter, None)
            base = first.base_features
            metrics = first.metrics | run_costs(state, experiment.device, started)
            on_step(StepEvent(0, metrics, videos=first.videos, alarms=alarms, state=state))
        else:
            state, base = checkpoint.restore(resume_from, experiment.model, optimizer)
            shutil.copytree(resume_from / "best_adapter", best_adapter)
            started = time.monotonic() - state.wall_seconds
        while state.step < config.num_steps and not state.stopped:
            state.test_metrics, state.test_prompt_gains = {}, {}  # of a shorter run that is continued
            step_started = time.monotonic()
            metrics, queries = train_step(config, experiment, optimizer, group, state, step_started - started)
            metrics["time/step_seconds"] = time.monotonic() - step_started
            state.train_seconds += metrics["time/step_seconds"]
            state.worker_seconds += metrics["time/step_seconds"] * group.world_size
            videos: tuple[Video, ...] = ()
            alarms = ()
            if is_due(state.step, config.evaluation.every, is_last=state.step == config.num_steps):
                with optimizer.averaged_weights():
                    evaluation, alarms = evaluate_and_select(
                        config, experiment, group, state, best_adapter, base
                    )
                metrics, videos = metrics | evaluation.metrics, evaluation.videos
            metrics |= run_costs(state, experiment.device, started)
            saved, is_last = None, state.step == config.num_steps or bool(state.stopped)
            ends = should_end()
            is_due_now = is_due(state.step, config.checkpoint.every, is_last=is_last)
            is_kept = is_due_now or ends or should_checkpoint()
            if is_kept and group.rank == 0:
                saved = checkpoint.save(
                    scratch / "checkpoint", state, experiment.model, optimizer, best_adapter, base
                )
            on_step(StepEvent(state.step, metrics, queries, videos, alarms, is_kept, saved, state))
            if ends:
                return state
        if is_test_due(config, state):
            metrics, saved = run_test(config, experiment, group, state, best_adapter), None
            run_costs(state, experiment.device, started)
            if group.rank == 0:
                saved = checkpoint.save(
                    scratch / "checkpoint", state, experiment.model, optimizer, best_adapter, base
                )
            on_step(StepEvent(state.step, metrics, is_kept=True, checkpoint=saved, state=state))
    return state


def make_optimizer(config: ExperimentConfig, experiment: Experiment) -> AdapterOptimizer:
    """Create the recipe's optimizer of the adapter."""
    parameters = experiment.model.adapter_parameters()
    return AdapterOptimizer(parameters, config.optimizer, num_steps=config.num_steps)


def is_due(step: int, every: int, *, is_last: bool) -> bool:
    """Whether an action is due after this step: every ``every`` steps, and after the last step."""
    return step % every == 0 or is_last


def evaluate_and_select(
    config: ExperimentConfig,
    experiment: Experiment,
    group: WorkerGroup,
    state: State,
    best_adapter: Path,
    base: Mapping[str, Features] | None,
) -> tuple[Evaluation, tuple[str, ...]]:
    """Evaluate, compare with the base model, apply the guard, and keep the adapter if it is the best so far.

    Args:
        base: features of the base model's held-out videos; None if this evaluation is the base model's.
    """
    what = "the base model" if base is None else f"after step {state.step}"
    evaluation = evaluate(config, experiment, group, base, stage=f"evaluating {what}")
    metrics = evaluation.metrics
    if state.step == 0:
        state.before, state.before_metrics = evaluation.scores, dict(metrics)
        state.before_prompts = {name: evaluation.prompt_values[name] for name in config.reward_metrics()}
    metrics |= paired_gains(state.before_prompts, evaluation.prompt_values)
    guarded, alarms = guard.apply_guard(config, evaluation, state)
    metrics |= guarded
    invalid = guard.nonfinite_metrics(config, metrics, state.step)
    alarms += invalid
    state.alarms += alarms
    selection = config.selection_metric()
    is_acceptable = not invalid and not guard.is_over(state)
    if state.step == 0 or (
        is_acceptable and guard.exceeds(metrics[selection], state.best_metrics[selection])
    ):
        state.best_metrics, state.best_step = dict(metrics), state.step
        experiment.model.save_adapter(best_adapter)
    metrics["eval/best_step"] = float(state.best_step)
    state.last_metrics = dict(metrics)
    return evaluation, tuple(alarms)


def run_costs(state: State, device: torch.device, started: float) -> dict[str, float]:
    """Costs of the run so far, over all workers and sessions, and the peak memory of this worker."""
    state.wall_seconds = time.monotonic() - started
    state.gpu_hours = state.worker_seconds / 3600 if device.type == "cuda" else 0.0
    gpu_hours = {"cost/gpu_hours": state.gpu_hours} if device.type == "cuda" else {}
    return {
        "cost/reward_queries": float(state.reward_queries),
        "cost/denoiser_calls": float(state.denoiser_calls),
        **gpu_hours,
        "cost/train_seconds": state.train_seconds,
        "cost/wall_seconds": state.wall_seconds,
        "memory/peak_gib": peak_gib(device),
    }


def peak_gib(device: torch.device) -> float:
    """Return the peak memory in GiB since the process began: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
