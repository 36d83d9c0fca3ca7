"""What a benchmark measured, in the marked part of a page."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from benchmarks.pages import check_page, figures_folder, show, what_was_measured
from tests.helpers.paths import REPOSITORY

BEGIN, END = "<!-- benchmarks.tiny begins -->", "<!-- benchmarks.tiny ends -->"
TABLE = [["name", "gain"], ["`first`", "+1.0"]]


def test_only_the_marked_part_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n\n{BEGIN}\nold\n{END}\n\nbelow\n")
    figure = figures_folder(page, "tiny", Path("unused")) / "all_gains.png"
    for _ in range(2):
        show("tiny", [TABLE, TABLE], [figure], page, "Two runs.")
    table = "| name | gain |\n| --- | --- |\n| `first` | +1.0 |"
    link = "![all_gains](page/tiny/all_gains.png)"
    part = "\n\n".join((BEGIN, "Two runs.", table, table, link, END))
    assert page.read_text() == f"above\n\n{part}\n\nbelow\n"


def test_without_a_page_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show("tiny", [TABLE], [], None, "Two runs.")
    assert capsys.readouterr().out == "| name | gain |\n| --- | --- |\n| `first` | +1.0 |\n\n"


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(typer.BadParameter, match=r"benchmarks\.tiny begins"):
        show("tiny", [TABLE], [], page, "Two runs.")
    assert page.read_text() == "text"


def test_a_page_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="there is no page"):
        check_page(tmp_path / "absent.md", "tiny")


@pytest.mark.parametrize(
    "name", ["results", "few_steps", "truncation_depth", "cross_rewards", "resolution", "memory_table",
             "learning_rates"]
)  # fmt: skip
def test_the_page_of_results_has_the_part_of_each_comparison(name: str) -> None:
    check_page(REPOSITORY / "docs" / "results.md", name)


def test_readme_and_data_efficiency_have_their_parts() -> None:
    check_page(REPOSITORY / "README.md", "results")
    check_page(REPOSITORY / "docs" / "data_efficiency.md", "data_efficiency")


def test_the_page_of_a_benchmark_has_its_figures_in_one_folder() -> None:
    assert figures_folder(Path("docs/tiny.md"), "tiny", Path("out")) == Path("docs/tiny")
    assert figures_folder(Path("docs/results.md"), "tiny", Path("out")) == Path("docs/results/tiny")
    assert figures_folder(None, "tiny", Path("out")) == Path("out")


def test_runs_seeds_and_hours_are_counted() -> None:
    rows = [{"job": {"seed": seed}, "cpu_seconds": 1800.0, "models": "abc"} for seed in (0, 0, 1)]
    assert what_was_measured(rows) == "3 runs (2 seeds) took 1.5 CPU hours, with the models abc."
