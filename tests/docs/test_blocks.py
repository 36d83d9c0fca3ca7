"""Every block of code in README.md and docs/ runs, in the order in which they stand on their page.

A block that cannot run here has the line ``<!-- not run: REASON -->`` before it. README.md's run in processes
of their own, as a reader types them; those of the other pages in this process, where runs train without Ray,
each page in a folder with the finished run ``runs/mine``. Runs are shortened by `SMALL`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.docs.test_docs import PAGES
from tests.helpers.hub_server import TOKEN, hub_of_this_process, hub_server
from tests.helpers.paths import REPOSITORY
from tests.helpers.runs import SMALL_RUN, train_here
from vader_ray.cli import app
from vader_ray.config import load
from vader_ray.orchestration.runs.finish import finish_run
from vader_ray.training.media import write_mp4

README = REPOSITORY / "README.md"
SMALL = (*SMALL_RUN, "sampling.num_inference_steps=5", "videos_per_step=4")
SMALL_PYTHON = {
    "num_steps=16": "num_steps=1, expected_metrics={}, "
    'evaluation={"every": 1, "num_videos": 2, "num_test_videos": 2}'
}
"""Replacements in the Python of README.md."""
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A block of shell commands or of Python."""

    language: str
    code: str

    def commands(self) -> list[list[str]]:
        """The words of each shell command."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks_to_run(page: Path) -> list[Block]:
    """The blocks of a page that are not marked."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    wanted = [each for each in found if each["language"] in ("sh", "bash", "python") and not each["reason"]]
    return [Block(each["language"], each["code"]) for each in wanted]


DOCS = [page for page in PAGES if page != README and blocks_to_run(page)]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)  # five runs and sweeps, on a busy machine
def test_the_blocks_of_the_readme_run_in_their_order(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "sweeps", "vader_ray"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    _write_programs(tmp_path / ".venv" / "bin")
    (tmp_path / ".venv" / "installed").touch()  # make does not install again
    with hub_server() as hub:
        environment = os.environ | {
            "PATH": f"{tmp_path}/.venv/bin:{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
            "PYTHONPATH": str(REPOSITORY),
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "huggingface"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        for number, block in enumerate(blocks_to_run(README)):
            command = ["bash", "-euxo", "pipefail", "-c", block.code]
            if block.language == "python":
                code = block.code
                for before, after in SMALL_PYTHON.items():
                    assert before in code
                    code = code.replace(before, after)
                (tmp_path / f"block{number}.py").write_text(code)
                command = ["python", f"block{number}.py"]
            done = subprocess.run(
                command,
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert done.returncode == 0, f"{block.code}\n{done.stdout}"
        assert "adapter_model.safetensors" in hub.repositories["OWNER/NAME"]
    assert json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())["status"] == "completed"
    for name in ("star.mp4", "report.html"):
        assert (tmp_path / name).stat().st_size > 0


def _write_programs(folder: Path) -> None:
    """Write ``vader-ray`` and ``python`` for a page: this environment's, with small sizes for runs."""
    folder.mkdir(parents=True)
    small = shlex.join(SMALL)
    for name, started, pattern, sizes in (
        ("vader-ray", f"{sys.executable} -m vader_ray", "train", small),
        ("python", sys.executable, "sweeps/*", f"--num-trials 1 {small} sampling.num_inference_steps=10"),
    ):
        path = folder / name
        small_call, call = f'exec {started} "$@" {sizes}', f'exec {started} "$@"'
        path.write_text(f'#!/bin/sh\ncase "$1" in {pattern}) {small_call};; *) {call};; esac\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of ``shapes_hps`` and, beside ``runs``, its MLflow database."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        _train(["shapes_hps", "--run-name", "mine"], folder)
    return folder


def _train(words: list[str], folder: Path, name: str = "unnamed") -> None:
    """Train in this process, as ``vader-ray train`` with these words does in a worker of Ray Train."""
    if "--run-name" in words:
        name = words[words.index("--run-name") + 1]
    options = ("--run-name", name, "--workers", "2", "--resume")
    config = load(words[0], [*(word for word in words[1:] if word not in options), *SMALL])
    made, run = train_here(config, folder / "runs", name)
    finish_run(config, made, run)


@pytest.mark.slow
@pytest.mark.ray  # `vader-ray check` starts workers
@pytest.mark.parametrize("page", DOCS, ids=[str(page.relative_to(REPOSITORY)) for page in DOCS])
def test_the_blocks_of_a_page_run_in_their_order(
    page: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--run-name mine" not in page.read_text(encoding="utf-8"):
        shutil.copytree(finished / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished}/mlflow.db")
    _write_pairs(tmp_path)
    with hub_of_this_process(monkeypatch, tmp_path / "cache"):
        for number, block in enumerate(blocks_to_run(page)):
            if block.language == "python":
                exec(compile(block.code, str(page), "exec"), {"__name__": page.stem})  # noqa: S102
                continue
            for line, words in enumerate(block.commands()):
                assert words[0] == "vader-ray", f"mark the block with `{words[0]}`, or run it here"
                _run(words[1:], tmp_path, f"run{number}-{line}")


def _run(words: list[str], folder: Path, name: str) -> None:
    """Run a command in this process; a run without a name gets this one."""
    if words[0] == "train":
        _train(words[1:], folder, name)
        return
    small = ["evaluation.num_videos=2"] if words[0] == "evaluate" else []
    done = CliRunner().invoke(app, [*words, *small])
    assert done.exit_code == 0, f"{words}\n{done.output}"


def _write_pairs(folder: Path) -> None:
    """Write the file of pairs that docs/algorithms.md describes, with its videos."""
    page = (REPOSITORY / "docs" / "algorithms.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"^```json\n(.*?)^```", page, re.M | re.S))
    (folder / "pairs.jsonl").write_text(lines)
    (folder / "videos").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for pair in map(json.loads, lines.splitlines()):
        for number, video in enumerate((pair["winner"], pair["loser"])):
            write_mp4(frames // (number + 1), folder / video, 8.0)
