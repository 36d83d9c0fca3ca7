"""The command line: ``vader-ray train|evaluate|generate|report|export|mix|check|fetch|list|pools|watch-notices``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from vader_ray.config import ConfigError, ExperimentConfig, is_metric_value, load, locate, recipe_names
from vader_ray.errors import RunFailed

if TYPE_CHECKING:
    from vader_ray.orchestration.sweeps.definition import SweepDefinition

# Everything that imports a framework is imported where it is used: a wrong setting is refused at once.

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
P = ParamSpec("P")
CLUSTER_SUFFIXES = (".yaml", ".yml", ".sbatch")

Recipe = Annotated[
    str, typer.Argument(help="A packaged recipe (see `list recipes`) or the path of a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. sampling.truncation_depth=2."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", "-w", help="Ray Train workers; short for runtime.num_workers=N.")
]
_DEVICES_HELP = "Ask, without a GPU and without weights, what a step needs there: h100,a100-40,… or cpu."
_ADAPTER_HELP = (
    "A saved adapter: a folder, or the .pt of a peft state dict. Without it, the pretrained model."
)
_STORAGE_HELP = (
    "Also keep checkpoints and a copy of the folder there, for machines that share no disk: s3://BUCKET/PREFIX, "
    "gs://BUCKET/PREFIX or a folder that all of them see."
)
Storage = Annotated[str | None, typer.Option(help=_STORAGE_HELP, envvar="VADER_RAY_STORAGE")]
AdapterFolder = Annotated[Path | None, typer.Option("--adapter", help=_ADAPTER_HELP)]


def _explained(command: Callable[P, None]) -> Callable[P, None]:
    """What the user can correct ends with one message and status 2; a run that failed otherwise, with 1."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except RunFailed as error:
            _stop(error, 1)
        except (ValueError, OSError) as error:
            _stop(error, 2)
        except KeyboardInterrupt:
            print("stopped; `--resume` continues from the last checkpoint", file=sys.stderr)
            raise typer.Exit(130) from None

    return wrapped


def _stop(error: Exception, status: int) -> None:
    print(f"vader-ray: {error}", file=sys.stderr)
    raise typer.Exit(status) from None


def _load(recipe: str, overrides: list[str] | None, workers: int | None = None) -> ExperimentConfig:
    more = [] if workers is None else [f"runtime.num_workers={workers}"]
    config = load(recipe, [*(overrides or []), *more])
    from vader_ray.orchestration.runs.launch import resolve_names

    return resolve_names(config, Path(recipe).resolve().parent if Path(recipe).is_file() else None)


@app.command()
@_explained
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = None,
    run_name: Annotated[
        str | None, typer.Option(help="Name of the run's folder; an existing name continues that run.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue the named run, or the recipe's latest unfinished one.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    storage: Storage = None,
) -> None:
    """Align a model by reward gradients on Ray Train, tracked by MLflow. The last line is the run's folder."""
    config = _load(recipe, overrides, workers)
    from vader_ray.orchestration.runs.launch import read_summary, run

    folder = run(config, runs_dir=runs_dir, run_name=run_name, resume=resume, storage=storage)
    _print_summary(read_summary(folder))
    print(folder.path)


def _print_summary(summary: dict[str, Any]) -> None:
    console, artifacts, uri = Console(highlight=False), summary["artifacts"], summary["tracking_uri"]
    table = Table(
        title=f"Held-out prompts, {summary['steps']} steps, {summary['reward_queries']} reward queries",
        title_justify="left",
    )
    table.add_column("reward or metric")
    for heading in ("before", "after", "gain ± standard error"):
        table.add_column(heading, justify="right")
    for name, before in summary["eval"]["before"].items():
        gain = summary["gain"][name]
        difference = f"{gain['mean']:+.4f} ± {gain['standard_error']:.4f}"
        table.add_row(name, f"{before:.4f}", f"{summary['eval']['after'][name]:.4f}", difference)
    for metric, before in summary["metrics_before"].items():
        if is_metric_value(metric):
            name = metric.removeprefix("eval/")
            table.add_row(name, f"{before:.4f}", f"{summary['metrics'][metric]:.4f}", "")
    console.print(table)
    for alarm in summary["guard"]:
        print(alarm)
    for metric, floor in summary["expected_metrics"].items():
        print(f"{metric} of at least {floor}: {'reached' if summary['reached'][metric] else 'NOT REACHED'}")
    print(f"before and after: {artifacts['before_after']}")
    print(
        f"videos:           {artifacts['gallery']} (mp4 files in {Path(artifacts['gallery']).parent / 'videos'})"
    )
    opened = (
        f"{Path(sys.executable).parent / 'mlflow'} ui --backend-store-uri {uri}"
        if uri.startswith("sqlite")
        else uri
    )
    print(f"MLflow:           {opened}")


@app.command()
@_explained
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: AdapterFolder = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the metrics as JSON.")
    ] = None,
) -> None:
    """Score the recipe's held-out videos with all its rewards, in this process."""
    config = _load(recipe, overrides)
    from vader_ray.training.inference import evaluate_adapter

    metrics = evaluate_adapter(config, adapter)
    for name, value in metrics.items():
        print(f"{name:32} {value:.4f}")
    if output is not None:
        output.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


