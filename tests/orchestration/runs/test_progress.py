"""What is printed without a terminal, and that a terminal gets one line that changes."""

from __future__ import annotations

import io

from rich.console import Console

from vader_ray.orchestration.runs.progress import Progress
from vader_ray.training.events import StepEvent


def show(console: Console, num_steps: int) -> None:
    with Progress(num_steps, eval_metric="eval/reward/hps", console=console) as progress:
        for step in range(num_steps + 1):
            metrics = {"cost/reward_queries": 2.0 * step} | (
                {"train/reward_mean": 0.5 - step / 100} if step else {}
            )
            progress.update(StepEvent(step, metrics | ({"eval/reward/hps": 0.25} if step % 10 == 0 else {})))
        progress.line("kept in /tmp/[runs]")


def test_without_a_terminal_evaluations_and_the_ends_are_lines() -> None:
    out = io.StringIO()
    show(Console(file=out, force_terminal=False, width=60), 25)
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "step 0/25",
        "step 10/25",
        "step 20/25",
        "step 25/25",
        "kept in /tmp/[runs]",
    ]
    assert "reward 0.2500 (best 0.4900) · held-out 0.2500 · " in lines[3]
    assert lines[3].endswith(" s/step · 0:00:00 left · 50 queries")


def test_a_terminal_gets_a_live_line() -> None:
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, width=150), 25)
    assert "step 25/25 ━━━━━━━━━━ reward 0.2500" in out.getvalue()
    assert "kept in /tmp/[runs]" in out.getvalue()
