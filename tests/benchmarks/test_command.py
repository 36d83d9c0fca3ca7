"""The command of a benchmark hands on what the user asked for."""

from __future__ import annotations

import sys
import time
from math import inf
from pathlib import Path

import pytest

from benchmarks.command import Options, run_command


def options_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Options:
    asked: list[Options] = []

    def measure(options: Options) -> None:
        """Measure nothing."""
        asked.append(options)

    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    with pytest.raises(SystemExit) as ended:
        run_command("tiny", measure, seeds=3)
    assert ended.value.code == 0
    (found,) = asked
    return found


def test_without_options_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = options_of([], monkeypatch)
    assert found == Options(Path("runs/tiny"), 3, inf, processes=2, short=False, page=None)


def test_a_time_limit_is_in_minutes_and_a_table_starts_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = options_of(["--time-limit", "10"], monkeypatch)
    assert limited.deadline == pytest.approx(time.monotonic() + 600, abs=60)
    page = tmp_path / "tiny.md"
    page.write_text("<!-- benchmarks.tiny begins --><!-- benchmarks.tiny ends -->")
    shown = options_of(["--table", "--page", str(page), "--time-limit", "10"], monkeypatch)
    assert (shown.deadline, shown.page) == (0.0, page)


def test_the_help_is_that_of_the_benchmark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(options: Options) -> None:
        """Measure the shapes."""

    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit):
        run_command("tiny", measure)
    assert "Measure the shapes." in capsys.readouterr().out
