"""Sender to MLflow: in order, each result once, within seconds, and again after a failure of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from vader_ray.orchestration.tracking.logged_model import send_model
from vader_ray.orchestration.tracking.mlflow_client import (
    MLFLOW_LOGGED_IMAGES,
    Metric,
    MlflowClient,
    connect,
    root_cause,
)
from vader_ray.orchestration.tracking.outbox import Event, Outbox
from vader_ray.uris import Uri

STEP_METRIC = "cost/reward_queries"
"""Metric of every step; its history shows which steps MLflow has."""
RETRY_EVERY_SECONDS = 30.0
"""Time after a failure until the next attempt; results wait meanwhile."""
DELIVERY_SECONDS = 5.0
"""Longest delivery between two steps; the rest of a backlog waits for the next step."""
CLOSING_SECONDS = 60.0
"""Longest delivery of a backlog at the start and at the end of a process."""
METRICS_PER_BATCH = 900
"""Metrics per request; MLflow accepts at most 1000."""


class Sender:
    """Sender of one run's events; those that MLflow does not take wait in the outbox, in order.

    An event may be sent twice: MLflow keeps one of two equal metrics, a file replaces itself, and images are
    looked up first.
    """

    def __init__(self, uri: str, run_id: str, folder: Path, *, on_message: Callable[[str], None]) -> None:
        self._uri, self._run_id, self._folder, self._on_message = Uri(uri), run_id, folder, on_message
        self._outbox = Outbox(folder, uri=uri, run_id=run_id)
        self._client: MlflowClient | None = None
        self._server_step = -1
        self._images: set[tuple[str, int]] = set()
        self._retry_at = 0.0
        self._has_disk_failed = False
        self._lock = threading.Lock()  # of the outbox
        self.last_step = max(
            (event["step"] for event in self._outbox.events if event["kind"] == "metrics"), default=-1
        )
        """Last step that MLflow has or that waits in the outbox; -1 if there is none."""
        self.problem = ""
        """Reason of the last attempt's failure; empty after a success."""

    def post(self, event: Event) -> None:
        """Deliver an event after those that wait, or add it to them."""
        self.add(event)
        self.deliver()

    def add(self, event: Event) -> None:
        """Add an event to those that wait; on return it is on disk. Another thread may deliver meanwhile."""
        with self._lock:
            self._store([*self._outbox.events, event])

    def deliver(self) -> None:
        """Deliver the waiting events, unless MLflow has failed in the last seconds."""
        if self._outbox.events and time.monotonic() >= self._retry_at:
            self.flush(DELIVERY_SECONDS)

    def flush(self, seconds: float) -> None:
        """Deliver the waiting events, for about `seconds` at most."""
        sent = self._send_all(list(self._outbox.events), seconds)
        with self._lock:
            self._store([event for event in self._outbox.events if id(event) not in sent])

    def drop_end(self) -> None:
        """Drop a waiting end of the run, because the run continues."""
        self._outbox.store([event for event in self._outbox.events if event["kind"] != "end"])

    def _store(self, waiting: list[Event]) -> None:
        """Store the waiting events; those that the disk does not take wait in memory."""
        try:
            self._outbox.store(waiting)
        except OSError as error:
            if not self._has_disk_failed:
                self._on_message(f"{self._outbox.path} cannot be written ({error}); results wait in memory")
            self._has_disk_failed = True
        else:
            self._has_disk_failed = False

    def undelivered(self) -> str | None:
        """Return a message about the waiting events and how to deliver them, or None if none wait."""
        if not self._outbox.events:
            return None
        return (
            f"MLflow at {self._uri} did not take {len(self._outbox.events)} results "
            f"({self.problem or 'out of time'}). They wait in {self._outbox.path}; deliver them with: "
            f"vader-ray sync {self._outbox.path.parent}"
        )

    def _send_all(self, events: list[Event], seconds: float) -> set[int]:
        """Send events until a failure or the deadline, metrics before files; return the `id` of the sent."""
        deadline = time.monotonic() + seconds
        sent: set[int] = set()
        try:
            client = self._connected()
            for batch in _batches(events):
                if time.monotonic() > deadline:
                    break
                self._send(client, batch)
                sent.update(id(event) for event in batch)
        except Exception as error:  # noqa: BLE001  any error of MLflow: training continues, and events wait
            self._failed(error)
        else:
            self._succeeded()
        return sent

    def _connected(self) -> MlflowClient:
        """Return the client; the first attempt, and each one after a failure, looks up what MLflow has."""
        if self._client is None:
            client = connect(self._uri)
            history = client.get_metric_history(self._run_id, STEP_METRIC)
            self._images = set(_logged_images(client, self._run_id))
            self._server_step = max((metric.step for metric in history), default=-1)
            self.last_step = max(self.last_step, self._server_step)
            self._client = client
        return self._client

    def _send(self, client: MlflowClient, batch: list[Event]) -> None:
        first, run_id = batch[0], self._run_id
        match first["kind"]:
            case "metrics":
                new = [event for event in batch if event["step"] > self._server_step]
                client.log_batch(run_id, metrics=[metric for event in new for metric in _metrics(event)])
            case "tag":
                client.set_tag(run_id, first["name"], first["value"])
            case "end":
                client.set_terminated(run_id, status=first["status"], end_time=first["time_ms"])
            case "image":
                self._send_image(client, first)
            case "model":
                if self._exists(first):
                    send_model(client, run_id, self._folder, first)
            case "file":
                if self._exists(first):
                    client.log_artifact(run_id, str(self._folder / first["path"]), first["artifact_folder"])

    def _send_image(self, client: MlflowClient, event: Event) -> None:
        logged = (event["key"], event["step"])
        if logged in self._images:
            client.set_tag(self._run_id, MLFLOW_LOGGED_IMAGES, True)  # the last request for an image
        elif self._exists(event):
            with Image.open(self._folder / event["path"]) as image:
                client.log_image(
                    self._run_id, image, key=event["key"], step=event["step"], timestamp=event["time_ms"]
                )
            self._images.add(logged)
        path = self._folder / event["path"]
        path.unlink(missing_ok=True)
        with suppress(OSError):  # other images wait in it
            path.parent.rmdir()

    def _exists(self, event: Event) -> bool:
        if (path := self._folder / event["path"]).exists():
            return True
        self._on_message(f"{path} was deleted before it was delivered; MLflow will not have it")
        return False

    def _failed(self, error: Exception) -> None:
        reason = root_cause(error)
        if not self.problem:
            self._on_message(
                f"MLflow at {self._uri} fails ({reason}); training continues, "
                f"and results wait in {self._outbox.path}"
            )
        self.problem = reason
        self._client = None  # MLflow may have what failed
        self._retry_at = time.monotonic() + RETRY_EVERY_SECONDS

    def _succeeded(self) -> None:
        if self.problem:
            self._on_message(f"MLflow at {self._uri} works again")
        self.problem = ""


def _batches(events: list[Event]) -> Iterator[list[Event]]:
    """Yield the metrics of whole steps together, then tags and the end, then all others one by one."""
    batch: list[Event] = []
    for event in events:
        if event["kind"] != "metrics":
            continue
        if batch and sum(len(member["metrics"]) for member in (*batch, event)) > METRICS_PER_BATCH:
            yield batch
            batch = []
        batch.append(event)
    if batch:
        yield batch
    yield from ([event] for event in events if event["kind"] in ("tag", "end"))
    yield from ([event] for event in events if event["kind"] in ("image", "file", "model"))


def _metrics(event: Event) -> list[Metric]:
    return [Metric(name, value, event["time_ms"], event["step"]) for name, value in event["metrics"].items()]


def _logged_images(client: MlflowClient, run_id: str) -> Iterator[tuple[str, int]]:
    """Yield key and step of every complete image.

    MLflow writes ``KEY+step+N+timestamp+T+UUID+compressed.webp`` last.
    """
    for artifact in client.list_artifacts(run_id, "images"):
        name = artifact.path.removeprefix("images/")
        if name.endswith("+compressed.webp"):
            key, _, step, *_ = name.split("+")
            yield key.replace("~", "/"), int(step)
