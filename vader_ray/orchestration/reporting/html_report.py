"""HTML report about experiments, sweeps and runs in MLflow: one self-contained page for screen and print."""

from __future__ import annotations

import base64
import io
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vader_ray.errors import UserError
from vader_ray.files import write_text
from vader_ray.orchestration.reporting.past_runs import PastRun, differing, differing_settings, find_runs
from vader_ray.orchestration.reporting.report_figures import (
    best_groups,
    describe_bands,
    draw_effects,
    draw_metrics,
    draw_rewards,
    draw_trade_offs,
    grouped,
    reward_names,
    short,
    value_of,
)
from vader_ray.orchestration.tracking.mlflow_client import MlflowException
from vader_ray.orchestration.tracking.pages import how_to_open
from vader_ray.orchestration.tracking.server import tracking_uri, unusable
from vader_ray.outputs import check_output
from vader_ray.training.media import read_mp4
from vader_ray.uris import redact

MAX_PROMPTS, MAX_VIDEO_RUNS = 3, 8
"""Held-out prompts and runs whose videos are on the page."""
MAX_VIDEO_BYTES = 24_000_000
"""Size of all videos of the page."""
STILL_HEIGHT, NUM_STILLS = 128, 4
"""Height in pixels and number of the frames that replace a video in print."""
MAX_COLUMNS = 5
"""Differing settings with a column in the table."""


@dataclass(frozen=True)
class Clip:
    """A video of the page."""

    label: str
    """Run and step, below the video."""
    prompt: str
    """Held-out prompt."""
    mp4: str
    """The video, base64."""
    poster: str
    """First frame as JPEG, base64."""
    strip: str
    """Frames side by side as JPEG, base64; printed instead of the video."""


def write_report(targets: Sequence[str], output: Path, uri: str | None = None) -> Path:
    """Write the page and return its path; its figures go to ``OUTPUT_figures/`` next to it, as SVG and PNG.

    Args:
        targets: names of experiments, sweeps and runs; ids or folders of runs.
        output: path of the page.
        uri: server or database, as the setting ``tracking.uri``.

    Raises:
        UserError: MLflow cannot be used or lacks the targets, no run has an evaluation, or the page cannot be
            written.
    """
    check_output(output, suffix=".html")
    address = tracking_uri(uri)
    runs = find_runs(address, targets)
    try:
        page = _render(targets, runs, address, output)
        write_text(output, page)
    except MlflowException as error:
        raise unusable(address, error) from None
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {output} ({error.strerror}); give another --output"
        ) from None
    return output.resolve()


def figures_folder(output: Path) -> Path:
    """Return the folder of a page's figures."""
    return output.with_name(f"{output.stem}_figures")


def _render(targets: Sequence[str], runs: list[PastRun], uri: str, output: Path) -> str:
    folder = figures_folder(output)
    evaluated = [run for run in runs if run.last("eval/objective") is not None]
    groups, (trained, heldout) = grouped(evaluated), reward_names(evaluated)
    clips, left_out = _clips(evaluated)
    shown = best_groups(groups)
    bands = describe_bands(shown)
    if len(shown) < len(groups):
        bands += f" Drawn are the {len(shown)} of {len(groups)} settings with the highest final objective."
    sections = [
        ("rewards", "Trained rewards", f"Means over held-out prompts, which were not trained on. {bands}",
         draw_rewards(shown, trained, folder)),
        ("heldout", "Held-out rewards", f"Measured but not trained: a fall shows reward hacking. {bands}",
         draw_rewards(shown, heldout, folder)),
        ("metrics", "Metrics", "Measured in every evaluation and never trained.",
         draw_metrics(shown, folder)),
        ("trade-offs", "Trade-offs", "No other run exceeds a run on the Pareto front in all rewards.",
         draw_trade_offs(groups, folder)),
        ("effects", "Effect of each setting", "One dot per run; a line connects the means of few values.",
         draw_effects(groups, folder)),
    ]  # fmt: skip
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        title=_title(targets, runs),
        when=datetime.now().strftime("%Y-%m-%d %H:%M"),
        facts=_facts(runs),
        recipes=_recipes(runs),
        table=_table(runs, trained, heldout),
        errors=[
            (run.name, run.tags["error"]) for run in runs if run.status == "failed" and "error" in run.tags
        ],
        alarms=[
            (run.name, line) for run in runs for line in run.tags.get("vader_ray.guard", "").splitlines()
        ],
        guarded=any(name.startswith("guard/") for run in runs for name in run.history),
        sections=[
            (anchor, heading, lead, drawn)
            for anchor, heading, lead, found in sections
            if (drawn := list(found))
        ],
        clips=clips,
        left_out=left_out,
        commands=_commands(targets, runs, uri, output),
        figures=folder.name,
    )


def _title(targets: Sequence[str], runs: Sequence[PastRun]) -> str:
    names = [target.rstrip("/").rsplit("/", 1)[-1] for target in targets]
    return ", ".join(names) if len(names) <= 3 else f"{len(runs)} runs"


