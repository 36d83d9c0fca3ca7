"""Stages of a command: lines without a terminal, no silence, and no framework before the first of them."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vader_ray import display
from vader_ray.cli.sweeps import SCRIPTS
from vader_ray.display import Display, Part, display_stages, fit
from vader_ray.stages import Stage, announce

FIRST_LINE = """
import sys
from vader_ray.cli import app

class Watched:
    def __init__(self, stream):
        self.stream, self.seen = stream, False
    def write(self, text):
        if not self.seen and text.strip():
            self.seen = True
            heavy = {"torch", "ray", "mlflow", "diffusers", "transformers", "pandas"} & sys.modules.keys()
            self.stream.write(f"{text.strip()} | imported: {' '.join(sorted(heavy))}\\n")
            raise SystemExit
        return len(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout, sys.stderr = Watched(sys.__stdout__), Watched(sys.__stdout__)
app(sys.argv[1:], prog_name="vader-ray")
"""
"""Runs a command up to its first line, and names the frameworks that are imported by then."""

COMMANDS = {
    "train shapes_hps": "train shapes_hps: checking the recipe",
    "check shapes_hps": "check shapes_hps: checking the recipe",
    "check shapes_hps --devices cpu": "check shapes_hps: checking the recipe",
    "evaluate shapes_hps": "evaluate shapes_hps: checking the recipe",
    "generate shapes_hps star": "generate with shapes_hps: checking the recipe",
    "fetch shapes_hps": "fetch shapes_hps: checking the recipe",
    "report mine": "report on mine: looking them up in MLflow",
    "init mine.yaml --model wan_1_3b --reward hps": "init mine.yaml: checking the recipe",
    "export mine -o out": "export mine: importing diffusers",
    "push mine me/mine": "push mine to me/mine",
    "mix 1=mine -o out": "mix 1 adapters",
    "sync mine": "sync mine: sending to MLflow what waits there",
    "pools": "connecting to the Ray cluster",
    "sweep hps_k_sweep": f"sweep hps_k_sweep: starting {SCRIPTS / 'hps_k_sweep.py'}",
    "watch-notices aws": "watching for notices of aws every 5 s, until this command is stopped",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_announces_itself_before_it_imports_a_framework(command: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LINE, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[0] == f"{COMMANDS[command]} | imported: ", done.stderr


def test_stages_are_lines_and_a_long_one_repeats_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_SECONDS", 1.0)
    printed = io.StringIO()
    with display_stages(printed, "train mine: checking the recipe"):
        announce("loading the model")
        announce("evaluating the base model", 0, 30)
        announce("evaluating the base model", 1, 30)
        time.sleep(1.8)
    lines = printed.getvalue().splitlines()
    assert lines[:3] == [
        "train mine: checking the recipe",
        "loading the model",
        "evaluating the base model 0/30",
    ]
    assert lines[3].startswith("evaluating the base model 1/30 · 0:00:0")
    assert "\x1b" not in printed.getvalue()


def test_a_log_gets_the_latest_state_of_a_run_when_a_line_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LINE_EVERY_SECONDS", 1.0)
    printed = io.StringIO()
    with display_stages(printed, "first") as shown:
        shown.state("step 1/9", "step 2 of 9")
        shown.state("step 2/9", "step 3 of 9")
        time.sleep(1.8)
        assert printed.getvalue().splitlines() == ["first", "step 2/9"]
        time.sleep(1.2)
    assert printed.getvalue().splitlines()[2].startswith("step 3 of 9 · 0:00:0")


def test_nothing_is_displayed_without_a_display(capsys: pytest.CaptureFixture[str]) -> None:
    announce("loading the model")
    assert capsys.readouterr() == ("", "")


def test_an_inner_display_is_the_outer_one() -> None:
    printed = io.StringIO()
    with display_stages(printed, "outer") as outer, display_stages(sys.stdout, "inner") as inner:
        assert inner is outer
    assert printed.getvalue().splitlines() == ["outer", "inner"]


def test_a_terminal_keeps_the_lines_of_stages_that_took_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "_LEAST_SHOWN_SECONDS", 0.2)
    with Display(sys.stdout) as shown:
        shown.stage(Stage("short"))
        shown.stage(Stage("long"))
        time.sleep(0.3)
    kept = [line for line in capsys.readouterr().out.splitlines() if "long · 0 s" in line]
    assert len(kept) == 1


def test_a_narrow_line_leaves_out_what_matters_least() -> None:
    parts = [Part("step 1/9", 3), Part("bar", 1), Part("0:00:09 left", 2)]
    assert fit(parts, 80) == "step 1/9 · bar · 0:00:09 left"
    assert fit(parts, 24) == "step 1/9 · 0:00:09 left"
    assert fit(parts, 10) == "step 1/9"
