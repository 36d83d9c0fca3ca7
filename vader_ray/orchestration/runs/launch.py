"""The driver of a run: checks, MLflow, Ray Train, progress, summary."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vader_ray import models, rewards
from vader_ray.config import ConfigError, ExperimentConfig
from vader_ray.config.auto import auto_fields
from vader_ray.errors import RunFailed
from vader_ray.orchestration.clusters import connection
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.runs.progress import Progress
from vader_ray.orchestration.runs.run_dir import RunFolder, open_folder, write_json
from vader_ray.orchestration.runs.worker import worker_loop
from vader_ray.orchestration.tracking import mlflow_runs
from vader_ray.preflight import auto_tune
from vader_ray.preflight.devices import fits
from vader_ray.training.events import Report


def check_names(config: ExperimentConfig, folder: Path | None = None) -> ExperimentConfig:
    """The recipe with every name resolved and every reward option checked; loads no weights.

    Paths in the options of rewards become absolute; a relative one starts at ``folder`` (the recipe's).

    Raises:
        ConfigError: unknown family, reward or option, a path that does not exist, or a measure of sets where it cannot be used.
    """
    models.resolve(config.model.family)
    for place, spec in enumerate(config.rewards):
        if rewards.is_measure(spec.reward):
            raise ConfigError(
                f"rewards.{place}: {spec.reward} compares videos with one another and can only be evaluated; "
                "move it to eval_rewards"
            )
    for place, spec in enumerate(config.eval_rewards):
        if spec.placement is not None and rewards.is_measure(spec.reward):
            raise ConfigError(f"eval_rewards.{place}.placement: {spec.reward} compares what all workers made; leave it to them")
    if config.evaluation.num_videos < 2 and any(rewards.is_measure(spec.reward) for spec in config.eval_rewards):
        raise ConfigError("evaluation.num_videos: eval_rewards compare videos with one another; give at least 2")
    checked = {
        name: tuple(rewards.check(spec, folder=folder) for spec in getattr(config, name)) for name in ("rewards", "eval_rewards")
    }
    return config.model_copy(update=checked)


def resolve_auto(config: ExperimentConfig) -> ExperimentConfig:
    """The recipe with every ``auto`` replaced by the fastest setting that fits the workers' free memory.

    Raises:
        ConfigError: none fits.
    """
    if not auto_fields(config):
        return config
    with connection.connected(config):
        free = connection.free_bytes(config.machine)
    return auto_tune.choose(config, lambda num_bytes: fits(num_bytes, free))


def run(config: ExperimentConfig, *, runs_dir: Path, run_name: str | None, resume: bool, storage: str | None = None) -> RunFolder:
    """Run a recipe to its end, or continue it from its last checkpoint; the folder with its summary.

    Args:
        storage: where checkpoints and a copy of the folder are kept for all machines, a URI or a shared folder.

    Raises:
        ConfigError, TrackingError: something cannot work; raised before any work is done.
        RunFailed: the run ended early; what it had computed is kept and can be resumed.
    """
    config = resolve_auto(check_names(config))
    folder = open_folder(config, runs_dir, run_name, resume=resume, storage=storage)
    if folder.is_complete(config.num_steps):
        return folder
    known = folder.read_run()
    recipe = folder.recipe.read_text(encoding="utf-8")
    mlflow_run = mlflow_runs.start_run(config, folder.name, recipe, resume_run_id=known.get("mlflow_run_id"))
    remember(folder, config, mlflow_run)
    folder.push()
    warn_without_guard(config)
    status: mlflow_runs.Status = "FAILED"
    ending = "failed"  # the word of the summary, where an interrupted run and one that its guard ended are both "stopped"
    try:
        with (
            connection.connected(config),
            pool.serving(config) as pools,
            Progress(config.num_steps, eval_metric=config.selection()) as progress,
        ):
            state = fit(config, folder, mlflow_run, pools, show=progress.update, tell=progress.line)
        ended = "stopped" if state["stopped"] else "completed"
        write_json(folder.summary, summarise(config, folder, mlflow_run, state, ended))
        status, ending = "FINISHED", ended
    except KeyboardInterrupt:
        status, ending = "KILLED", "stopped"
        raise
    finally:
        if status != "FINISHED":
            write_json(folder.summary, summarise(config, folder, mlflow_run, {}, ending))
        line = mlflow_runs.end_run(mlflow_run.uri, mlflow_run.run_id, status, folder=folder.path, tags={"status": ending})
        if line:
            print(line)
        folder.push()
    return folder


def warn_without_guard(config: ExperimentConfig) -> None:
    """Print one line if the guard of this recipe watches no metric."""
    if not config.guarded():
        print(
            "no guard: no held-out metric is watched, so reward hacking is not noticed, and the best adapter is chosen by "
            f"{config.selection()}; give eval_rewards or guard.measures, and guard.action=flag",
            flush=True,
        )


def fit(
    config: ExperimentConfig,
    folder: RunFolder,
    mlflow_run: mlflow_runs.Run,
    pools: Mapping[str, pool.PooledReward],
    *,
    show: Callable[[Report], None],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Ray Train in a thread (so that Ray leaves Ctrl-C to us), its messages here; rank 0's final state.

    Args:
        show: gets the numbers of every step.
        tell: gets the lines for the user.

    Raises:
        ConfigError: a worker met something that only the user can correct.
        RunFailed: Ray Train or the workers gave up.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may be lost
    messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    job = {
        "config": config.model_dump(mode="json"),
        "folder": str(folder.path),
        "storage": folder.storage,
        "run": tuple(mlflow_run),
        "messages": messages,
        "served": pools,
    }
    use_gpu = connection.uses_gpu(config.machine)
    least, most = config.machine.min_workers, config.machine.num_workers
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config=job,
        scaling_config=ScalingConfig(num_workers=most if least is None else (least, most), use_gpu=use_gpu),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=folder.storage or str(folder.path),
            failure_config=FailureConfig(max_failures=config.machine.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.checkpoint.keep),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome: list[Any] = []
    thread = threading.Thread(target=_collect, args=(trainer.fit, outcome), daemon=True)
    thread.start()
    try:
        _follow(thread, messages, show, tell)
    finally:
        folder.pull()
    (result,) = outcome
    if isinstance(result, BaseException):
        raise RunFailed(
            f"Ray Train gave up: {_last_line(result)}; logs are in {_ray_logs()}; continue with --resume --run-name {folder.name}"
        )
    if result.error is not None:
        raise RunFailed(f"the workers failed: {_last_line(result.error)}; continue with --resume --run-name {folder.name}")
    state: dict[str, Any] = result.return_value
    return state


def _collect(fit: Callable[[], Any], outcome: list[Any]) -> None:
    try:
        outcome.append(fit())
    except BaseException as error:  # handed to the main thread, which raises it
        outcome.append(error)


def _follow(thread: threading.Thread, messages: Queue, show: Callable[[Report], None], tell: Callable[[str], None]) -> None:
    """Pass on what the workers tell until they are done."""
    while thread.is_alive() or not messages.empty():
        try:
            kind, content = messages.get(timeout=0.5)
        except (Empty, queue.Empty):
            continue
        if kind == "error":
            raise ConfigError(content)
        show(content) if kind == "report" else tell(content)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]


def _ray_logs() -> str:
    return str(Path(ray._private.worker._global_node.get_logs_dir_path()))


def remember(folder: RunFolder, config: ExperimentConfig, run: mlflow_runs.Run, **more: Any) -> None:
    """Write down whose folder it is, so that a later session continues the same run."""
    mlflow = {"mlflow_run_id": run.run_id, "tracking_uri": run.uri, "experiment_id": run.experiment_id}
    write_json(folder.run, {"identity": config.identity(), **mlflow, "storage": folder.storage, **more})


def remembered(folder: RunFolder) -> mlflow_runs.Run:
    """The MLflow run of a folder, as `remember` wrote it down."""
    known = folder.read_run()
    return mlflow_runs.Run(known["tracking_uri"], known["experiment_id"], known["mlflow_run_id"])


def summarise(
    config: ExperimentConfig, folder: RunFolder, run: mlflow_runs.Run, state: dict[str, Any], status: str
) -> dict[str, Any]:
    """The run in one JSON object; the means are over the held-out videos."""
    before, after, best = (state.get(f"{moment}_metrics", {}) for moment in ("before", "last", "best"))
    return {
        "recipe": config.name,
        "status": status,
        "reason": state.get("stopped") or None,
        "steps": state.get("step", 0),
        "reward_queries": state.get("reward_queries", 0),
        "denoiser_calls": state.get("denoiser_calls", 0),
        "train_seconds": round(state.get("train_seconds", 0.0), 1),
        "gpu_hours": state.get("gpu_hours", 0.0),
        "wall_seconds": round(state.get("wall_seconds", 0.0), 1),
        "num_workers": config.machine.num_workers,
        "mlflow_run_id": run.run_id,
        "tracking_uri": run.uri,
        "storage": folder.storage,
        "eval": {moment: _under(seen, "eval/reward/") for moment, seen in (("before", before), ("after", after), ("best", best))},
        "gain": {
            name: {"mean": value, "standard_error": after[f"eval/gain_standard_error/{name}"]}
            for name, value in _under(after, "eval/gain/").items()
        },
        "judge": {"before": _under(before, "eval/judge/"), "after": _under(after, "eval/judge/")},
        "selection": {
            "metric": config.selection(),
            **{moment: seen.get(config.selection()) for moment, seen in (("after", after), ("best", best))},
        },
        "best_step": state.get("best_step"),
        "guard": state.get("alarms", []),
        "guarded_metrics": list(config.guarded()),
        "must_reach": config.must_reach,
        "reached": {name: after.get(name, float("-inf")) >= floor for name, floor in config.must_reach.items()},
        "artifacts": {
            "adapter": folder.shown(folder.adapter),
            "best_adapter": folder.shown(folder.best_adapter),
            "before_after": folder.shown(folder.before_after),
            "gallery": folder.shown(folder.gallery),
            "videos": [folder.shown(path) for path in sorted(folder.videos.glob("step-*/*.mp4"))],
        },
    }


def _under(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """The summary of a run that has ended."""
    summary: dict[str, Any] = json.loads(folder.summary.read_text(encoding="utf-8"))
    return summary
