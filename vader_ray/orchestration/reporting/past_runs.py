"""Past runs, read from MLflow alone: settings, metrics of every step, tags and videos."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vader_ray.config.yaml_text import parse_yaml
from vader_ray.errors import UserError
from vader_ray.orchestration.selection import INTERPOLATED
from vader_ray.orchestration.tracking.address import COMMAND_TAG, LISTING, UNITS_TAG
from vader_ray.orchestration.tracking.mlflow_client import MlflowClient, MlflowException, connect
from vader_ray.orchestration.tracking.server import SQLITE, check_server, database_path, unusable

_WITHOUT_EFFECT = (
    "name",
    "runtime.",
    "tracking.",
    "checkpoint.",
    "expected_metrics",
    "evaluation.num_shown",
    "evaluation.frames_per",
)
"""Prefixes of the settings that have no effect on the result of a run."""
_ENDED = {
    "FINISHED": "completed",
    "FAILED": "failed",
    "KILLED": "interrupted",
    "RUNNING": "unfinished",
    "SCHEDULED": "unfinished",
}


class MetricHistory(Mapping[str, Mapping[int, float]]):
    """Value of each metric of a run at each step, read from MLflow when it is first used."""

    def __init__(self, client: MlflowClient, run_id: str, names: Iterable[str]) -> None:
        self._client, self._run_id = client, run_id
        self._known = dict[str, dict[int, float] | None].fromkeys(names)

    def __getitem__(self, name: str) -> Mapping[int, float]:
        points = self._known[name]
        if points is None:
            found = self._client.get_metric_history(self._run_id, name)
            points = self._known[name] = {point.step: point.value for point in found}
        return points

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True)
class PastVideo:
    """One stored held-out video of a step."""

    mp4: bytes
    scores: dict[str, float]
    """Value of each reward; empty without a listing."""
    num_frames: int | None
    """Frames of the clip, which may be in the file several times in a row; None without a listing."""


@dataclass(frozen=True)
class PastRun:
    """One run of a recipe."""

    client: MlflowClient
    """Client of the server or database that has the run."""
    run_id: str
    """MLflow's id of the run; empty for a trial that was refused before it had a run."""
    experiment_id: str
    """MLflow's id of the run's experiment."""
    name: str
    """Name of the run."""
    status: str
    """``completed``, ``stopped``, ``failed``, ``interrupted``, or ``unfinished`` for a run that is running or
    was lost."""
    started_ms: int
    """Start in milliseconds since 1970."""
    settings: dict[str, str]
    """Value of each dotted field, as logged."""
    tags: dict[str, str]
    """MLflow's tags of the run."""
    history: Mapping[str, Mapping[int, float]]
    """Value of each metric at each step."""
    latest: Mapping[str, float]
    """Last value of each metric."""

    @property
    def recipe_name(self) -> str:
        """Name of the recipe."""
        return self.tags.get("recipe", "")

    @cached_property
    def units(self) -> dict[str, str]:
        """Unit of each reward and metric by its logged name; empty if the run did not log them."""
        units = json.loads(self.tags.get(UNITS_TAG, "{}"))
        return units if isinstance(units, dict) else {}

    @property
    def command(self) -> str:
        """Command that started the run; empty if it is not known."""
        return self.tags.get(COMMAND_TAG, "")

    @property
    def rewards(self) -> list[str]:
        """Names of the trained rewards, in the recipe's order."""
        return _reward_names(self.settings, "rewards")

    @property
    def heldout(self) -> list[str]:
        """Names of the held-out rewards, which are measured but not trained."""
        return _reward_names(self.settings, "eval_rewards")

    @property
    def swept(self) -> dict[str, str]:
        """Value of each swept name, if the run is a trial of a sweep."""
        parts = set(self.tags.get("trial", "").split(","))
        return {name: value for name, value in self.tags.items() if f"{name}={value}" in parts}

    @property
    def is_soup(self) -> bool:
        """Whether the run evaluates interpolated adapters of other trials and trained nothing."""
        return INTERPOLATED in self.swept

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe; empty if the run has none."""
        with tempfile.TemporaryDirectory() as folder:
            path = self._download("recipe.yaml", folder)
            document = parse_yaml(path.read_text(encoding="utf-8")) if path else None
        return document if isinstance(document, dict) else {}

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric."""
        return self.latest.get(metric)

    def best(self, metric: str) -> float | None:
        """Return the value of a metric with the best adapter."""
        step = self.last("eval/best_step")
        return None if step is None else self.history.get(metric, {}).get(int(step))

    @property
    def stopped_by_guard(self) -> bool:
        """Whether the guard ended the run."""
        return self.settings.get("guard.action") == "stop" and bool(self.last("guard/fired"))

    def first(self, metric: str) -> float | None:
        """Return the value of a metric before training."""
        return self.history.get(metric, {}).get(0)

    def video_steps(self) -> list[int]:
        """List the steps with stored held-out videos."""
        names = [
            item.path.rsplit("-", 1)[-1]
            for item in self.client.list_artifacts(self.run_id, "videos")
            if item.is_dir
        ]
        return sorted(int(name) for name in names if name.isdigit())

    def videos(self, step: int, most: int) -> list[PastVideo]:
        """Return the first videos of a step, `most` at most, in the order of the held-out prompts."""
        artifacts = f"videos/step-{step:06d}"
        paths = sorted(item.path for item in self.client.list_artifacts(self.run_id, artifacts))
        with tempfile.TemporaryDirectory() as folder:

            def read(path: str) -> bytes:
                return Path(self.client.download_artifacts(self.run_id, path, folder)).read_bytes()

            listing = f"{artifacts}/{LISTING}"
            described = {each["file"]: each for each in json.loads(read(listing))} if listing in paths else {}
            mp4s = [path for path in paths if path.endswith(".mp4")][:most]
            return [_video(read(path), described.get(path.rpartition("/")[2], {})) for path in mp4s]

    def _download(self, path: str, folder: str) -> Path | None:
        if not any(
            item.path == path
            for item in self.client.list_artifacts(self.run_id, path.rpartition("/")[0] or None)
        ):
            return None
        return Path(self.client.download_artifacts(self.run_id, path, folder))


