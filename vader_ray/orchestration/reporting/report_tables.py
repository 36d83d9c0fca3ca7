"""Tables and commands of a report: facts, settings and results of the runs, and how to repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vader_ray.orchestration.reporting.past_runs import PastRun, differing, differing_settings
from vader_ray.orchestration.reporting.report_figures import short, value_of
from vader_ray.orchestration.tracking.pages import how_to_open, pages_address, run_page
from vader_ray.uris import redact

MAX_COLUMNS = 5
"""Differing settings with a column in the table."""
MAX_UPRIGHT = 3
"""Runs with a column each; of more runs, each is a row, and in print as many are in one table."""


def facts(runs: Sequence[PastRun]) -> list[tuple[str, str]]:
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


def recipes(runs: Sequence[PastRun]) -> list[dict[str, Any]]:
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


@dataclass(frozen=True)
class Row:
    """One run of the table."""

    name: str
    page: str | None
    """Address of the run's page in MLflow; None for a run without one."""
    status: str
    cells: list[str]
    """Texts below the headings."""


def runs_table(
    runs: Sequence[PastRun], trained: Sequence[str], heldout: Sequence[str], uri: str
) -> dict[str, Any]:
    """Return the headings and rows of the table, and its rows in groups that fit side by side in print."""
    fields = differing(runs)[:MAX_COLUMNS]
    rewards = [*trained, *(f"{name} (held out)" for name in heldout)]
    headings = [*map(short, fields), *rewards, "steps", "reward queries", "denoiser calls",
                "training", "GPU hours", "best adapter", "guard", "MLflow run id"]  # fmt: skip
    rows = []
    for run in runs:
        cells = [
            *(value_of(run, field) or "" for field in fields),
            *(_change(run, name) for name in (*trained, *heldout)),
            str(max(run.history.get("cost/reward_queries", {0: 0.0}))),
            _count(run.last("cost/reward_queries")), _count(run.last("cost/denoiser_calls")),
            _duration(run.last("cost/train_seconds")), f"{run.last('cost/gpu_hours') or 0.0:.2f}",
            _best(run), _fired(run), run.run_id or "–",
        ]  # fmt: skip
        rows.append(Row(run.name, _page(run, uri), run.status, cells))
    return {
        "headings": headings,
        "rows": rows,
        "is_upright": len(rows) <= MAX_UPRIGHT,
        "groups": [rows[start : start + MAX_UPRIGHT] for start in range(0, len(rows), MAX_UPRIGHT)],
    }


def _page(run: PastRun, uri: str) -> str | None:
    address = pages_address(uri)
    return run_page(address, run.experiment_id, run.run_id) if address and run.run_id else None


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
    is_tested = run.last(f"test/reward/{name}") is not None
    room = "test" if is_tested else "eval"
    before = run.last(f"test/base/reward/{name}") if is_tested else run.first(f"eval/reward/{name}")
    after = run.last(f"{room}/reward/{name}")
    if before is None or after is None:
        return "–"
    gain, low, high = (run.last(f"{room}/{kind}/{name}") for kind in ("gain", "gain_low", "gain_high"))
    text = f"{'' if is_tested else 'validation: '}{before:.4g} → {after:.4g}"
    if gain is not None and low is not None and high is not None:
        return f"{text}\n{gain:+.3g} (95 %: {low:+.3g} to {high:+.3g})".replace("-", "−")
    error = run.last(f"{room}/gain_standard_error/{name}")
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


def commands(
    targets: Sequence[str], runs: Sequence[PastRun], uri: str, output: Path
) -> list[tuple[str, str]]:
    """Return the commands that repeat the runs and this page, each with a heading."""
    found = []
    known = list(dict.fromkeys(run.command for run in runs if run.command))
    if known:
        found.append(("As it was started" if len(known) == 1 else "As they were started", "\n".join(known)))
    found.append(("MLflow", how_to_open(uri, runs[0].experiment_id)))
    found.append((f"{runs[0].name} again, from its recipe in MLflow", "\n".join(_repeat(runs[0], uri))))
    quoted = " ".join(shlex.quote(target) for target in targets)
    source = f"--tracking-uri {shlex.quote(redact(uri))}"
    found.append(("This page", f"vader-ray report {quoted} {source} -o {shlex.quote(output.name)}"))
    return found


def _repeat(run: PastRun, uri: str) -> Iterator[str]:
    yield f"export MLFLOW_TRACKING_URI={shlex.quote(redact(uri))}"
    yield f"mlflow artifacts download -r {run.run_id} -a recipe.yaml -d ."
    yield f"vader-ray train recipe.yaml --workers {run.settings.get('runtime.num_workers', '1')}"
