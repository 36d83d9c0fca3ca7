"""Every reward query of a run in Parquet, exactly once, also after ``kill -9`` and resume.

Rows are held in memory until the checkpoint that covers them; `QueryLog.commit` then writes them as one
atomic part file. A run that continues from the checkpoint of a step calls `QueryLog.rewind` with that step
first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vader_ray.files import UNFINISHED, atomic_write
from vader_ray.training.events import RewardQuery

REWARD_PREFIX = "reward/"


class QueryLog:
    """Writer of part files ``steps-FIRST-LAST.parquet``, each with the queries of these steps."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._queries: list[RewardQuery] = []
        self._committed = max((last for _, last, _ in _parts(folder)), default=0)

    def add(self, queries: Iterable[RewardQuery]) -> None:
        """Hold queries until the next commit."""
        self._queries.extend(queries)

    def commit(self, step: int) -> None:
        """Write the queries since the last commit; call it before the checkpoint of `step` is handed over."""
        if self._queries:
            path = self._folder / f"steps-{self._committed + 1:08d}-{step:08d}.parquet"
            with atomic_write(path, durable=True) as unfinished:
                pq.write_table(_table(self._queries), unfinished)
        self._queries.clear()
        self._committed = step

    def rewind(self, step: int) -> None:
        """Delete the queries of later steps than `step`: these steps will be taken, and written, again."""
        self._queries.clear()
        for first, last, path in list(_parts(self._folder)):
            if last > step:
                assert first > step, (
                    f"{path} was committed at step {last}, but the run continues from step {step} inside it"
                )
                path.unlink()
        for leftover in self._folder.glob(f"*{UNFINISHED}"):
            leftover.unlink()
        self._committed = step


def read_queries(folder: Path) -> pa.Table:
    """Return all committed queries in the order of their steps.

    Columns: step, video, prompt, noise_seed, reward/NAME …, objective, grad_steps, wall_seconds.
    """
    tables = [pq.read_table(path) for _, _, path in _parts(folder)]
    return pa.concat_tables(tables or [_table([])], promote_options="default")


def _parts(folder: Path) -> Iterator[tuple[int, int, Path]]:
    for path in sorted(folder.glob("steps-*-*.parquet")):
        _, first, last = path.stem.split("-")
        yield int(first), int(last), path


def _table(queries: list[RewardQuery]) -> pa.Table:
    names = list(dict.fromkeys(name for query in queries for name in query.scores))
    columns = {
        "step": pa.array([query.step for query in queries], pa.int64()),
        "video": pa.array([query.video for query in queries], pa.int64()),
        "prompt": pa.array([query.prompt for query in queries], pa.string()),
        "noise_seed": pa.array([query.noise_seed for query in queries], pa.int64()),
        **{
            f"{REWARD_PREFIX}{name}": pa.array([query.scores.get(name) for query in queries], pa.float64())
            for name in names
        },
        "objective": pa.array([query.objective for query in queries], pa.float64()),
        "grad_steps": pa.array([list(query.grad_steps) for query in queries], pa.list_(pa.int32())),
        "wall_seconds": pa.array([query.wall_seconds for query in queries], pa.float64()),
    }
    return pa.table(columns)