def _facts(runs: Sequence[PastRun]) -> list[tuple[str, str]]:
    """Return number, status, costs and code of all runs."""

    def total(metric: str) -> float:
        return sum(
            run.last(metric) or 0.0 for run in runs if not run.is_soup
        )  # the costs of a soup are those of its ingredients

    states = [run.status for run in runs]
    commits = sorted(
        {run.tags["mlflow.source.git.commit"][:12] for run in runs if "mlflow.source.git.commit" in run.tags}
    )
    gpus = sorted({run.tags["gpus"] for run in runs if "gpus" in run.tags})
    facts = [
        ("runs", ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))),
        (
            "started",
            datetime.fromtimestamp(min(run.started_ms for run in runs) / 1000).strftime("%Y-%m-%d %H:%M"),
        ),
        ("reward queries", f"{total('cost/reward_queries'):,.0f}"),
        ("denoiser calls", f"{total('cost/denoiser_calls'):,.0f}"),
        ("training time", _duration(total("cost/train_seconds"))),
        ("with evaluations", _duration(total("cost/wall_seconds"))),
        (
            "GPU hours",
            f"{total('cost/gpu_hours'):.2f}" if total("cost/gpu_hours") else "none (CPUs only)",
        ),
        ("GPUs", "; ".join(gpus)),
        ("code", ", ".join(commits)),
    ]
    return [(name, value) for name, value in facts if value]


def _recipes(runs: Sequence[PastRun]) -> list[dict[str, Any]]:
    """Return, per recipe, the settings that all its runs share."""
    recipes = []
    for name in dict.fromkeys(run.recipe_name for run in runs if run.settings):
        members = [run for run in runs if run.recipe_name == name]
        first, varied = members[0], set(differing_settings(members))
        common = [
            (field, value)
            for field, value in first.settings.items()
            if field not in varied and value not in ("None", "{}")
        ]
        description = first.tags.get("mlflow.note.content", "")
        recipes.append({"name": name or "without a recipe", "description": description, "settings": common,
                        "setup": _setup(first, varied), "count": len(members)})  # fmt: skip
    return recipes


def _setup(run: PastRun, varied: set[str]) -> str:
    """Describe the main settings in a sentence; settings that differ between runs are marked."""

    def value(field: str) -> str:
        return f"({short(field)} differs)" if field in varied else run.settings.get(field, "?")

    heldout = f" (held out: {', '.join(run.heldout)})" if run.heldout else ""
    return (
        f"Trained on {', '.join(run.rewards)}{heldout}: {value('model.family')} {value('model.weights')}, "
        f"{value('num_steps')} steps of {value('videos_per_step')} videos, learning rate "
        f"{value('optimizer.learning_rate')}, rank {value('adapter.rank')}; {value('sampling.truncation')} "
        f"{value('sampling.truncation_depth')} of {value('sampling.num_inference_steps')} denoising steps "
        f"carry gradient."
    )


def _table(runs: Sequence[PastRun], trained: Sequence[str], heldout: Sequence[str]) -> dict[str, Any]:
    """Return headings and rows of the table; the first cell of a row is the run's name."""
    fields = differing(runs)[:MAX_COLUMNS]
    rewards = [*trained, *(f"{name} (held out)" for name in heldout)]
    headings = ["run", "status", *map(short, fields), *rewards, "steps", "reward queries", "denoiser calls",
                "training", "GPU hours", "best adapter", "guard", "MLflow run id"]  # fmt: skip
    rows = []
    for run in runs:
        rows.append([
            run.name, run.status, *(value_of(run, field) or "" for field in fields),
            *(_change(run, name) for name in (*trained, *heldout)),
            str(max(run.history.get("cost/reward_queries", {0: 0.0}))),
            _count(run.last("cost/reward_queries")), _count(run.last("cost/denoiser_calls")),
            _duration(run.last("cost/train_seconds")), f"{run.last('cost/gpu_hours') or 0.0:.2f}",
            _best(run), _fired(run), run.run_id or "–",
        ])  # fmt: skip
    return {"headings": headings, "rows": rows}


def _best(run: PastRun) -> str:
    """Return the step of the best adapter, and the metric by which it was selected."""
    step = run.last("eval/best_step")
    chosen = run.settings.get("evaluation.select", "None")
    metric = (
        chosen if chosen != "None" else f"eval/reward/{run.heldout[0]}" if run.heldout else "eval/objective"
    )
    value = run.best(metric)
    return (
        "–"
        if step is None
        else f"step {step:.0f}"
        + (f": {metric.removeprefix('eval/')} {value:.4g}" if value is not None else "")
    )


def _fired(run: PastRun) -> str:
    fired = run.history.get("guard/fired", {})
    steps = [str(step) for step in sorted(fired) if fired[step]]
    return f"fired at {', '.join(steps)}" if steps else "no alarm" if fired else "–"


