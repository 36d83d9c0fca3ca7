"""The record of what runs outlives its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vader_ray.errors import RunFailed, explain_plugin_errors
from vader_ray.running import read_running, record_running, running


def test_a_process_that_ends_in_a_reward_leaves_its_name(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from vader_ray.errors import explain_plugin_errors
from vader_ray.running import record_running
record_running(Path(sys.argv[1]))
with explain_plugin_errors("metric 'motion'"):
    pass
with explain_plugin_errors("reward 'é'"):
    os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "record")])
    assert done.returncode == 7
    assert read_running(tmp_path / "record") == "reward 'é'"


def test_nothing_is_recorded_outside_of_rewards(tmp_path: Path) -> None:
    assert read_running(tmp_path / "none") == ""
    for name in ("first", "second"):  # runs of one process, one after the other
        record_running(tmp_path / name)
        with explain_plugin_errors(f"reward {name!r}"):
            assert read_running(tmp_path / name) == f"reward {name!r}"
        assert read_running(tmp_path / name) == ""
        with pytest.raises(RunFailed), explain_plugin_errors("another"):
            raise IndexError
        assert read_running(tmp_path / name) == ""
    with running("é" * 1000):
        assert read_running(tmp_path / "second") == "é" * 200
    assert read_running(tmp_path / "first") == ""
