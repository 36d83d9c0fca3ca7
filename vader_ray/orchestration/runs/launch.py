"""The driver of a run: open its folder and MLflow run, start Ray Train, and write the summary."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vader_ray.config import ExperimentConfig
from vader_ray.config.auto import auto_fields, auto_placements, describe_auto, with_placements
from vader_ray.display import display_stages
from vader_ray.errors import RunFailed, first_line
from vader_ray.imports import fast_imports
from vader_ray.orchestration import ray_private
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.reward_service.remote_reward import PooledReward
from vader_ray.orchestration.runs.finish import EarlyEnd, finish_run, record_traceback
from vader_ray.orchestration.runs.follow import EndRequest, Failure, follow
from vader_ray.orchestration.runs.functions import pack_functions
from vader_ray.orchestration.runs.job import Job
from vader_ray.orchestration.runs.process_group import ProcessGroupConfig
from vader_ray.orchestration.runs.progress import Progress
from vader_ray.orchestration.runs.repair import DamagedFile
from vader_ray.orchestration.runs.run_dir import RunDir, claim_run_dir
from vader_ray.orchestration.runs.summary import RunSummary
from vader_ray.orchestration.signals import sigterm_deferred, sigterm_interrupts
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.orchestration.tracking.address import COMMAND_TAG, MlflowRun
from vader_ray.orchestration.tracking.environment import command_line
from vader_ray.orchestration.tracking.server import check_before_start, tracking_uri
from vader_ray.stages import announce
from vader_ray.training.events import StepEvent
from vader_ray.training.final_test import is_test_due
from vader_ray.training.guard import cannot_fire
from vader_ray.training.resolve import resolve_names

T = TypeVar("T")


def resolve_auto(config: ExperimentConfig) -> ExperimentConfig:
    """Replace every ``auto`` of the recipe by the fastest setting that fits the workers' free memory.

    Raises:
        UserError: no setting fits.
    """
    if not auto_fields(config):
        return config
    from vader_ray.preflight import auto_tune  # imports the models
    from vader_ray.preflight.devices import fits

    announce(f"choosing {', '.join(auto_fields(config))} by the free memory")
    with connection.connected(with_placements(config, ())):
        free, num_free_gpus = connection.free_bytes(config.runtime), connection.num_free_gpus(config)
    chosen = auto_tune.choose_auto(config, lambda num_bytes: fits(num_bytes, free), num_free_gpus)
    for path in auto_placements(config):
        print(f"{path}: {describe_auto(chosen, path)}", flush=True)
    return chosen


def train_run(
    config: ExperimentConfig,
    *,
    runs_dir: Path,
    run_name: str | None = None,
    resume: bool = False,
    storage: str | None = None,
    on_step: Callable[[StepEvent], None] = lambda event: None,
) -> RunSummary:
    """Run a recipe to its end, or continue it from its last checkpoint.

    Args:
        run_name: name of the run's folder; by default the recipe's name and the time.
        resume: continue the named run, or the recipe's latest unfinished one.
        storage: keep checkpoints and a copy of the folder there, for machines without a common disk: a URI or
            a shared folder.
        on_step: receives the metrics and alarms of every step, in this process.

    Raises:
        UserError: the settings cannot work; mostly raised before any work is done.
        RunFailed: the run ended early; its results so far are kept and it can be resumed.
    """
    config = resolve_auto(resolve_names(config))
    with (
        claim_run_dir(config, runs_dir, run_name, resume=resume, storage=storage) as folder,
        sigterm_interrupts(),
        ExitStack() as stack,
    ):
        summary = _read_or_rebuild_summary(config, folder)
        if summary is not None and folder.is_complete(config.num_steps):
            return summary
        check_before_start(tracking_uri(config.tracking.uri))
        mlflow_run = stack.enter_context(_in_thread(lambda: _open_mlflow_run(config, folder)))
        display = stack.enter_context(display_stages(sys.stdout))
        display.log(f"folder: {folder.path}")
        warn_without_guard(config)
        end = EarlyEnd(config, folder, mlflow_run)
        with (
            end.recorded(),
            connection.connected(config, on_lost=end.on_lost),
            pool.start_pools(config) as remote_rewards,
        ):
            progress = Progress(display, config.num_steps, eval_metric=config.selection_metric())

            def update(event: StepEvent) -> None:
                progress.update(event)
                on_step(event)

            with end.recorded():  # before Ray is stopped, which may fail
                announce("opening the MLflow run")
                opened = mlflow_run()
                launch(config, folder, opened, remote_rewards, on_step=update, log=display.log)
            announce("stopping Ray")
        announce("closing the MLflow run and writing the summary")
        return finish_run(config, folder, mlflow_run())


@contextmanager
def _in_thread(function: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Call a function in a thread; yield a function that waits for its result or raises its exception."""
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(function).result


def _read_or_rebuild_summary(config: ExperimentConfig, folder: RunDir) -> RunSummary | None:
    """Return the summary; write a damaged one again if all steps were taken, else delete it."""
    try:
        return folder.read_summary()
    except DamagedFile:
        state = folder.read_state()
    if state.step < config.num_steps and not state.stopped:
        print(f"{folder.summary} was damaged; it was deleted, and the run continues", flush=True)
        folder.summary.unlink()
        return None
    summary = finish_run(config, folder, folder.read_mlflow_run(tracking_uri(config.tracking.uri)))
    print(f"{folder.summary} was damaged; it was written again from {folder.state}", flush=True)
    return summary