@app.command()
@_explained
def generate(
    recipe: Recipe,
    prompt: Annotated[str, typer.Argument(help="What the video shall show.")],
    overrides: Overrides = None,
    adapter: AdapterFolder = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("video.mp4"),
) -> None:
    """Make an mp4 from a prompt with the recipe's model, with or without an adapter."""
    config = _load(recipe, overrides)
    from vader_ray.training.inference import generate_video

    generate_video(config, prompt, adapter, seed, output)
    print(output.resolve())


@app.command()
@_explained
def report(
    what: Annotated[
        list[str], typer.Argument(help="Experiments, sweeps or runs: names, folders, or ids of MLflow runs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("report.html"),
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow; by default MLFLOW_TRACKING_URI, else mlflow.db in the working directory."),
    ] = None,
) -> None:
    """Write one HTML page about past runs, complete in itself, with its figures beside it; from MLflow alone."""
    from vader_ray.orchestration.reporting.html_report import write_report

    print(write_report(what, output, tracking_uri))


@app.command()
@_explained
def export(
    adapter: Annotated[Path, typer.Argument(help=_ADAPTER_HELP.partition(" Without")[0])],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder, or a .safetensors file.")],
    format: Annotated[
        Literal["diffusers", "comfyui", "peft"], typer.Option(help="Whose keys.")
    ] = "diffusers",
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold the adapter into the recipe's denoiser instead.")
    ] = False,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe of the model, for --merge and the alpha of a .pt file.")
    ] = None,
) -> None:
    """Write a saved adapter for other programs, or the whole denoiser with the adapter inside."""
    config = _load(recipe, None) if recipe else None
    if merge and config is None:
        raise ConfigError("--merge needs the model into which the adapter goes; name its recipe by --recipe")
    from vader_ray import models
    from vader_ray.training.inference import merge_adapter

    if merge and config is not None:
        written = merge_adapter(config, adapter, output)
    else:
        alpha = {} if config is None else {"bare_alpha": config.adapter.alpha}
        written = models.export_adapter(adapter, format, output, **alpha)
    for path in written:
        print(path.resolve())


@app.command()
@_explained
def mix(
    adapters: Annotated[
        list[str], typer.Argument(metavar="WEIGHT=ADAPTER...", help="0.5=runs/a/best_adapter, two or more.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder.")],
) -> None:
    """Write one adapter that changes the model by the weighted sum of what each changes: a mix of rewards without training."""
    from vader_ray.models import mix_adapters

    parts = []
    for text in adapters:
        weight, equals, folder = text.partition("=")
        try:
            parts.append((Path(folder), float(weight)))
        except ValueError:
            equals = ""
        if not equals or not folder:
            raise ConfigError(f"{text!r} is not WEIGHT=ADAPTER; write 0.5=runs/a/best_adapter") from None
    mix_adapters(parts, output)
    print(output.resolve())


@app.command()
@_explained
def check(
    recipe: Recipe,
    overrides: Overrides = None,
    workers: Workers = None,
    devices: Annotated[str | None, typer.Option(help=_DEVICES_HELP)] = None,
) -> None:
    """Validate a recipe, say what it loads, and make one step's gradient on every worker without changing anything.

    With --devices nothing is loaded and no GPU is used: memory is counted, seconds are estimated.
    Given a file of clusters/ instead, check that it is filled in, well-formed and made for the installed versions.
    """
    if Path(recipe).suffix in CLUSTER_SUFFIXES and Path(recipe).is_file():
        from vader_ray.orchestration.clusters.cluster_files import check_cluster_file, is_cluster_file

        if is_cluster_file(Path(recipe)):
            print(check_cluster_file(Path(recipe)))
            return
    config = _load(recipe, overrides, workers)
    if devices is not None:
        from vader_ray.preflight.memory_report import memory_report

        for part in memory_report(config, devices.split(",")):
            Console(highlight=False, soft_wrap=isinstance(part, str)).print(part, markup=False)
        return
    from vader_ray.orchestration.runs.dry_run import check as check_on_workers

    print(f"model   {config.model.family}: {locate(config.model.weights)}")
    for kind, specs in (("reward", config.rewards), ("eval", config.eval_rewards)):
        for spec in specs:
            options = ", ".join(f"{name}={locate(str(value))}" for name, value in spec.options.items())
            print(
                f"{kind:7} {spec.name} (weight {spec.weight:g}, frames {spec.frames}): {options or 'no options'}"
            )
    print(f"metrics {', '.join(metric.name for metric in config.all_metrics())}")
    sampling, checked = config.sampling, check_on_workers(config)
    step = checked.step
    print(
        f"plan    {sampling.truncation} {sampling.truncation_depth} of {sampling.num_inference_steps} denoising steps, "
        f"{config.num_steps} steps of {config.videos_per_step} videos on {config.runtime.num_workers} workers"
    )
    print(
        f"adapter {step.num_adapter_parameters:,} parameters, gradient norm {step.gradient_norm:.3g}, finite and not zero"
    )
    print(
        f"memory  {step.peak_gib:.2f} GiB at the peak of one worker, {step.weights_gib:.2f} GiB of it weights"
    )
    minutes = step.step_seconds * config.num_steps / 60
    print(f"time    {step.step_seconds:.1f} s per step, about {minutes:.0f} min without evaluations")
    if not checked.equal_on_all_workers:
        raise ConfigError(
            "the workers' summed gradients differ: their process group does not work; check the network between the nodes"
        )
    print(f"workers {config.runtime.num_workers}, with bit-identical gradients")


