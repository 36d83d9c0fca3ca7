"""What a sweep displays of its trials."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console, RenderableType

from vader_ray.display import Display
from vader_ray.orchestration.sweeps.trial_progress import TrialProgress


def show_sweep() -> RenderableType:
    with Display(sys.stdout) as display:
        progress = TrialProgress(display, num_trials=3, num_steps=4, metric="eval/reward/aesthetic")
        for trial in ("K=1", "K=2"):
            progress.started(trial)
        progress.receive("K=1", "stage", ("evaluating the base model", 1, 4))
        for step, value in ((0, 4.0), (1, None), (2, 4.5), (3, None), (4, 4.25)):
            progress.receive("K=1", "step", (step, value))
        progress.ended("K=1", "ended")
        progress.receive("K=2", "step", (2, None))
        progress.ended("K=2", "failed: no such frame")
        return display.__rich__()


def test_a_log_has_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    show_sweep()
    printed = capsys.readouterr().out
    lines = [line.split(" · ")[:2] for line in printed.splitlines()]
    assert lines == [
        ["K=1: its process imports PyTorch and diffusers", "0 of 3 trials over"],
        ["K=2: its process imports PyTorch and diffusers", "0 of 3 trials over"],
        ["K=1: step 0/4, validation aesthetic 4.0000 (best 4.0000)", "0 of 3 trials over"],
        ["K=1: step 2/4, validation aesthetic 4.5000 (best 4.5000)", "0 of 3 trials over"],
        ["K=1: step 4/4, validation aesthetic 4.2500 (best 4.5000)", "0 of 3 trials over"],
        ["K=1: ended", "1 of 3 trials over"],
        ["K=2: failed: no such frame", "2 of 3 trials over"],
    ]
    assert "\x1b" not in printed


def test_a_terminal_has_a_table_with_the_best_values_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    shown = show_sweep()
    capsys.readouterr()
    Console(width=80, no_color=True, force_terminal=False).print(shown)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    assert rows[0] == ["trial", "step", "validation", "aesthetic", "best"]
    assert rows[1] == ["K=1", "4/4", "4.2500", "4.5000", "ended"]
    assert rows[2][:3] == ["K=2", "2/4", "failed:"]
    assert " ".join(rows[3]).startswith("2 of 3 trials over · 0:00:0")
    assert max(len(line) for line in lines) <= 80


def test_the_best_value_may_be_zero(capsys: pytest.CaptureFixture[str]) -> None:
    """Rewards that are log-probabilities end at 0."""
    with Display(sys.stdout) as display:
        progress = TrialProgress(display, num_trials=1, num_steps=2, metric="eval/reward/detection")
        progress.receive("K=1", "step", (1, 0.0))
        progress.receive("K=1", "step", (2, -1.0))
    assert "step 2/2, validation detection -1.0000 (best 0.0000)" in capsys.readouterr().out
