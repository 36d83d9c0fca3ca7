"""Adapters on a hub on loopback: what is pushed, and that diffusers and every command load it from there."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from huggingface_hub import constants
from peft import PeftModel
from typer.testing import CliRunner

import vader_ray as vr
from tests.helpers.families import CASES, save
from tests.helpers.family_runs import load_case
from tests.helpers.hub_server import TOKEN, Hub, hub_of_this_process
from tests.helpers.network import free_port
from tests.helpers.recipe import write_tiny
from vader_ray.cli import app
from vader_ray.manifest import find_damage
from vader_ray.orchestration.publishing.finished_run import run_of_adapter
from vader_ray.orchestration.publishing.model_card import model_card
from vader_ray.orchestration.runs.run_dir import RunDir
from vader_ray.orchestration.runs.summary import OPTIMISTIC

NAME = "someone/bright-videos"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process's client uses, with a token and an empty cache."""
    with hub_of_this_process(monkeypatch, tmp_path / "cache") as started:
        yield started


def _front_matter(card: str) -> dict[str, Any]:
    found = yaml.safe_load(card.split("---")[1])
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_an_adapter_is_pushed_and_loaded_by_everyone(
    hub: Hub, run: RunDir, tiny_pipeline_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    command = ["push", str(run.adapter), NAME, "--base-model", "owner/base", "--license", "mit"]
    pushed = CliRunner().invoke(app, command)
    assert pushed.exit_code == 0, pushed.output
    assert pushed.stdout.strip() == f"{hub.address}/{NAME}"
    files = hub.repositories[NAME]
    videos = [f"videos/{path.name}" for path in sorted((run.videos / "step-000002").glob("*.mp4"))]
    assert len(videos) == 2
    assert files.keys() - {".gitattributes"} == {
        "README.md", "recipe.yaml", "before_after.png", "manifest.json", "adapter_config.json",
        "adapter_model.safetensors", *videos,
    }  # fmt: skip
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, "a repository that exists is updated"
    assert TOKEN not in pushed.output + again.output + caplog.text
    assert not any(TOKEN.encode() in content for content in files.values())

    plain = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    PeftModel.from_pretrained(plain.unet, NAME)
    ours = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    vr.load_adapter(ours, run.adapter)
    theirs = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline_folder)
    vr.load_adapter(theirs, NAME)
    expected = dict(ours.unet.named_parameters())
    trained = {name: value for name, value in expected.items() if "lora_B" in name}
    assert all(value.any() for value in trained.values())
    for pipe in (plain, theirs):
        found = {name.replace("base_model.model.", ""): value for name, value in pipe.unet.named_parameters()}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    recipe = write_tiny(tmp_path, tiny_pipeline_folder)
    assert vr.evaluate(recipe, adapter=NAME) == vr.evaluate(recipe, adapter=run.adapter)
    refused = CliRunner().invoke(app, ["export", NAME, "--format", "comfyui", "-o", str(tmp_path / "out")])
    assert "ComfyUI has no network of model.family=modelscope" in refused.stderr, "its recipe is on the hub"
    exported = CliRunner().invoke(app, ["export", NAME, "-o", str(tmp_path / "one.safetensors")])
    assert exported.exit_code == 0, exported.output
    mixed = CliRunner().invoke(
        app, ["mix", f"0.5={NAME}", f"0.5={run.adapter}", "-o", str(tmp_path / "mixed")]
    )
    assert mixed.exit_code == 0, mixed.output


@pytest.mark.slow
def test_stock_diffusers_loads_an_adapter_from_the_hub_by_its_own_call(hub: Hub, tmp_path: Path) -> None:
    model = load_case(CASES["wan"], save(CASES["wan"], tmp_path / "wan"))
    model.save_adapter(tmp_path / "adapter")
    vr.push_to_hub(tmp_path / "adapter", NAME, base_model="owner/base")
    assert f'pipe.load_lora_weights("{NAME}")' in hub.repositories[NAME]["README.md"].decode()
    plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "wan")
    plain.load_lora_weights(NAME)
    theirs = [value for name, value in plain.transformer.named_parameters() if "lora_" in name]
    assert all(torch.equal(a, b) for a, b in zip(theirs, model.adapter_parameters(), strict=True))


