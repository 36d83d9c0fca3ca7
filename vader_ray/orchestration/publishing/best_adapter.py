"""The best adapter of a finished run with its model card, for MLflow."""

from __future__ import annotations

from vader_ray.files import write_text
from vader_ray.orchestration.publishing.finished_run import finished_run
from vader_ray.orchestration.publishing.model_card import model_card
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.summary import REWARD, RunSummary
from vader_ray.orchestration.tracking.logged_model import model_event
from vader_ray.orchestration.tracking.outbox import Event

_PEFT_SETTINGS = "adapter_config.json"
"""File of an adapter in peft's format; one in diffusers' format lacks it."""


def logged_adapter(folder: RunDir, summary: RunSummary) -> Event:
    """Write the model card of the best adapter; return the event that sends both to MLflow."""
    run, adapter = finished_run(folder, summary, folder.best_adapter), folder.best_adapter
    card = model_card(
        f"{summary.recipe}: best adapter", adapter.name, run.base_model, run,
        is_for_diffusers=not any(adapter.rglob(_PEFT_SETTINGS)),
        networks=run.networks,
    )  # fmt: skip
    write_text(folder.model_card, card)
    shape = run.recipe["adapter"]
    return model_event(
        folder.path, adapter, folder.model_card, run.step,
        params={"base_model": run.base_model, "recipe": summary.recipe}
        | {name: str(shape[name]) for name in ("rank", "alpha")},
        metrics=[name for name in run.metrics if name.startswith(REWARD)],
    )  # fmt: skip
