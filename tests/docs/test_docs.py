"""The documentation: commands, recipes, code and paths are valid, and the site builds without a warning."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.paths import REPOSITORY
from vader_ray import config as settings
from vader_ray.config import recipe_names

PAGES = [
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "README.md",
]
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
FILE_TYPES = {"ckpt", "pth"}
"""Ends of files whose names look like settings."""
WITH_RECIPE = ("train", "check", "evaluate", "generate")


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """The words of every ``vader-ray`` command in the page's shell blocks, without comments."""
    lines = "\n".join(blocks(page, "sh", "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("vader-ray") + 1 :] for line in words if "vader-ray" in line]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_recipes_and_overrides_of_commands_are_valid(page: Path) -> None:
    for command, *words in commands(page):
        if command in WITH_RECIPE and words and words[0] in recipe_names():
            overrides = [word for word in words[1:] if re.match(r"[a-z_]+[\w.]*=", word)]
            settings.load(words[0], overrides)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_code_compiles_and_yaml_parses(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")
    for code in blocks(page, "yaml"):
        if "--8<--" not in code:
            yaml.safe_load(code)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    roots = "vader_ray|tests|sweeps|clusters|benchmarks|docs|examples"
    paths = re.findall(rf"(?<![\w/.])(?:{roots})/[\w./-]*\w", text)
    missing = [path for path in paths if "NAME" not in path and not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install --group dev)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "api" / "index.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    sections = {
        name: set(field.annotation.model_fields)
        for name, field in settings.ExperimentConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, settings.Settings)
        if name != "algorithm"  # each algorithm has settings of its own
    }
    assert len(sections) > 8
    named = re.findall(r"`([a-z_]+)\.([a-z_]+)(?:=[^`]*)?`", page.read_text(encoding="utf-8"))
    unknown = [
        f"{section}.{name}"
        for section, name in named
        if section in sections and name not in sections[section] | FILE_TYPES
    ]
    assert not unknown
