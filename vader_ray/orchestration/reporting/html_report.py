"""HTML report about experiments, sweeps and runs in MLflow: one self-contained page for screen and print."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from vader_ray.errors import UserError
from vader_ray.files import write_text
from vader_ray.orchestration.reporting.past_runs import PastRun, find_runs
from vader_ray.orchestration.tracking.mlflow_client import MlflowException
from vader_ray.orchestration.tracking.server import SQLITE, tracking_uri, unusable
from vader_ray.outputs import check_output
from vader_ray.stages import announce


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
    announce("drawing the figures and writing the page")
    # here, since they take seconds, in which an unknown run would not be refused
    from vader_ray.orchestration.reporting.cross_rewards import LEAD, draw_cross_rewards
    from vader_ray.orchestration.reporting.report_figures import (
        best_groups,
        describe_bands,
        draw_effects,
        draw_metrics,
        draw_rewards,
        draw_trade_offs,
        grouped,
        reward_names,
    )
    from vader_ray.orchestration.reporting.report_tables import commands, facts, recipes, runs_table
    from vader_ray.orchestration.reporting.report_videos import video_rows
    from vader_ray.orchestration.reporting.training_curves import draw_training
    from vader_ray.training import web

    folder = figures_folder(output)
    evaluated = [run for run in runs if run.last("eval/objective") is not None]
    groups, (trained, heldout) = grouped(evaluated), reward_names(evaluated)
    rows, left_out = video_rows(evaluated)
    shown = best_groups(groups)
    bands = describe_bands(shown)
    if len(shown) < len(groups):
        bands += f" Drawn are the {len(shown)} of {len(groups)} settings with the highest final objective."
    sections = [
        ("rewards", "Rewards that were trained",
         f"Means over validation prompts, which were not trained on. {bands}",
         draw_rewards(shown, trained, folder)),
        ("heldout", "Rewards that were only measured", f"A fall here shows reward hacking. {bands}",
         draw_rewards(shown, heldout, folder)),
        ("cross-rewards", "Every reward in every run", LEAD, draw_cross_rewards(shown, folder)),
        ("metrics", "Other measurements", "Measured in every evaluation and never trained.",
         draw_metrics(shown, folder)),
        ("training", "Training, step by step", _learning_rate(evaluated), draw_training(shown, folder)),
        ("trade-offs", "One reward against another",
         "Validation prompts. No other run exceeds a run on the Pareto front in all rewards.",
         draw_trade_offs(groups, folder)),
        ("effects", "Effect of each setting", "One dot per run; a line connects the means of few values.",
         draw_effects(groups, folder)),
    ]  # fmt: skip
    return web.render(
        Path(__file__).with_name("report.html.j2"),
        title=_title(targets, runs),
        when=datetime.now().strftime("%Y-%m-%d %H:%M"),
        facts=facts(runs),
        recipes=recipes(runs),
        pages_are_served_locally=uri.startswith(SQLITE),
        table=runs_table(runs, trained, heldout, uri),
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
        video_rows=rows,
        video_steps=sorted(
            {clip.step for _, cards in rows for card in cards for clip in card.clips if clip.step}
        ),
        left_out=left_out,
        commands=commands(targets, runs, uri, output),
        figures=folder.name,
    )


def _learning_rate(runs: Sequence[PastRun]) -> str:
    """Return a sentence about the learning rate, which is logged only if it changes."""
    if any("train/learning_rate" in run.history for run in runs):
        return "Measured on the training prompts, in every step."
    rates = sorted({run.settings.get("optimizer.learning_rate", "?") for run in runs})
    return f"Measured on the training prompts, in every step. Constant learning rate: {', '.join(rates)}."


def _title(targets: Sequence[str], runs: Sequence[PastRun]) -> str:
    names = [target.rstrip("/").rsplit("/", 1)[-1] for target in targets]
    return ", ".join(names) if len(names) <= 3 else f"{len(runs)} runs"