def _video(mp4: bytes, described: Mapping[str, Any]) -> PastVideo:
    scores = {name: float(score) for name, score in described.get("scores", {}).items()}
    return PastVideo(mp4, scores, described.get("num_frames"))


def find_runs(uri: str, targets: Sequence[str]) -> list[PastRun]:
    """Find the runs of experiments, sweeps and single runs, by time; a sweep's trials replace its parent run.

    Args:
        uri: server or database.
        targets: names of experiments, names of sweeps or runs (also as paths of their folders), ids of MLflow
            runs.

    Raises:
        UserError: MLflow cannot be used, does not have one of the targets, or no run has an evaluation.
    """
    if uri.startswith(SQLITE) and not database_path(uri).is_file():
        raise UserError(
            f"there is no MLflow database {database_path(uri)}; "
            "give --tracking-uri or set MLFLOW_TRACKING_URI"
        )
    check_server(uri)
    client = connect(uri)
    try:
        found = {run.info.run_id: run for target in targets for run in _matching(client, uri, target)}
        parents = [run for run in found.values() if _is_parent(run)]
        runs = [_read(client, run) for run in found.values() if not _is_parent(run)]
        runs = sorted(runs, key=lambda run: run.started_ms) + [
            trial for run in parents for trial in _refused(client, run)
        ]
    except (MlflowException, OSError) as error:
        raise unusable(uri, error) from None
    if not any(run.last("eval/objective") is not None for run in runs):
        raise UserError(
            f"none of the {len(runs)} runs of {', '.join(targets)} has metrics of an evaluation; "
            "look at their status in MLflow, or name runs that have finished their first evaluation"
        )
    return runs


