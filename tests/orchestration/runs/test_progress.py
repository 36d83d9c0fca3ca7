"""What is printed without a terminal, and that a terminal gets one line that changes."""

from __future__ import annotations

import pytest

from vader_ray.orchestration.runs.progress import Progress
from vader_ray.training.events import StepEvent


def display(num_steps: int) -> None:
    with Progress(num_steps, eval_metric="eval/reward/hps") as progress:
        for step in range(num_steps + 1):
            metrics = {"cost/reward_queries": 2.0 * step} | (
                {"train/reward_mean": 0.5 - step / 100} if step else {}
            )
            progress.update(StepEvent(step, metrics | ({"eval/reward/hps": 0.25} if step % 10 == 0 else {})))
        progress.log("kept in /tmp/[runs]")


def test_without_a_terminal_evaluations_and_the_ends_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display(25)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "step 0/25",
        "step 10/25",
        "step 20/25",
        "step 25/25",
        "kept in /tmp/[runs]",
    ]
    assert "reward 0.2500 (best 0.4900) · validation 0.2500 · " in lines[3]
    assert lines[3].endswith(" s/step · 0:00:00 left · 50 queries")


def test_a_terminal_gets_a_live_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    display(25)
    printed = capsys.readouterr().out
    assert "step 25/25 ━━━━━━━━━━ reward 0.2500" in printed
    assert "kept in /tmp/[runs]" in printed
