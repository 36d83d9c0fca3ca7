"""Training runs in this process with many seeds: jobs, and the file of finished ones.

Shared by the benchmarks that compare training runs. A finished job is a line of a file, and a second start
measures only what is missing. Each line names the models and the recipe that it was measured with; a file of
others is refused, so a table never mixes them.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from math import inf
from pathlib import Path
from statistics import stdev
from typing import Any, Literal, TypeAlias

import torch
import typer

from vader_ray.config import ExperimentConfig, load
from vader_ray.metrics import Features
from vader_ray.paths import SHAPES_PREFIX, locate, packaged_checkpoints
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.evaluation import Evaluation, evaluate
from vader_ray.training.experiment import Experiment, build
from vader_ray.training.loop import is_due, make_optimizer
from vader_ray.training.model_cache import ModelCache, model_key
from vader_ray.training.step import train_step

REWARDS = ("hps", "aesthetic", "pickscore")
CPU = torch.device("cpu")
PromptSet: TypeAlias = Literal["train", "validation", "test"]
"""Prompts of an evaluation; those of ``train`` have noise by which nothing was trained."""

_LOADED: dict[str, ModelCache] = {}
_BASES: dict[tuple[str, ...], Evaluation] = {}


@dataclass(frozen=True)
class Job:
    """One measurement; equal jobs are measured once."""

    part: str
    """Part of the benchmark, such as ``training``."""
    label: str
    """Name of what is compared, in tables and figures."""
    recipe: str
    settings: dict[str, Any]
    """Overrides of the recipe."""
    reward: str = "hps"
    """The trained reward; the others are held out."""
    rewards: tuple[str, ...] = REWARDS
    """All rewards that are measured."""
    weight: float = 1.0
    """Weight of the trained reward."""
    seed: int = 0
    num_updates: int = 0
    """Optimizer steps."""
    every: int = 0
    """Steps between evaluations; there is one before training and one at its end in any case."""
    prompts: PromptSet = "validation"
    """Prompts of the evaluations."""
    more_prompts: PromptSet | None = None
    """Further prompts, for the evaluations before training and at its end."""
    num_videos: int = 0
    """Videos whose gradients are compared."""
    tags: dict[str, str] = field(default_factory=dict)
    """Further columns of the tables."""

    def config(self) -> ExperimentConfig:
        """Return the recipe with the job's settings, on one thread."""
        rewards = [{"reward": name, "weights": f"shapes:{name}"} for name in self.rewards]
        trained = next(each for each in rewards if each["reward"] == self.reward)
        return load(
            self.recipe,
            {
                "rewards": [trained | {"weight": self.weight}],
                "eval_rewards": [each for each in rewards if each is not trained],
                "eval_metrics": [],
                "evaluation.select": "eval/objective",
                "guard.metrics": [],
                "expected_metrics": {},
                "evaluation.num_test_videos": None,  # one for each prompt: each seed has its own noise
                "runtime.num_threads": 1,
                "seed": self.seed,
                **self.settings,
            },
        )

    def key(self) -> dict[str, Any]:
        """Return the job as it is written to a file."""
        key: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return key


# ---- result files