@pytest.mark.slow
def test_the_card_has_what_a_reader_needs(hub: Hub, run: RunDir) -> None:
    vr.push_to_hub(run.adapter, NAME, base_model="owner/base")
    summary = run.read_summary()
    assert summary is not None
    card = hub.repositories[NAME]["README.md"].decode()
    about = _front_matter(card)
    assert (about["base_model"], about["library_name"]) == ("owner/base", "diffusers")
    assert about["license_link"] == "https://huggingface.co/owner/base"
    assert {item["text"] for item in about["widget"]} <= set(
        yaml.safe_load(run.recipe.read_text())["prompts"]["validation"]
    )
    gain, low, high = (
        summary.metrics[f"eval/{kind}/brightness"] for kind in ("gain", "gain_low", "gain_high")
    )
    assert "## Rewards on validation prompts" in card, "the adapter of the last step is not tested"
    assert OPTIMISTIC in card
    row = next(line for line in card.splitlines() if line.startswith("| brightness | trained |"))
    before, after = (
        summary.metrics_before["eval/reward/brightness"],
        summary.metrics["eval/reward/brightness"],
    )
    assert f"| {before:.3f} | {after:.3f} |" in row
    numbers = [
        float(text.replace("−", "-"))
        for text in row.split("|")[5].replace("(", "").replace(")", "").split()
        if text != "to"
    ]
    assert numbers == pytest.approx([gain, low, high], abs=6e-4)
    assert "| colorfulness | held out |" in card
    assert "It reported:\n\n- eval/distance_to_base rose to" in card
    assert "tracking" not in yaml.safe_load(hub.repositories[NAME]["recipe.yaml"])
    assert f'PeftModel.from_pretrained(pipe.unet, "{NAME}")' in card


@pytest.mark.slow
def test_the_card_loads_merged_adapters_and_both_denoisers_in_their_order(run: RunDir) -> None:
    finished = run_of_adapter(run.best_adapter)
    assert finished is not None
    adapters = [
        {"weights": "owner/fast", "file": "high.safetensors", "scale": 0.5, "denoiser": None},
        {"weights": "/mine/low.safetensors", "file": None, "scale": 1.0, "denoiser": "transformer_2"},
    ]
    model = finished.recipe["model"] | {"family": "wan", "loras": adapters}
    stacked = dataclasses.replace(finished, recipe=finished.recipe | {"model": model})
    card = model_card(
        "Name", "me/it", "owner/wan", stacked, is_for_diffusers=True, networks=["", "transformer_2"]
    )
    code = card.split("```")[1].removeprefix("python\n")
    compile(code, "card", "exec")
    calls = [line.split("  #")[0] for line in code.splitlines() if line.startswith("pipe.")]
    assert calls == [
        'pipe.load_lora_weights("owner/fast", weight_name="high.safetensors")',
        'pipe.fuse_lora(["transformer"], lora_scale=0.5)',
        "pipe.unload_lora_weights()",
        'pipe.load_lora_weights("low.safetensors", load_into_transformer_2=True)',
        'pipe.fuse_lora(["transformer_2"], lora_scale=1.0)',
        "pipe.unload_lora_weights()",
        'pipe.load_lora_weights("me/it")',
        'pipe.load_lora_weights("me/it", subfolder="transformer_2", load_into_transformer_2=True)',
    ]


def test_a_copy_from_the_hub_is_whole_and_is_found_without_a_network(
    hub: Hub, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vader_ray.hub import find_adapter

    vr.push_to_hub(run.best_adapter, NAME, base_model="owner/base", private=True)
    assert hub.private == {NAME}
    folder = find_adapter(NAME)
    assert find_damage(folder) is None
    assert not (folder / "videos").exists(), "videos are not downloaded with an adapter"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_adapter(NAME) == folder
    with pytest.raises(vr.UserError, match="HF_HUB_OFFLINE is set, and the local cache has no copy"):
        find_adapter("someone/else")


@pytest.mark.slow
def test_a_hub_that_does_not_work_is_one_sentence(
    hub: Hub, run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["push", *map(str, arguments)])
        assert done.exit_code == 2, done.output
        assert "wrong" not in done.stderr
        _, _, sentence = done.stderr.rstrip("\n").rpartition("vader-ray: ")  # after the stages
        assert "\n" not in sentence
        return sentence

    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert f"{hub.address} refused the token; run `hf auth login`" in refused(run.adapter, NAME)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert "is out of reach" in refused(run.adapter, NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert f"the adapter was not pushed to {NAME}: HF_HUB_OFFLINE is set" in refused(run.adapter, NAME)
    assert "'bright' names no repository of the hub; give OWNER/NAME" in refused(run.adapter, "bright")
    assert "there is no folder nowhere" in refused("nowhere", NAME)


@pytest.mark.slow
def test_an_adapter_outside_a_run_needs_its_base_model(hub: Hub, run: RunDir, tmp_path: Path) -> None:
    folder = run.adapter.rename(tmp_path / "alone")
    try:
        with pytest.raises(
            vr.UserError, match="since it is in no run's folder; give --base-model OWNER/NAME"
        ):
            vr.push_to_hub(folder, NAME)
        vr.push_to_hub(folder, NAME, base_model="owner/base")
    finally:
        folder.rename(run.adapter)
    assert "were not measured" in hub.repositories[NAME]["README.md"].decode()
