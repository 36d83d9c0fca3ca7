"""The wheel: its description on PyPI, its files, and the demo, a sweep and a report from it alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.helpers.paths import REPOSITORY
from tests.helpers.runs import SMALL_RUN

HOME = "https://github.com/OWNER/vader_ray"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that the build leaves nothing in the repository."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("vader_ray", "sweeps", "clusters"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    options = (
        "--no-deps",
        "--no-build-isolation",
        "--no-cache-dir",
        "--quiet",
        "--disable-pip-version-check",
    )
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(built), str(source)]
    environment = os.environ | {"VADER_RAY_REPOSITORY": HOME}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(built.glob("*.whl"))


def test_the_wheel_has_every_file_of_the_package_once(wheel: Path) -> None:
    files = [path for path in (REPOSITORY / "vader_ray").rglob("*") if path.is_file()]
    for link in ("sweeps", "clusters"):
        files += [REPOSITORY / "vader_ray" / path.relative_to(REPOSITORY)
                  for path in (REPOSITORY / link).rglob("*") if path.is_file()]  # fmt: skip
    expected = {str(path.relative_to(REPOSITORY)) for path in files if "__pycache__" not in path.parts}
    names = [name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(expected)


@pytest.mark.slow
@pytest.mark.ray
def test_demo_sweep_and_report_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """In an empty folder and a new virtual environment, which has the dependencies of this one."""
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    ZipFile(wheel).extractall(packages)
    dependencies = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    start = f"#!{venv}/bin/python\nimport sys\nfrom vader_ray.cli import app\nsys.exit(app())\n"
    program = venv / "bin" / "vader-ray"
    program.write_text(start)
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{empty}/mlflow.db",
        "PATH": f"{venv}/bin:{environment['PATH']}",
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert Path(run("python", "-c", "import vader_ray; print(vader_ray.__file__)")).is_relative_to(venv)
    run("vader-ray", "train", "shapes_hps", "--run-name", "demo", *SMALL_RUN)
    swept = run(
        "vader-ray",
        "sweep",
        "hps_k_sweep",
        "--num-trials",
        "1",
        *SMALL_RUN,
        "sampling.num_inference_steps=10",
    )
    assert re.search("^report: .*report.html$", swept, re.MULTILINE)
    run("vader-ray", "report", "demo", "-o", "report.html")
    assert "shapes_hps" in (empty / "report.html").read_text()
    run("vader-ray", "clusters", "init", "aws")
    assert {path.name for path in empty.iterdir()} >= {"runs", "mlflow.db", "report.html", "clusters"}


def test_links_of_the_description_on_pypi_are_absolute_and_their_files_exist(wheel: Path) -> None:
    metadata = next(name for name in ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    read = message_from_bytes(ZipFile(wheel).read(metadata))
    assert read["Project-URL"] == f"Repository, {HOME}"
    description = read.get_payload()
    assert isinstance(description, str)
    links = re.findall(r"\]\(([^)\s]+)\)", description)
    kinds = set()
    for link in links:
        assert link.startswith("https://"), link
        if link.startswith(HOME):
            kind, commit, path = link.removeprefix(f"{HOME}/").partition("#")[0].split("/", 2)
            file = REPOSITORY / path
            assert file.is_dir() if kind == "tree" else file.is_file(), link
            assert commit == "HEAD"
            kinds.add(kind)
    assert kinds == {"blob", "raw", "tree"}


def test_without_an_address_no_link_of_the_description_leads_nowhere() -> None:
    command = [sys.executable, "setup.py", "--quiet", "--long-description"]
    described = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "Prompts that were not trained on, with the same noise before" in described
    assert {link.partition(":")[0] for link in re.findall(r"\]\(([^)\s]+)\)", described)} == {"https"}
