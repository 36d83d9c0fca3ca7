"""A run's summary as HTML, for notebooks."""

from __future__ import annotations

import base64
from html import escape
from math import isfinite

from vader_ray.orchestration.runs.summary import OPTIMISTIC, REWARD, Results, RunSummary


def summary_html(summary: RunSummary) -> str:
    """Return the metrics before and after training as a table, and the sheet of validation videos as an
    image."""
    results = summary.results
    rows = "".join(_row(results, metric) for metric in results.gains)
    title = (
        f"{summary.recipe}: {summary.status}, {summary.steps} steps, "
        f"{summary.reward_queries} reward queries; {results.split} prompts"
    )
    headings = ("reward or metric", "before", "after", "gain (95 % interval)")
    heading = f"<tr>{''.join(f'<th>{each}</th>' for each in headings)}</tr>"
    notes = "".join(f"<p>{escape(alarm)}</p>" for alarm in summary.alarms)
    if results.split == "validation":
        notes += f"<p>{escape(OPTIMISTIC)}</p>"
    return f"<p>{escape(title)}</p><table>{heading}{rows}</table>{notes}{_sheet(summary)}"


def _row(results: Results, metric: str) -> str:
    before, after, gain = results.before[metric], results.after[metric], results.gains[metric]
    interval = f" ({gain.low:+.4f} to {gain.high:+.4f})" if isfinite(gain.low) else ""
    numbers = (f"{before:.4f}", f"{after:.4f}", f"{gain.mean:+.4f}{interval}")
    name = metric.removeprefix(REWARD).removeprefix("eval/")
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"


def _sheet(summary: RunSummary) -> str:
    """Return the image inside the page, so that a saved notebook keeps it."""
    if not summary.before_after.is_file():
        return ""
    encoded = base64.b64encode(summary.before_after.read_bytes()).decode()
    return (
        f'<img alt="videos before and after" style="max-width: 100%" src="data:image/png;base64,{encoded}">'
    )
