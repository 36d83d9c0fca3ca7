"""The campaign of kills: how many of each kind, its table, and what "bit for bit equal" means."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from tests.helpers.runs import adapter_files
from vader_ray.orchestration.runs.query_log import read_queries
from vader_ray.orchestration.tracking.mlflow_client import MlflowClient

T = TypeVar("T")
NUM_KILLS = int(os.environ.get("VADER_RAY_CHAOS_KILLS", "10"))
"""Number of kills of the whole campaign."""
NUM_RAY, NUM_SERVER = round(NUM_KILLS * 0.3), round(NUM_KILLS * 0.1)
"""Number of kills in runs on Ray, and of an MLflow server; all others meet runs without Ray."""
CLOCKS = ("time/", "cost/train_seconds", "cost/wall_seconds", "cost/gpu_hours", "memory/", "system/")
"""Beginnings of the names of metrics that measure the machine."""
NORMS = ("train/gradient_norm/",)
"""The same of metrics whose last bit differs between a reward in the worker and one in an actor. They are
only displayed: what is trained, the adapter, is compared byte by byte."""


@dataclass
class Kill:
    """A session of a run, and the process of it that was killed: a row of the campaign's record."""

    process: str
    killed: bool
    """Whether the process was killed before the session ended by itself."""
    seconds: float
    """Time from the start of the session to the kill."""
    status: int
    """Exit status of the session."""
    last_line: str
    """Last line that the session has printed."""
    tracebacks: int
    """Number of tracebacks in its output."""
    identical: bool = False
    """Whether the run, continued to its end, was equal to the undisturbed one bit for bit."""

    @property
    def has_sentence(self) -> bool:
        """Whether the session's last line is the command's message to the user."""
        return self.last_line.startswith("vader-ray: ")


RECORD: list[Kill] = []
"""Every kill of this session of pytest."""


def draw(chain: str) -> random.Random:
    """Random numbers of a chain; ``VADER_RAY_CHAOS_SEED`` selects other ones."""
    return random.Random(f"{os.environ.get('VADER_RAY_CHAOS_SEED', '0')}/{chain}")


def chains(items: Sequence[T], length: int) -> list[Sequence[T]]:
    """The items in chains of this length; the last one may be shorter."""
    return [items[first : first + length] for first in range(0, len(items), length)]


def add(kills: Iterable[Kill]) -> None:
    """Record kills, also in the JSON file that ``VADER_RAY_CHAOS_TABLE`` names."""
    RECORD.extend(kill for kill in kills if kill.killed)
    if path := os.environ.get("VADER_RAY_CHAOS_TABLE"):
        Path(path).write_text(json.dumps([asdict(kill) for kill in RECORD], indent=1) + "\n")


def table(kills: Sequence[Kill]) -> str:
    """The table of `docs/reliability.md`: one row for each kind of process."""
    lines = [
        "| killed process | kills | session went on | session ended with its sentence | session ended "
        "without it | session was killed too | tracebacks | runs identical bit for bit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [*dict.fromkeys(kill.process for kill in kills), "total"]:
        rows = [kill for kill in kills if name in (kill.process, "total")]
        counts = (
            len(rows),
            sum(kill.status == 0 for kill in rows),
            sum(kill.status > 0 and kill.has_sentence for kill in rows),
            sum(kill.status > 0 and not kill.has_sentence for kill in rows),
            sum(kill.status < 0 for kill in rows),
            sum(kill.tracebacks for kill in rows),
            sum(kill.identical for kill in rows),
        )
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def assert_identical(run: Path, straight: Path) -> None:
    """Compare a run with the undisturbed one: adapters, reward queries, every value of MLflow once."""
    assert adapter_files(run) == adapter_files(straight)
    queries, undisturbed = (read_queries(each / "queries").drop(["wall_seconds"]) for each in (run, straight))
    assert queries.equals(undisturbed)
    assert _videos(run) == _videos(straight)
    assert not (run / "unrecorded").exists()
    found, expected = tracked(run), tracked(straight)
    differences = {
        name: (found.get(name), expected.get(name))
        for name in found.keys() | expected.keys()
        if found.get(name) != expected.get(name)
    }
    assert not differences, f"MLflow has other values of {run.name} than of {straight.name}: {differences}"


def _videos(run: Path) -> dict[str, bytes]:
    """The mp4 files of a run's evaluations."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.glob("videos/*/*.mp4")}


def tracked(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every metric that MLflow has of a run; images count as a metric."""
    known = json.loads((run / "run.json").read_text())
    client, run_id = MlflowClient(known["tracking_uri"]), known["mlflow_run_id"]
    names = sorted(
        name for name in client.get_run(run_id).data.metrics if not name.startswith(CLOCKS + NORMS)
    )
    found = {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in names
    }
    images = [artifact.path.split("+") for artifact in client.list_artifacts(run_id, "images")]
    steps = sorted(int(name[2]) for name in images if name[-1] == "compressed.webp")
    return {**found, "number of images": [(step, 1.0) for step in steps]}


if __name__ == "__main__":
    print(table([Kill(**row) for path in sys.argv[1:] for row in json.loads(Path(path).read_text())]))
