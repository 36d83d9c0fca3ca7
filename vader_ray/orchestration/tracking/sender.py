"""Sender to MLflow that outlives the server: in order, each thing once, and never longer than some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from vader_ray.orchestration.tracking.mlflow_client import Metric, MlflowClient, root_cause
from vader_ray.orchestration.tracking.outbox import Event, Outbox

STEP_METRIC = "cost/reward_queries"
"""Logged with every step, so that its history tells which steps MLflow has."""
RETRY_EVERY_SECONDS = 30.0
DELIVERY_SECONDS = 5.0
"""A backlog is delivered in pieces of about this long, between steps."""
METRICS_PER_BATCH = 900


class Sender:
    """Sends the events of one run to MLflow; those that it does not take wait in the outbox, in order.

    Sending twice is harmless: MLflow keeps one of two equal metrics, files overwrite themselves, images are looked up.
    """

    def __init__(self, uri: str, run_id: str, folder: Path, *, tell: Callable[[str], None]) -> None:
        self._uri, self._run_id, self._folder, self._tell = uri, run_id, folder, tell
        self._outbox = Outbox(folder, uri=uri, run_id=run_id)
        self._client: MlflowClient | None = None
        self._server_step = -1
        self._images: set[tuple[str, int]] = set()
        self._retry_at = 0.0
        self.last_step = max(
            (event["step"] for event in self._outbox.events if event["kind"] == "metrics"), default=-1
        )
        """The last step of earlier processes, as far as outbox and MLflow have told."""
        self.problem = ""
        """Why MLflow did not take something at the last attempt; empty when it took all."""

    def post(self, event: Event) -> None:
        """Deliver an event after those that wait, or let it wait with them."""
        waiting = [*self._outbox.events, event]
        if time.monotonic() >= self._retry_at:
            waiting = self._send_all(waiting, DELIVERY_SECONDS)
        self._outbox.store(waiting)

    def flush(self, seconds: float) -> None:
        """Deliver what waits, now, for about so long."""
        self._outbox.store(self._send_all(self._outbox.events, seconds))

    def forget_end(self) -> None:
        """A run that goes on has not ended."""
        self._outbox.store([event for event in self._outbox.events if event["kind"] != "end"])

    def left(self) -> str | None:
        """A line about what still waits, and how to deliver it."""
        if not self._outbox.events:
            return None
        return (
            f"MLflow at {self._uri} did not take {len(self._outbox.events)} results ({self.problem or 'out of time'}). "
            f"They wait in {self._outbox.path}; deliver them with: "
            f"vader-ray sync {self._outbox.path.parent}"
        )

    def _send_all(self, events: list[Event], seconds: float) -> list[Event]:
        """What is left of the events after so long or a failure; metrics go first, so that no file holds them up."""
        deadline = time.monotonic() + seconds
        sent: set[int] = set()
        try:
            client = self._connected()
            for batch in _batches(events):
                if time.monotonic() > deadline:
                    break
                self._send(client, batch)
                sent.update(id(event) for event in batch)
        except (
            Exception
        ) as error:  # whatever a server, a database or a store raises: training goes on, and nothing is lost
            self._failed(error)
        else:
            self._succeeded()
        return [event for event in events if id(event) not in sent]

    def _connected(self) -> MlflowClient:
        """The client; the first time that MLflow answers, what it already has is looked up."""
        if self._client is None:
            client = MlflowClient(tracking_uri=self._uri)
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
            case "file":
                if self._exists(first):
                    client.log_artifact(run_id, str(self._folder / first["path"]), first["artifact_folder"])

    def _send_image(self, client: MlflowClient, event: Event) -> None:
        shown = (event["key"], event["step"])
        if shown not in self._images and self._exists(event):
            with Image.open(self._folder / event["path"]) as image:
                client.log_image(
                    self._run_id, image, key=event["key"], step=event["step"], timestamp=event["time_ms"]
                )
            self._images.add(shown)
        path = self._folder / event["path"]
        path.unlink(missing_ok=True)
        with suppress(OSError):  # other images wait there
            path.parent.rmdir()

    def _exists(self, event: Event) -> bool:
        if (path := self._folder / event["path"]).exists():
            return True
        self._tell(f"{path} was deleted before MLflow could take it; it will be missing there")
        return False

    def _failed(self, error: Exception) -> None:
        reason = root_cause(error)
        if not self.problem:
            self._tell(
                f"MLflow at {self._uri} fails ({reason}); training goes on and results wait in {self._outbox.path}"
            )
        self.problem = reason
        self._retry_at = time.monotonic() + RETRY_EVERY_SECONDS

    def _succeeded(self) -> None:
        if self.problem:
            self._tell(f"MLflow at {self._uri} answers again")
        self.problem = ""


def _batches(events: list[Event]) -> Iterator[list[Event]]:
    """Metrics of whole steps together, then everything else one by one."""
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
    yield from ([event] for event in events if event["kind"] in ("image", "file"))


def _metrics(event: Event) -> list[Metric]:
    return [Metric(name, value, event["time_ms"], event["step"]) for name, value in event["metrics"].items()]


def _logged_images(client: MlflowClient, run_id: str) -> Iterator[tuple[str, int]]:
    """Key and step of every image that is complete; MLflow writes ``KEY+step+N+timestamp+T+UUID+compressed.webp`` last."""
    for artifact in client.list_artifacts(run_id, "images"):
        name = artifact.path.removeprefix("images/")
        if name.endswith("+compressed.webp"):
            key, _, step, *_ = name.split("+")
            yield key.replace("~", "/"), int(step)
