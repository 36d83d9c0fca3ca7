"""Scratch folders of killed processes are deleted by the next one of the same user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import REPOSITORY
from vader_ray.files import scratch_folder

HOLD = """
import sys
from vader_ray.files import scratch_folder
with scratch_folder() as folder:
    (folder / "checkpoint").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


def _start(environment: dict[str, str]) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_scratch_of_a_killed_process_is_deleted_and_that_of_a_running_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    running, kept = _start(environment)
    killed, left = _start(environment)
    killed.kill()
    killed.communicate()
    other = tmp_path / "vader_ray_scratch_of_nobody"
    other.mkdir()
    assert left.exists()
    with scratch_folder() as mine:
        assert mine.is_dir()
        assert not left.exists()
        assert kept.exists()
        assert other.exists()
    running.communicate("")
    assert not kept.exists()
    assert sorted(tmp_path.iterdir()) == [other]