def _change(run: PastRun, name: str) -> str:
    before, after = run.first(f"eval/reward/{name}"), run.last(f"eval/reward/{name}")
    if before is None or after is None:
        return "–"
    gain, low, high = (run.last(f"eval/{kind}/{name}") for kind in ("gain", "gain_low", "gain_high"))
    text = f"{before:.4g} → {after:.4g}"
    if gain is not None and low is not None and high is not None:
        return f"{text} ({gain:+.3g}; 95 %: {low:+.3g} to {high:+.3g})".replace("-", "−")
    error = run.last(f"eval/gain_standard_error/{name}")
    return f"{text} ± {error:.2g}" if error is not None else text


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _clips(runs: Sequence[PastRun]) -> tuple[list[tuple[str, list[Clip]]], int]:
    """Return, per prompt, the videos of the base model and of each run; and the number of runs left out.

    After `MAX_VIDEO_RUNS` runs the others are left out, whether or not they have videos.

    A run has a video of its best adapter and of its last step.
    """
    rows: dict[str, list[Clip]] = {}
    shown, bases, spent, left_out = 0, set[tuple[str, ...]](), 0, 0
    for run in runs:
        if shown == MAX_VIDEO_RUNS:
            left_out += 1
            continue
        steps = run.video_steps()
        if not steps:
            continue
        wanted = [(0, "base model")] if 0 in steps and _base(run) not in bases else []
        best = int(run.last("eval/best_step") or 0)
        wanted += [(best, f"{run.name}, best adapter")] if best in steps[1:-1] else []
        wanted += [(steps[-1], run.name)] if steps[-1] else []
        files = [(step, label, run.videos(step, MAX_PROMPTS)) for step, label in wanted]
        size = sum(len(mp4) for _, _, mp4s in files for mp4 in mp4s)
        if spent + size > MAX_VIDEO_BYTES:
            left_out += 1
            continue
        shown, spent = shown + 1, spent + size
        bases.add(_base(run))
        for step, label, mp4s in files:
            for prompt, mp4 in zip(_prompts(run, len(mp4s)), mp4s, strict=True):
                name = label if step else f"{label}, seed {run.settings.get('seed', '0')}"
                rows.setdefault(prompt, []).append(
                    _clip(f"{name}, step {step}" if step else name, prompt, mp4)
                )
    return list(rows.items()), left_out


def _base(run: PastRun) -> tuple[str, ...]:
    """Return the settings on which the base model's videos depend."""
    free = (
        "sampling.truncation",
        "sampling.recompute",
        "sampling.prefix",
        "sampling.guidance_interval",
        "sampling.num_endings",
    )
    kept = ("seed", "model.", "sampling.", "prompts.heldout")
    return tuple(f"{field}={value}" for field, value in sorted(run.settings.items())
                 if field.startswith(kept) and not field.startswith(free))  # fmt: skip


def _prompts(run: PastRun, count: int) -> list[str]:
    """Return the texts of the first held-out prompts, repeated as evaluations repeat them."""
    prompts = run.recipe.get("prompts", {}).get("heldout") or [f"video {index + 1}" for index in range(count)]
    return [str(prompts[index % len(prompts)]).rpartition(" | ")[2] for index in range(count)]


def _clip(label: str, prompt: str, mp4: bytes) -> Clip:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        path.write_bytes(mp4)
        frames = read_mp4(path)
    chosen = frames[np.linspace(0, len(frames) - 1, min(NUM_STILLS, len(frames))).round().astype(int)]
    return Clip(
        label, prompt, base64.b64encode(mp4).decode(), _jpeg(frames[0]), _jpeg(np.concatenate(chosen, axis=1))
    )


def _jpeg(pixels: Any) -> str:
    image = Image.fromarray(pixels)
    image = image.resize((round(image.width * STILL_HEIGHT / image.height), STILL_HEIGHT))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return base64.b64encode(stream.getvalue()).decode()


def _commands(
    targets: Sequence[str], runs: Sequence[PastRun], uri: str, output: Path
) -> list[tuple[str, str]]:
    """Return the commands that repeat the runs and this page, each with a heading."""
    commands = []
    for script in dict.fromkeys(run.tags["sweep"].rsplit("-", 2)[0] for run in runs if "sweep" in run.tags):
        commands.append(("The sweep", f"python sweeps/{script}.py"))
    commands.append(("MLflow", how_to_open(uri, runs[0].experiment_id)))
    commands.append(("One run, by its MLflow run id", "\n".join(_repeat(runs[0], uri))))
    quoted = " ".join(shlex.quote(target) for target in targets)
    source = f"--tracking-uri {shlex.quote(redact(uri))}"
    commands.append(("This page", f"vader-ray report {quoted} {source} -o {shlex.quote(output.name)}"))
    return commands


def _repeat(run: PastRun, uri: str) -> Iterator[str]:
    yield f"export MLFLOW_TRACKING_URI={shlex.quote(redact(uri))}"
    yield f"mlflow artifacts download -r {run.run_id} -a recipe.yaml -d ."
    yield f"vader-ray train recipe.yaml --workers {run.settings.get('runtime.num_workers', '1')}"
