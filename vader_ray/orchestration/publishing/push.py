"""Publish a saved adapter on the Hugging Face hub, with its model card and sample videos."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import HfApi

from vader_ray import models
from vader_ray.errors import UserError
from vader_ray.hub import HUB_ERRORS, hub_problem
from vader_ray.orchestration.publishing.finished_run import RECIPE, FinishedRun, run_of_adapter
from vader_ray.orchestration.publishing.model_card import model_card
from vader_ray.training.media import before_after_sheet
from vader_ray.weights import HUB_ID

SHEET, CARD = "before_after.png", "README.md"


def push_to_hub(
    adapter: str | Path,
    repository: str,
    *,
    base_model: str | None = None,
    licence: str | None = None,
    private: bool = False,
) -> str:
    """Push a saved adapter to a repository of the Hugging Face hub, which is created if it is missing.

    The repository gets the adapter in peft's format and, where diffusers loads it, in diffusers' format, a
    model card and, if the adapter is in a run's folder, the recipe and sample videos. The token is that of
    ``HF_TOKEN`` or ``hf auth login``.

    Args:
        adapter: folder of a saved adapter, best ``best_adapter/`` of a run.
        repository: ``owner/name`` on the hub.
        base_model: hub id of the base model; by default the weights of the run's recipe.
        licence: the hub's name of the adapter's licence, such as ``apache-2.0``.
        private: create a private repository.

    Returns:
        Address of the repository.

    Raises:
        UserError: there is no adapter, its base model is not known, the run has not ended, or the hub cannot
            be reached or refuses.
    """
    if not HUB_ID.fullmatch(repository):
        raise UserError(f"{repository!r} names no repository of the hub; give OWNER/NAME")
    if not Path(adapter).is_dir():
        raise UserError(f"there is no folder {adapter}; give that of a saved adapter: runs/NAME/best_adapter")
    run = run_of_adapter(Path(adapter))
    base = base_model or (run.base_model if run else None)
    if base is None:
        raise UserError(
            f"the base model of the adapter in {adapter} is not known, since it is in no run's folder; give "
            "--base-model OWNER/NAME"
        )
    with tempfile.TemporaryDirectory(prefix="vader_ray_") as name:
        folder = Path(name)
        prepare(Path(adapter), folder, repository, base, run, licence=licence)
        return _upload(folder, repository, private=private)


def prepare(
    adapter: Path,
    folder: Path,
    repository: str,
    base_model: str,
    run: FinishedRun | None,
    *,
    licence: str | None = None,
) -> None:
    """Write all files of the repository to a folder."""
    is_for_diffusers = models.export_for_hub(adapter, folder, base_model=base_model)
    videos: dict[str, str] = {}
    if run is not None:
        (folder / RECIPE).write_text(
            yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        videos = _copy_videos(run, folder)
    card = model_card(
        repository.rpartition("/")[2],
        repository,
        base_model,
        run,
        is_for_diffusers=is_for_diffusers,
        networks=models.adapter_networks(adapter),
        licence=licence,
        videos=videos,
        sheet=SHEET if videos else None,
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _copy_videos(run: FinishedRun, folder: Path) -> dict[str, str]:
    """Copy the adapter's videos and draw them beside those before training; return their prompts by file."""
    before, after = run.videos(0), run.videos(run.step)
    if not before or len(before) != len(after):
        return {}
    sheet = before_after_sheet([video for _, video in before], [video for _, video in after])
    sheet.save(folder / SHEET)
    (folder / "videos").mkdir()
    prompts = {}
    for path, video in after:
        shutil.copy(path, folder / "videos" / path.name)
        prompts[f"videos/{path.name}"] = video.prompt
    return prompts


def _upload(folder: Path, repository: str, *, private: bool) -> str:
    api = HfApi()
    try:
        page = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Adapter trained with vader_ray"
        )
    except HUB_ERRORS as error:
        raise UserError(f"the adapter was not pushed to {repository}: {hub_problem(error)}") from None
    return str(page)