def _open_mlflow_run(config: ExperimentConfig, folder: RunDir) -> MlflowRun:
    """Open the MLflow run of the folder, a new one or that of an earlier session, and record it there."""
    known_run_id = folder.read_metadata().get("mlflow_run_id")
    recipe = folder.recipe.read_text(encoding="utf-8")
    tags = {COMMAND_TAG: command_line()}
    mlflow_run = mlflow_runs.start_run(config, folder.name, recipe, tags=tags, resume_run_id=known_run_id)
    folder.write_metadata(config, mlflow_run)
    folder.push()
    return mlflow_run


def warn_without_guard(config: ExperimentConfig) -> None:
    """Print one line if the guard of this recipe compares no metric, or can never fire."""
    if not config.guard_metrics():
        print(
            "no guard: no held-out metric is compared, so reward hacking is not noticed, and "
            f"the best adapter is chosen by {config.selection_metric()}; set "
            "eval_rewards or guard.metrics, and guard.action=flag",
            flush=True,
        )
    elif problem := cannot_fire(config):
        print(problem, flush=True)


def launch(
    config: ExperimentConfig,
    folder: RunDir,
    mlflow_run: MlflowRun,
    remote_rewards: Mapping[str, PooledReward],
    *,
    on_step: Callable[[StepEvent], None],
    log: Callable[[str], None],
) -> None:
    """Train on Ray Train workers of the connected cluster and wait for them.

    Args:
        on_step: receives the metrics and alarms of every step.
        log: receives the messages for the user.

    Raises:
        UserError: a worker met a mistake that the user can correct.
        RunFailed: the training failed, or workers were lost too often.
    """
    messages = new_queue()
    job = Job(
        config=config.model_dump(mode="json"),
        folder=str(folder.path),
        storage=folder.storage,
        mlflow_run=mlflow_run,
        remote_rewards=remote_rewards,
        functions=pack_functions(config.reward_names()),
        messages=messages,
        end_key=uuid4().hex,
    )
    lowest, highest = config.runtime.min_workers, config.runtime.num_workers
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config=dict(job),
        torch_config=ProcessGroupConfig(),
        scaling_config=ScalingConfig(
            num_workers=highest if lowest is None else (lowest, highest),
            use_gpu=connection.uses_gpu(config.runtime),
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=folder.storage or str(folder.path),
            failure_config=FailureConfig(max_failures=config.runtime.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    thread, outcome = start_fit(trainer)
    try:
        with sigterm_deferred() as is_wanted:
            end = EndRequest(job["end_key"], is_wanted, config.runtime.grace_seconds)
            failure = follow(thread, messages, end, on_step=on_step, log=log)
    finally:
        _pull(folder)
    if failure is None:
        (result,) = outcome
        failure = _failure_of(result if isinstance(result, BaseException) else result.error, folder)
    if failure is not None:
        raise _run_failed(failure, folder)
    state = folder.read_state()
    if end.is_made and (state.step < config.num_steps or is_test_due(config, state)):
        raise KeyboardInterrupt


def new_queue() -> Queue:
    """Return a queue for messages to this process, on its node: others may be lost."""
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Queue(actor_options={"num_cpus": 0, "scheduling_strategy": this_node})


def _run_worker(job: Job) -> None:
    """Run the job in a worker, which imports the models; the driver does not."""
    with fast_imports():
        from vader_ray.orchestration.runs.worker import run_worker

    run_worker(job)


def _pull(folder: RunDir) -> None:
    """Fetch what the workers have written; if the storage is lost, an earlier error is what counts."""
    try:
        folder.pull()
    except OSError as error:
        print(f"{folder.storage} cannot be read ({first_line(error)}); {folder.path} may lack the last steps")


def _failure_of(error: BaseException | None, folder: RunDir) -> Failure | None:
    return None if error is None else Failure(*ray_private.describe_failure(error, str(folder.path)))


def _run_failed(failure: Failure, folder: RunDir) -> RunFailed:
    """Write the traceback to the run's folder and return the error that names the file."""
    text = record_traceback(folder, *failure)
    return RunFailed(f"{text}; continue with --resume --run-name {folder.name}")


def start_fit(trainer: TorchTrainer) -> tuple[threading.Thread, list[Any]]:
    """Start Ray Train in a thread, so that Ray leaves Ctrl-C to this one.

    Returns:
        The thread, and a list that gets the result or the exception.
    """
    announce("starting the workers, which import PyTorch and diffusers")
    outcome: list[Any] = []
    thread = threading.Thread(target=_fit, args=(trainer, outcome), daemon=True)
    thread.start()
    return thread, outcome


def _fit(trainer: TorchTrainer, outcome: list[Any]) -> None:
    try:
        outcome.append(trainer.fit())
    except BaseException as error:  # noqa: BLE001  handed to the main thread, which raises it
        outcome.append(error)
