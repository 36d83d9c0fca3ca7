"""A run's summary as HTML, for notebooks."""

from __future__ import annotations

import base64
from html import escape

from vader_ray.orchestration.runs.summary import RunSummary


def summary_html(summary: RunSummary) -> str:
    """Return the metrics before and after training as a table, and the sheet of held-out videos as an
    image."""
    rows = "".join(_row(summary, name) for name in summary.gains)
    title = (
        f"{summary.recipe}: {summary.status}, {summary.steps} steps, {summary.reward_queries} reward queries"
    )
    heading = "<tr><th>reward</th><th>before</th><th>after</th><th>gain ± standard error</th></tr>"
    alarms = "".join(f"<p>{escape(alarm)}</p>" for alarm in summary.alarms)
    return f"<p>{escape(title)}</p><table>{heading}{rows}</table>{alarms}{_sheet(summary)}"


def _row(summary: RunSummary, name: str) -> str:
    metric = f"eval/{name}" if name == "objective" else f"eval/reward/{name}"
    before, after, gain = summary.metrics_before[metric], summary.metrics[metric], summary.gains[name]
    numbers = (f"{before:.4f}", f"{after:.4f}", f"{gain.mean:+.4f} ± {gain.standard_error:.4f}")
    return f"<tr><td>{escape(name)}</td>{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"


def _sheet(summary: RunSummary) -> str:
    """Return the image inside the page, so that a saved notebook keeps it."""
    if not summary.before_after.is_file():
        return ""
    encoded = base64.b64encode(summary.before_after.read_bytes()).decode()
    return (
        f'<img alt="videos before and after" style="max-width: 100%" src="data:image/png;base64,{encoded}">'
    )
