"""The Python API for recipes: load, train, evaluate, generate, sweep; and rewards and adapters by name.

Every function here is exported by the package itself: ``import vader_ray as vr; vr.train(...)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vader_ray.config import ExperimentConfig, RewardConfig, load, override, section
from vader_ray.errors import UserError, did_you_mean, first_line
from vader_ray.paths import SHAPES_PREFIX, locate, packaged_checkpoints

if TYPE_CHECKING:
    from vader_ray.orchestration.runs.summary import RunSummary
    from vader_ray.orchestration.sweeps.trial_table import SweepResult
    from vader_ray.training.callbacks import Callback
    from vader_ray.types import Reward

RewardLike: TypeAlias = str | Callable[..., Any] | Mapping[str, Any]
"""A reward's name, a function ``f(frames, prompts) -> scores``, or an item of a recipe's list ``rewards``: a
mapping
with the key ``reward`` (a name or a function) and, where wanted, ``weight``, ``frames`` and the reward's
options."""
PromptsLike: TypeAlias = str | Path | Iterable[str]
"""A prompt file, or texts: a list, a column of a `datasets.Dataset`, any iterable of strings."""


def load_recipe(
    recipe: str | Path, overrides: Mapping[str, Any] | None = None, /, **settings: Any
) -> ExperimentConfig:
    """Load a recipe and change some of its settings.

    Args:
        recipe: name of a packaged recipe (``vader-ray list recipes``), or path of a YAML file.
        overrides: dotted path → value, such as ``{"sampling.truncation_depth": 2}``.
        settings: top-level settings, such as ``num_steps=16``.

    Raises:
        UserError: one line per problem, each with the setting's path.
    """
    return load(str(recipe), {**(overrides or {}), **settings})


def train(  # noqa: PLR0913
    recipe: ExperimentConfig | str | Path,
    *,
    workers: int | None = None,
    rewards: Sequence[RewardLike] | None = None,
    eval_rewards: Sequence[RewardLike] | None = None,
    prompts: PromptsLike | None = None,
    validation_prompts: PromptsLike | None = None,
    test_prompts: PromptsLike | None = None,
    callbacks: Sequence[Callback] = (),
    run_name: str | None = None,
    resume: bool = False,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
) -> RunSummary:
    """Train a recipe on Ray Train workers, tracked by MLflow, and wait for its end.

    Args:
        recipe: a loaded recipe, the name of a packaged one, or the path of a YAML file.
        workers: number of Ray Train workers; by default the recipe's ``runtime.num_workers``.
        rewards: rewards to train, in place of the recipe's. Functions travel to the workers.
        eval_rewards: held-out rewards, in place of the recipe's.
        prompts: training prompts, in place of the recipe's.
        validation_prompts: prompts of the evaluations during training, in place of the recipe's.
        test_prompts: prompts of the evaluation at the end, in place of the recipe's.
        callbacks: objects whose methods are called in this process, with the metrics of each step.
        run_name: name of the run's folder; by default the recipe's name and the time.
        resume: continue the named run, or the recipe's latest unfinished one.
        runs_dir: folder of all runs.
        storage: URI or shared folder for checkpoints and a copy of the run's folder, for machines without a
            common disk.

    Raises:
        UserError: the settings cannot work; mostly raised before any work is done.
        RunFailed: the run ended early; its results so far are kept and it can be resumed.
    """
    from vader_ray.orchestration.runs.launch import train_run
    from vader_ray.training.callbacks import notify

    changes: dict[str, Any] = {} if workers is None else {"runtime.num_workers": workers}
    for name, given in (("rewards", rewards), ("eval_rewards", eval_rewards)):
        if given is not None:
            changes[name] = [_reward_settings(reward) for reward in given]
    for name, texts in (
        ("prompts.train", prompts),
        ("prompts.validation", validation_prompts),
        ("prompts.test", test_prompts),
    ):
        if texts is not None:
            changes[name] = str(texts) if isinstance(texts, str | Path) else [str(text) for text in texts]
    config = override(_loaded(recipe), changes)
    summary = train_run(
        config,
        runs_dir=Path(runs_dir),
        run_name=run_name,
        resume=resume,
        storage=storage,
        on_step=lambda event: notify(callbacks, event),
    )
    for callback in callbacks:
        callback.on_train_end(summary)
    return summary


def evaluate(recipe: ExperimentConfig | str | Path, *, adapter: str | Path | None = None) -> dict[str, float]:
    """Score the recipe's held-out videos in this process; return the means by metric name
    (``eval/reward/hps``).

    Args:
        adapter: a saved adapter, or its id on the Hugging Face hub; by default the pretrained model is
            evaluated.

    Raises:
        UserError: the adapter is missing, damaged or of another model.
    """
    from vader_ray.training.inference import evaluate_adapter
    from vader_ray.training.resolve import resolve_names

    return evaluate_adapter(resolve_names(_loaded(recipe)), _path(adapter))


def generate(
    recipe: ExperimentConfig | str | Path,
    prompt: str,
    *,
    adapter: str | Path | None = None,
    seed: int = 0,
    output: str | Path = "video.mp4",
) -> Path:
    """Sample one video with the recipe's model and write it as an mp4; return its path.

    Args:
        prompt: text of the video, or ``path/to/image.png | text`` for an image-to-video model.
        adapter: a saved adapter, or its id on the Hugging Face hub; by default the pretrained model is used.
        seed: seed of the initial noise.
        output: path of the mp4 file.

    Raises:
        UserError: the adapter is missing, damaged or of another model, or the file cannot be written.
    """
    from vader_ray.training.inference import generate_video
    from vader_ray.training.resolve import resolve_names

    generate_video(resolve_names(_loaded(recipe)), prompt, _path(adapter), seed, Path(output))
    return Path(output).resolve()


def sweep(  # noqa: PLR0913
    recipe: ExperimentConfig | str | Path,
    space: Mapping[str, Any],
    *,
    num_trials: int | None = None,
    search: str | None = None,
    early_stopping: bool = False,
    name: str | None = None,
    workers_per_trial: int = 1,
    max_concurrent: int | None = None,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    resume: bool = False,
) -> SweepResult:
    """Run trials of a recipe with Ray Tune, tracked by MLflow, and compare them.

    Args:
        recipe: a loaded recipe, the name of a packaged one, or the path of a YAML file.
        space: dotted path of a setting → its values: `vader_ray.grid_search`, `choice`, `uniform`,
            `loguniform`, or any other domain of Ray Tune.
        num_trials: number of trials; by default one for each combination of a grid.
        search: ``grid``, ``random`` or ``tpe`` (Optuna); by default ``grid`` for a space of grids, else
            ``random``.
        early_stopping: stop trials that fall behind at equal reward queries (ASHA).
        name: name of the sweep; by default the recipe's name and ``_sweep``.
        workers_per_trial: number of Ray Train workers of each trial.
        max_concurrent: number of trials at once; by default as many as fit.
        runs_dir: folder of all runs and sweeps.
        storage: URI or shared folder for checkpoints and a copy of the sweep's folder.
        resume: continue the latest unfinished sweep with these settings.

    Returns:
        The sweep's result: ``.best`` is the summary of the best trial, ``.trials`` holds all of them.

    Raises:
        UserError: the settings cannot work; raised before any work is done.
        RunFailed: no trial succeeded.
    """
    from vader_ray.orchestration.sweeps.definition import SweepDefinition
    from vader_ray.orchestration.sweeps.driver import run_sweep

    config = _loaded(recipe)
    is_grid = all(isinstance(domain, dict) for domain in space.values())
    chosen = search or ("grid" if is_grid else "random")
    if chosen not in ("grid", "random", "tpe"):
        nearest = did_you_mean(str(search), ("grid", "random", "tpe"))
        raise UserError(f"search={search!r}: {nearest}choose 'grid', 'random' or 'tpe'")
    definition = SweepDefinition(
        name=name or f"{config.name}_sweep",
        question=f"Sweep of {', '.join(map(str, space))} over {config.name}",
        recipe=config.name,
        default_overrides=(),
        space=space,
        settings=lambda values, recipe: values,
        search=chosen,  # type: ignore[arg-type]
        num_trials=num_trials,
        scheduler="asha" if early_stopping else None,
    )
    return run_sweep(
        definition,
        config,
        workers_per_trial=workers_per_trial,
        max_concurrent=max_concurrent,
        num_trials=num_trials,
        runs_dir=Path(runs_dir),
        storage=storage,
        resume=resume,
    )


def load_reward(name: str, *, device: str = "cpu", precision: str = "float32", **options: Any) -> Reward:
    """Load a reward model: a callable ``reward(frames, prompts) -> scores``, differentiable in the frames.

    Frames are ``(batch, frames, 3, height, width)`` in [0, 1]; scores are one per video, higher is better.

    Args:
        name: a reward of ``vader-ray list rewards``, or the dotted name of your own.
        device: where its networks compute.
        precision: ``float32``, ``bfloat16`` or ``float16``, for the networks.
        options: the reward's own options, such as ``weights="shapes:hps"``.

    Raises:
        UserError: unknown reward or option, or weights that cannot be read.
    """
    import torch

    from vader_ray import rewards

    spec = section(RewardConfig, {"reward": name, "precision": precision, **options}, "load_reward")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={device!r}: {first_line(error)}; give cpu, or cuda on a machine with a GPU"
        ) from None
    return rewards.build(rewards.check(spec), device=device)


def packaged_weights(name: str) -> Path:
    """Return the folder of packaged weights (``text_to_video``, ``hps`` …), which recipes call
    ``shapes:NAME``.

    Raises:
        UserError: there are no packaged weights of this name.
    """
    if name not in (names := packaged_checkpoints()):
        nearest = did_you_mean(name, names)
        raise UserError(f"there are no packaged weights {name!r}; {nearest}there are {', '.join(names)}")
    return Path(locate(SHAPES_PREFIX + name))


def _loaded(recipe: ExperimentConfig | str | Path) -> ExperimentConfig:
    return recipe if isinstance(recipe, ExperimentConfig) else load(str(recipe))


def _path(adapter: str | Path | None) -> Path | None:
    return None if adapter is None else Path(adapter)


def _reward_settings(reward: RewardLike) -> dict[str, Any]:
    """Return an item of a recipe's list ``rewards``; functions are registered and get their name as label."""
    settings = dict(reward) if isinstance(reward, Mapping) else {"reward": reward}
    function: Any = settings.get("reward")
    if callable(function):
        from vader_ray import rewards

        settings["reward"] = rewards.register_function(function)
        settings.setdefault("label", function.__name__)
    return settings
