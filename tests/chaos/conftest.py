"""The table of kills, printed when the campaign has ended."""

from __future__ import annotations

import pytest

from tests.chaos.campaign import RECORD, table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if RECORD:
        terminalreporter.section("kills")
        terminalreporter.write_line(table(RECORD))
