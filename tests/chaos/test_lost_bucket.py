"""A bucket that is lost while a run goes on, and comes back: the run pauses, and its copy is whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.campaign import assert_identical
from tests.helpers.mock_aws import mock_aws
from tests.helpers.recipe import tiny_config
from tests.helpers.runs import record, train_here
from vader_ray.orchestration.runs.run_dir import KEPT_BY_RAY
from vader_ray.orchestration.runs.storage import Mirror
from vader_ray.training.events import StepEvent

pytestmark = pytest.mark.chaos
SECONDS = 30
"""Time for which the bucket is lost: more than a step takes on a busy machine."""


@pytest.fixture
def buckets() -> Iterator[dict[str, Any]]:
    """The buckets of the mock, by name; there is one, ``lab``."""
    pytest.importorskip("moto.server", reason="moto is not installed (pip install 'moto[server,ec2,iam,s3]')")
    boto3 = pytest.importorskip("boto3")
    from moto.core import DEFAULT_ACCOUNT_ID  # type: ignore[attr-defined]
    from moto.s3.models import s3_backends

    with mock_aws() as environment:
        boto3.client("s3").create_bucket(
            Bucket="lab", CreateBucketConfiguration={"LocationConstraint": environment["AWS_REGION"]}
        )
        yield s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets


def _losing(buckets: dict[str, Any]) -> Callable[[StepEvent], None]:
    """Take the bucket away after the first step, for a while."""

    def lose_for_a_while(event: StepEvent) -> None:
        if event.step == 1:
            threading.Timer(SECONDS, buckets.__setitem__, ["lab", buckets.pop("lab")]).start()

    return lose_for_a_while


def test_a_bucket_that_is_gone_for_a_while_has_the_whole_run_at_the_end(
    buckets: dict[str, object],
    tiny_pipeline_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(
        tiny_pipeline_folder,
        num_steps=3,
        evaluation={"every": 3, "num_videos": 2, "num_shown": 1},
        checkpoint={"every": 1, "retry_minutes": 2},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db", "system_metrics": False},
    )
    record(config, tmp_path, "straight")
    folder, _ = train_here(config, tmp_path / "runs", "mine", "s3://lab/runs", _losing(buckets))
    printed = capsys.readouterr().out
    assert "did not take the run's files" in printed or "training pauses and tries again" in printed
    assert_identical(folder.path, tmp_path / "runs" / "straight")
    copy = tmp_path / "copy"
    Mirror(copy, "s3://lab/runs/mine", skip=KEPT_BY_RAY).pull()
    files = {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert {Path("state.json"), Path("adapter/adapter_model.safetensors")} <= files.keys()
    assert all((folder.path / name).read_bytes() == content for name, content in files.items())