def digest(value: object) -> str:
    """Return a short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


@cache
def models_digest() -> str:
    """Return a short hash of all packaged weights."""
    found = hashlib.sha256()
    for name in packaged_checkpoints():
        folder = Path(locate(SHAPES_PREFIX + name))
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            found.update(f"{name}/{path.relative_to(folder)}".encode() + path.read_bytes())
    return found.hexdigest()[:12]


class Results:
    """Finished measurements of a part of a benchmark, in ``FOLDER/PART.jsonl``.

    Raises:
        typer.BadParameter: the file has measurements of other models.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self._file = folder / f"{part}.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        check_models(self._file, [row.get("models") for row in self.rows])

    def find(self, job: Job) -> dict[str, Any] | None:
        """Return the row of a job; None if it was not measured.

        Raises:
            typer.BadParameter: it was measured with another version of its recipe.
        """
        key = job.key()
        row = next((row for row in self.rows if row["job"] == key), None)
        if row is not None and row["recipe"] != digest(job.config().fingerprint()):
            raise typer.BadParameter(
                f"{self._file} was measured with another version of {job.recipe}; give another --output"
            )
        return row

    def found(self, jobs: Iterable[Job]) -> list[dict[str, Any]]:
        """Return the rows of those of the jobs that were measured."""
        return [row for job in jobs if (row := self.find(job)) is not None]

    def get(self, job: Job, measure: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
        """Return the row of a job; measure it here if there is none."""
        return self.find(job) or self._add(job, measure(job))

    def run(
        self,
        jobs: Iterable[Job],
        measure: Callable[[Job], dict[str, Any]],
        *,
        processes: int = 1,
        deadline: float = inf,
    ) -> bool:
        """Measure the jobs that are missing, several at once; return whether all are there now.

        Args:
            deadline: value of `time.monotonic` from which on no job is started.
        """
        missing = [job for job in jobs if self.find(job) is None]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=start_process) as pool:
            running = {}
            while running or (missing and time.monotonic() < deadline):
                while missing and len(running) < processes and time.monotonic() < deadline:
                    job = missing.pop(0)
                    running[pool.submit(measure, job)] = job
                ended = [future for future in running if future.done()]
                for future in ended:
                    self._add(running.pop(future), future.result())
                if not ended:
                    time.sleep(0.05)
        if missing:
            print(f"{len(missing)} runs are missing; start again with the same options", flush=True)
        return not missing

    def _add(self, job: Job, measured: dict[str, Any]) -> dict[str, Any]:
        row = {
            "job": job.key(),
            "models": models_digest(),
            "recipe": digest(job.config().fingerprint()),
            **measured,
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        print(job.part, job.label, *job.tags.values(), job.reward, f"seed {job.seed}", flush=True)
        return row


def start_process() -> None:
    """Use one thread, and end this process with the one that started it, also if that one is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def check_models(path: Path, found: Iterable[str | None]) -> None:
    """Refuse results of other packaged weights than those of now.

    Raises:
        typer.BadParameter: names the file.
    """
    if set(found) - {models_digest()}:
        raise typer.BadParameter(f"{path} has results of other models; give another --output")


# ---- measurements


def measure_training(job: Job) -> dict[str, Any]:
    """Train and evaluate, by one process and thread.

    Each evaluation has the step, the means by logged name (``eval/…``; those of ``more_prompts`` begin
    with the name of the set), the values of each prompt under ``prompts``, and the costs so far.
    """
    started, config = time.process_time(), job.config()
    experiment = load_experiment(config)
    optimizer, state, group = make_optimizer(config, experiment), State(), WorkerGroup()
    seconds = 0.0
    evaluations = [_evaluated(job, config, experiment, state, seconds)]
    while state.step < job.num_updates:
        before = time.process_time()
        train_step(config, experiment, optimizer, group, state, 0.0)
        seconds += time.process_time() - before
        if is_due(state.step, job.every, is_last=state.step == job.num_updates):
            evaluations.append(_evaluated(job, config, experiment, state, seconds))
    base = base_evaluation(config, experiment, job.prompts)
    return {
        "evaluations": evaluations,
        "spread": {name: stdev(base.scores[name]) for name in job.rewards},
        "reward_queries": state.reward_queries,
        "latent_elements": latent_elements(config, experiment),
        "cpu_seconds": time.process_time() - started,
    }


def load_experiment(config: ExperimentConfig) -> Experiment:
    """Return the recipe's objects with a fresh adapter; models, rewards and metrics are loaded once."""
    return build(config, cache=_LOADED.setdefault(model_key(config, CPU), ModelCache()))


def base_evaluation(
    config: ExperimentConfig, experiment: Experiment, prompts: PromptSet = "validation"
) -> Evaluation:
    """Return the evaluation of the base model, computed once for a seed, rewards, metrics and videos.

    The adapter of the experiment must be fresh when it is called first.
    """
    measured = [each.model_dump(mode="json") for each in (*config.eval_metrics, config.evaluation)]
    rewards = sorted(str(each.name) for each in (*config.rewards, *config.eval_rewards))
    key = (model_key(config, CPU), str(config.seed), prompts, digest(measured), *rewards)
    if key not in _BASES:
        _BASES[key] = evaluate_on(config, experiment, prompts)
    return _BASES[key]


def evaluate_on(
    config: ExperimentConfig,
    experiment: Experiment,
    prompts: PromptSet,
    base: Mapping[str, Features] | None = None,
) -> Evaluation:
    """Evaluate on a set of prompts; of the training prompts on as many as there are validation videos."""
    if prompts == "train":
        every = max(1, len(config.prompts.train) // config.evaluation.num_videos)
        chosen = config.prompts.train[::every][: config.evaluation.num_videos]
        swapped = config.prompts.model_copy(update={"validation": chosen})
        config = config.model_copy(update={"prompts": swapped})
    split = "test" if prompts == "test" else "validation"
    return evaluate(config, experiment, WorkerGroup(), base, split=split)


def latent_elements(config: ExperimentConfig, experiment: Experiment) -> int:
    """Return the number of elements of one video's latents."""
    conditioning = experiment.condition([config.prompts.validation[0]])
    return int(experiment.model.sample(conditioning, [0]).numel())


def _evaluated(
    job: Job, config: ExperimentConfig, experiment: Experiment, state: State, seconds: float
) -> dict[str, Any]:
    """Evaluate; before training the base model's evaluation is used again."""
    row: dict[str, Any] = {
        "step": state.step,
        "reward_queries": state.reward_queries,
        "denoiser_calls": state.denoiser_calls,
        "train_cpu_seconds": seconds,
        "prompts": {},
    }
    is_end = state.step in (0, job.num_updates)
    for prompts in (job.prompts, *([job.more_prompts] if job.more_prompts and is_end else [])):
        base = base_evaluation(config, experiment, prompts)
        found = base if state.step == 0 else evaluate_on(config, experiment, prompts, base.base_features)
        name = "eval/" if prompts == job.prompts else f"{prompts}/"
        row |= {metric.replace("eval/", name, 1): value for metric, value in found.metrics.items()}
        row["prompts"] |= {
            metric.replace("eval/", name, 1): values for metric, values in found.prompt_values.items()
        }
    return row
