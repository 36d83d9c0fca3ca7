"""The worker's part of MLflow: log steps, images and files of a run, without ever stopping the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from vader_ray.errors import UserError
from vader_ray.orchestration.tracking.environment import gpu_names
from vader_ray.orchestration.tracking.mlflow_client import start_system_metrics
from vader_ray.orchestration.tracking.outbox import Event, now_ms, path_in_folder
from vader_ray.orchestration.tracking.sender import CLOSING_SECONDS, STEP_METRIC, Sender
from vader_ray.orchestration.tracking.server import SQLITE, database_path


class Tracker:
    """Logger of one MLflow run in the worker of rank 0. Its methods return within seconds, whatever happens
    to MLflow.

    Log a step before its checkpoint is reported: a run that is killed and resumed then has each step exactly
    once.

    Args:
        uri: server or database.
        run_id: run that the driver has opened.
        folder: the run's folder, where results wait that MLflow does not take.
        system_metrics: also log processor, memory, disk, network and GPU use.
        on_message: called with a line when MLflow fails and when it works again.
        submit: called with the function that delivers what waits, to run it now or in another thread; until
            then it waits on disk.

    Raises:
        UserError: the SQLite database is not on this machine, or the folder has results of another run.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        folder: Path,
        *,
        system_metrics: bool = True,
        on_message: Callable[[str], None] = print,
        submit: Callable[[Callable[[], None]], object] = lambda deliver: deliver(),
    ) -> None:
        _check_visible(uri)
        self._submit = submit
        self._uri, self._run_id, self._folder, self._system_metrics = uri, run_id, folder, system_metrics
        self._stop_system_metrics: Callable[[], None] | None = None
        try:
            self._sender = Sender(uri, run_id, folder, on_message=on_message)
        except ValueError as error:
            raise UserError(str(error)) from None
        self._sender.drop_end()
        self._sender.flush(CLOSING_SECONDS)
        self._last_step = self._sender.last_step
        if not self._sender.problem:
            self._restart_monitor()
        if gpus := gpu_names():
            self.log_tag("gpus", ", ".join(gpus))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log all metrics of a step at once, unless an earlier process of this run has logged the step."""
        assert STEP_METRIC in metrics, (
            f"the metrics of step {step} lack {STEP_METRIC}, which marks the steps that MLflow has"
        )
        if step > self._last_step:
            self._last_step = step
            values = {name: float(value) for name, value in metrics.items()}
            self._post({"kind": "metrics", "step": step, "time_ms": now_ms(), "metrics": values})

    def log_test(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the test's metrics beside those of the last step."""
        self._post({"kind": "metrics", "step": step, "time_ms": now_ms(), "metrics": dict(metrics)})

    def log_image(self, key: str, step: int, image: Image.Image) -> None:
        """Log an image of a step.

        MLflow shows the images of one `key` as a card with a slider over the steps.
        """
        path = self._folder / "undelivered" / f"{key.replace('/', '~')}-{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        self._post(
            {
                "kind": "image",
                "key": key,
                "step": step,
                "time_ms": now_ms(),
                "path": path_in_folder(self._folder, path),
            }
        )

    def log_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._post({"kind": "tag", "name": name, "value": value})

    def log_file(self, path: Path, artifact_folder: str = "") -> None:
        """Log a file as an artifact; it may be sent later, so it has to remain."""
        self._post(
            {
                "kind": "file",
                "path": path_in_folder(self._folder, path),
                "artifact_folder": artifact_folder or None,
            }
        )

    def close(self) -> str | None:
        """Deliver the results that wait; return a message about what MLflow did not take, or None."""
        self._sender.flush(CLOSING_SECONDS)
        self._stop_monitor()
        return self._sender.undelivered()

    def _post(self, event: Event) -> None:
        self._sender.add(event)
        self._submit(self._deliver)

    def _deliver(self) -> None:
        was_down = bool(self._sender.problem)
        self._sender.deliver()
        if was_down and not self._sender.problem:
            self._restart_monitor()

    def _restart_monitor(self) -> None:
        """Start MLflow's monitor again: it ends for good when the server fails."""
        self._stop_monitor()
        if self._system_metrics:
            self._stop_system_metrics = start_system_metrics(self._uri, self._run_id)

    def _stop_monitor(self) -> None:
        if self._stop_system_metrics is not None:
            self._stop_system_metrics()
            self._stop_system_metrics = None


def _check_visible(uri: str) -> None:
    if uri.startswith(SQLITE) and not database_path(uri).is_file():
        raise UserError(
            f"tracking.uri: {database_path(uri)} is not on this machine, where rank 0's worker runs; "
            "start `mlflow server` on the machine of the database and set tracking.uri=http://HOST:PORT"
        )