@app.command()
@_explained
def fetch(recipe: Recipe, overrides: Overrides = None) -> None:
    """Download everything that a recipe needs into the hub's cache, and load each reward and metric once: for workers without internet."""
    config = _load(recipe, overrides)
    from vader_ray import metrics, models, rewards

    for spec in (*config.rewards, *config.eval_rewards):
        rewards.build(spec, device="cpu")
        print(f"reward  {spec.name}: complete, it loads")
    for metric in config.eval_metrics:
        metrics.build(metric, device="cpu")
        print(f"metric  {metric.name}: complete, it loads")
    print(f"model   {config.model.family}: complete in {models.fetch(config.model)}")


@app.command("watch-notices")
@_explained
def watch_notices(
    cloud: Annotated[Literal["aws", "gcp"], typer.Argument(help="Whose machine this is.")],
    every: Annotated[float, typer.Option(help="Seconds between questions.")] = 5.0,
) -> None:
    """Wait for the notice that the cloud takes this machine back; then have Ray drain its node, so that runs keep every step."""
    from vader_ray.orchestration.clusters.preemption import watch

    watch(cloud, every)


@app.command()
@_explained
def pools(stop: Annotated[str | None, typer.Option(help="End the pool of this name.")] = None) -> None:
    """The shared pools of reward actors on the cluster of RAY_ADDRESS."""
    from vader_ray.orchestration.clusters import connection
    from vader_ray.orchestration.reward_service import pool

    with connection.existing():
        if stop is not None:
            print(f"{stop}: {pool.stop_pool(stop)} actors stopped")
        for name, held in pool.describe_pools().items():
            print(f"{name}: {held}")


@app.command(name="list")
@_explained
def list_(what: Annotated[str, typer.Argument(help="models, rewards, metrics or recipes")]) -> None:
    """What can be named in a recipe."""
    from vader_ray import metrics, models, rewards

    described: dict[str, Callable[[], dict[str, str]]] = {
        "models": lambda: {name: _first_line(models.resolve(name)) for name in models.names()},
        "rewards": lambda: {name: _describe(rewards.resolve(name)) for name in rewards.names()},
        "metrics": lambda: {name: _describe_metric(metrics.resolve(name)) for name in metrics.names()},
        "recipes": lambda: {name: load(name).description for name in recipe_names()},
    }
    if what not in described:
        raise ConfigError(f"there is nothing called {what!r} to list; choose one of {', '.join(described)}")
    table = Table(show_header=False, box=None)
    for name, description in described[what]().items():
        table.add_row(name, description)
    Console(highlight=False).print(table)


def _describe(reward: Any) -> str:
    """What it looks at, in which unit it answers, and whose weights it takes by default."""
    weights = (
        f"{reward.default_weights} ({reward.licence})"
        if getattr(reward, "default_weights", "")
        else "no network"
    )
    return f"looks at a {reward.granularity}; {reward.unit}\nweights: {weights}"


def _describe_metric(metric: Any) -> str:
    direction = "higher" if metric.higher_is_better else "lower"
    return f"{_first_line(metric)}\n{metric.unit}; {direction} is better"


def _first_line(documented: Any) -> str:
    return str(documented.__doc__).strip().splitlines()[0]


def sweep_script(sweep: SweepDefinition) -> None:
    """The command line of a script of ``sweeps/``."""
    script = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings=app.info.context_settings
    )

    @script.command(help=sweep.question)
    @_explained
    def run(
        overrides: Overrides = None,
        recipe: Annotated[
            str | None, typer.Option(help="A packaged recipe or a YAML file; by default the script's own.")
        ] = None,
        workers_per_trial: Annotated[int, typer.Option(help="Ray Train workers of each trial.")] = 1,
        max_concurrent: Annotated[
            int | None, typer.Option(help="Trials at once; by default as many as fit.")
        ] = None,
        num_trials: Annotated[int | None, typer.Option(help="At most so many trials.")] = None,
        runs_dir: Annotated[Path, typer.Option(help="Where sweeps are kept.")] = Path("runs"),
        storage: Storage = None,
        resume: Annotated[
            bool, typer.Option(help="Continue the latest unfinished sweep with these settings.")
        ] = False,
    ) -> None:
        from vader_ray.orchestration.sweeps.driver import run_sweep

        run_sweep(
            sweep,
            recipe=recipe,
            overrides=overrides or [],
            workers_per_trial=workers_per_trial,
            max_concurrent=max_concurrent,
            num_trials=num_trials,
            runs_dir=runs_dir,
            storage=storage,
            resume=resume,
        )

    script()


if __name__ == "__main__":
    app()