def _matching(client: MlflowClient, uri: str, target: str) -> list[Any]:
    """Return the MLflow runs of a target: of an experiment, a run id, or all runs and sweeps of that name."""
    experiment = client.get_experiment_by_name(target)
    if experiment is not None:
        return _search(client, [experiment.experiment_id], "")
    everywhere = [item.experiment_id for item in client.search_experiments()]
    name = target.rstrip("/").rsplit("/", 1)[-1].replace("'", "")
    for condition in (
        f"attributes.run_id = '{name}'",
        f"attributes.run_name = '{name}'",
        f"tags.sweep = '{name}'",
    ):
        if runs := _search(client, everywhere, condition):
            children = [child for run in runs for child in _search(client, everywhere, _child_of(run))]
            return [*runs, *children]
    known = ", ".join(repr(item.name) for item in client.search_experiments() if item.name != "Default")
    raise UserError(
        f"MLflow at {uri} has no experiment, sweep or run {target!r}; its experiments are {known or 'none'} "
        "(--tracking-uri names another server or database)"
    )


def _child_of(run: Any) -> str:
    return f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"


def _search(client: MlflowClient, experiment_ids: list[str], condition: str) -> list[Any]:
    runs, token = [], None
    while token is None or token:
        page = client.search_runs(experiment_ids, condition, page_token=token)
        runs += page
        token = page.token or ""
    return runs


def _is_parent(run: Any) -> bool:
    return "sweep" in run.data.tags and "trial" not in run.data.tags


def _refused(client: MlflowClient, parent: Any) -> Iterator[PastRun]:
    """Yield the trials with invalid settings, which have no run but a row in the sweep's table."""
    if not any(item.path == "trials.json" for item in client.list_artifacts(parent.info.run_id)):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(parent.info.run_id, "trials.json", folder)
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    for cells in table["data"]:
        row = dict(zip(table["columns"], cells, strict=True))
        if row["status"] == "failed" and not row.get("mlflow_run_id"):
            swept = dict(part.partition("=")[::2] for part in row["trial"].split(","))
            tags = {
                "trial": row["trial"],
                "error": row["error"] or "",
                "recipe": parent.data.tags.get("recipe", ""),
                **swept,
            }
            yield PastRun(
                client=client,
                run_id="",
                experiment_id=parent.info.experiment_id,
                name=row["trial"],
                status="failed",
                started_ms=parent.info.start_time,
                settings={},
                tags=tags,
                history={},
                latest={},
            )


def _read(client: MlflowClient, run: Any) -> PastRun:
    return PastRun(
        client=client,
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        name=run.info.run_name,
        status=run.data.tags.get("status", _ENDED[run.info.status])
        if run.info.status != "RUNNING"
        else "unfinished",
        started_ms=run.info.start_time,
        settings=dict(run.data.params),
        tags=dict(run.data.tags),
        history=MetricHistory(client, run.info.run_id, run.data.metrics),
        latest=dict(run.data.metrics),
    )


def _reward_names(settings: dict[str, str], section: str) -> list[str]:
    """Return the names of a section's rewards, as `RewardConfig.name`: label, else end of the dotted name."""
    names: list[str] = []
    while (reward := settings.get(f"{section}.{len(names)}.reward")) is not None:
        label = settings.get(f"{section}.{len(names)}.label", "None")
        names.append(reward.rsplit(".", 1)[-1] if label == "None" else label)
    return names


def differing(runs: Iterable[PastRun]) -> list[str]:
    """List the fields in which runs differ, ``seed`` last.

    For trials these are the swept names, else the settings with an effect on results.
    """
    runs = list(runs)
    return (
        _varied([run.swept for run in runs]) if all(run.swept for run in runs) else differing_settings(runs)
    )


def differing_settings(runs: Iterable[PastRun]) -> list[str]:
    """List the settings in which runs differ and that have an effect on results."""
    return _varied([run.settings for run in runs if run.settings])


def _varied(tables: Sequence[dict[str, str]]) -> list[str]:
    names = list(
        dict.fromkeys(name for table in tables for name in table if not name.startswith(_WITHOUT_EFFECT))
    )
    varied = [name for name in names if len({table.get(name) for table in tables}) > 1]
    return sorted(varied, key=lambda name: name == "seed")
