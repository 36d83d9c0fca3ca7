"""Parquet of reward queries: what was committed, and only that, each query once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.paths import REPOSITORY
from vader_ray.orchestration.runs.query_log import QueryLog, read_queries
from vader_ray.training.events import RewardQuery


def query(step: int, video: int) -> RewardQuery:
    return RewardQuery(
        step=step,
        video=video,
        prompt=f"prompt {video}",
        noise_seed=2**62 + video,
        scores={"hps": 0.25 + step, "aesthetic": 5.0},
        objective=1.5,
        grad_steps=(23, 24),
        wall_seconds=0.5 * step,
    )


def take_steps(log: QueryLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        log.add([query(step, 2 * step), query(step, 2 * step + 1)])


def steps_in(folder: Path) -> list[int]:
    steps: list[int] = read_queries(folder)["step"].to_pylist()
    return steps


def test_columns_and_values_survive(tmp_path: Path) -> None:
    log = QueryLog(tmp_path)
    take_steps(log, 1, 2)
    log.commit(2)
    table = read_queries(tmp_path)
    assert table.schema == pa.schema(
        {
            "step": pa.int64(),
            "video": pa.int64(),
            "prompt": pa.string(),
            "noise_seed": pa.int64(),
            "reward/hps": pa.float64(),
            "reward/aesthetic": pa.float64(),
            "objective": pa.float64(),
            "grad_steps": pa.list_(pa.int32()),
            "wall_seconds": pa.float64(),
        }
    )
    assert table.to_pylist()[3] == {
        "step": 2,
        "video": 5,
        "prompt": "prompt 5",
        "noise_seed": 2**62 + 5,
        "reward/hps": 2.25,
        "reward/aesthetic": 5.0,
        "objective": 1.5,
        "grad_steps": [23, 24],
        "wall_seconds": 1.0,
    }


def test_a_part_file_names_its_steps(tmp_path: Path) -> None:
    log = QueryLog(tmp_path)
    take_steps(log, 1, 20)
    log.commit(20)
    take_steps(log, 21, 30)
    log.commit(30)
    log.commit(30)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "steps-00000001-00000020.parquet",
        "steps-00000021-00000030.parquet",
    ]


def test_a_resumed_run_has_each_query_once(tmp_path: Path) -> None:
    log = QueryLog(tmp_path)
    take_steps(log, 1, 20)
    log.commit(20)
    take_steps(log, 21, 40)
    log.commit(40)
    (tmp_path / "steps-00000041-00000060.parquet.unfinished").write_bytes(b"torn")

    resumed = QueryLog(tmp_path)  # the checkpoint of step 40 was lost
    resumed.rewind(20)
    take_steps(resumed, 21, 30)
    resumed.rewind(20)  # once more, within the same process
    take_steps(resumed, 21, 50)
    resumed.commit(50)

    assert steps_in(tmp_path) == [step for step in range(1, 51) for _ in range(2)]
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_new_log_continues_after_the_committed_steps(tmp_path: Path) -> None:
    log = QueryLog(tmp_path)
    take_steps(log, 1, 5)
    log.commit(5)
    log = QueryLog(tmp_path)
    take_steps(log, 6, 7)
    log.commit(7)
    assert (tmp_path / "steps-00000006-00000007.parquet").exists()


def test_rewinding_into_a_part_is_refused(tmp_path: Path) -> None:
    log = QueryLog(tmp_path)
    take_steps(log, 1, 5)
    log.commit(5)
    with pytest.raises(AssertionError, match="committed at step 5"):
        log.rewind(3)


def test_an_empty_folder_is_an_empty_table(tmp_path: Path) -> None:
    assert read_queries(tmp_path).num_rows == 0


@pytest.mark.slow
@pytest.mark.parametrize("num_commits", [1, 4])
def test_kill_in_the_middle_leaves_complete_parts(tmp_path: Path, num_commits: int) -> None:
    program = """
        import sys; from pathlib import Path
        sys.path[:0] = {paths!r}
        from tests_queries import take_steps; from vader_ray.orchestration.runs.query_log import QueryLog
        log = QueryLog(Path({folder!r}))
        for step in range(1, 10_000):
            take_steps(log, step, step)
            log.commit(step)
            print(step, flush=True)
    """
    source = textwrap.dedent(program).replace("tests_queries", __name__)
    source = source.format(paths=[str(REPOSITORY), *sys.path], folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        announced = [int(process.stdout.readline()) for _ in range(num_commits)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    steps = steps_in(tmp_path)
    assert steps == [step for step in range(1, steps[-1] + 1) for _ in range(2)]
    assert steps[-1] >= announced[-1]
