"""What a run displays: lines without a terminal, and in a terminal a live line that fits its columns."""

from __future__ import annotations

import re
import sys

import pytest

from vader_ray.display import Display
from vader_ray.orchestration.runs.progress import Progress
from vader_ray.training.events import StepEvent


def show_run(num_steps: int) -> None:
    with Display(sys.stdout) as display:
        progress = Progress(display, num_steps, eval_metric="eval/reward/aesthetic")
        for step in range(num_steps + 1):
            metrics = {"cost/reward_queries": 2.0 * step} | (
                {"train/reward_mean": 0.5 - step / 100} if step else {}
            )
            evaluated = {"eval/reward/aesthetic": 0.25} if step % 10 == 0 else {}
            progress.update(StepEvent(step, metrics | evaluated))
        display.log("kept in /tmp/[runs]")


def test_without_a_terminal_evaluations_and_the_ends_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    show_run(25)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert [line.split(" · ")[0] for line in lines] == [
        "step 0/25",
        "step 1/25",
        "step 10/25",
        "step 20/25",
        "step 25/25",
        "kept in /tmp/[runs]",
    ]
    parts = lines[4].split(" · ")
    assert parts[1:5] == ["0:00:00 left", "validation aesthetic 0.2500", "reward 0.2500", "best 0.4900"]
    assert parts[5].endswith(" s/step")
    assert parts[6:] == ["50 queries"]
    assert "\x1b" not in printed


@pytest.mark.parametrize(("columns", "has_all"), [(80, False), (120, True)])
def test_a_terminal_gets_a_live_line_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, has_all: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    show_run(1000)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", capsys.readouterr().out)
    (line,) = {line for line in printed.splitlines() if line.startswith("step 990/1000")}
    assert len(line) <= columns
    assert " left · validation aesthetic 0.2500 · reward -9.4000" in line
    assert ("1980 queries" in line) == has_all
    assert "kept in /tmp/[runs]" in printed
