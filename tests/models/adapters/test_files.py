"""Saved adapters: their permissions, their manifest, and one sentence for each kind of damage."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.families import CASES, save
from tests.helpers.family_runs import load_case
from tests.helpers.tiny import load_tiny, randomise_adapter
from tests.helpers.training import file_contents
from vader_ray.errors import UserError
from vader_ray.models import adapter_shape, export_adapter, load_adapter, mix_adapters

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder: Path) -> Any:
    loaded = load_tiny(tiny_pipeline_folder)
    randomise_adapter(loaded, 1)
    return loaded


@pytest.fixture
def adapter(model: Any, tmp_path: Path) -> Path:
    """A saved adapter in peft's format, of rank 2."""
    model.save_adapter(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def foreign(adapter: Path) -> Path:
    """The same without a manifest, as other programs write it."""
    (adapter / "manifest.json").unlink()
    return adapter


def _modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_every_file_of_an_adapter_has_the_permissions_of_a_new_file(
    model: Any, tmp_path: Path, umask: int
) -> None:
    """safetensors writes files that only their owner can read."""
    before = os.umask(umask)
    try:
        model.save_adapter(tmp_path / "a")
        mix_adapters([(tmp_path / "a", 0.5), (tmp_path / "a", 0.5)], tmp_path / "mixed")
        export_adapter(tmp_path / "a", "diffusers", tmp_path / "exported")
        export_adapter(tmp_path / "a", "diffusers", tmp_path / "one.safetensors")
    finally:
        os.umask(before)
    modes = _modes(tmp_path)
    assert len(modes) == 3 + 3 + 2 + 2  # a single file has its SHA-256 beside it
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_diffusers_files_and_merged_denoisers_have_them_too(tmp_path: Path) -> None:
    wan = load_case(CASES["wan"], save(CASES["wan"], tmp_path / "pipe"))
    wan.save_adapter(tmp_path / "written" / "adapter")
    wan.save_merged(tmp_path / "written" / "merged")
    modes = _modes(tmp_path / "written")
    assert {"adapter/pytorch_lora_weights.safetensors", "adapter/manifest.json"} < modes.keys()
    assert len(set(modes.values())) == 1, modes


def test_an_adapter_without_a_manifest_is_loaded(model: Any, foreign: Path) -> None:
    model.load_adapter(foreign)
    load_adapter(model.pipe, foreign)


def test_peft_reads_a_folder_with_a_manifest(tiny_pipeline_folder: Path, adapter: Path) -> None:
    denoiser = UNet3DConditionModel.from_pretrained(tiny_pipeline_folder / "unet")
    assert (adapter / "manifest.json").exists()
    assert PeftModel.from_pretrained(denoiser, adapter).peft_config["default"].r == 2


@pytest.mark.parametrize("form", ["diffusers", "peft"])
@pytest.mark.parametrize("name", ["weights", "manifest.json"])
def test_a_damaged_file_of_an_export_is_named(adapter: Path, tmp_path: Path, form: Any, name: str) -> None:
    export_adapter(adapter, form, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest.keys() == {
        path.name for path in (tmp_path / "out").iterdir() if path.name != "manifest.json"
    }
    file = next((tmp_path / "out").glob("*.safetensors")) if name == "weights" else tmp_path / "out" / name
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"the adapter in .*/out is damaged: .*; copy it again"):
        adapter_shape(tmp_path / "out")


@pytest.mark.parametrize("action", ["load", "load_into", "shape", "mix", "export"])
def test_a_flipped_bit_is_noticed_by_every_use(
    model: Any, adapter: Path, tmp_path: Path, action: str
) -> None:
    content = bytearray((adapter / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (adapter / WEIGHTS).write_bytes(content)
    uses: dict[str, Callable[[], object]] = {
        "load": lambda: model.load_adapter(adapter),
        "load_into": lambda: load_adapter(model.pipe, adapter),
        "shape": lambda: adapter_shape(adapter),
        "mix": lambda: mix_adapters([(adapter, 1.0)], tmp_path / "out"),
        "export": lambda: export_adapter(adapter, "peft", tmp_path / "out"),
    }
    with pytest.raises(UserError, match=rf"saved is damaged: {WEIGHTS} is damaged; copy it again"):
        uses[action]()


def _change(tensors: Callable[[dict[str, Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata()
        weights = load_file(folder / WEIGHTS)
        tensors(weights)
        save_file(weights, folder / WEIGHTS, metadata)

    return damage


def _set(**values: object) -> Damage:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / SETTINGS).read_text())
        (folder / SETTINGS).write_text(json.dumps(settings | values))

    return damage


def _drop(name: str) -> Damage:
    def damage(folder: Path) -> None:
        settings = json.loads((folder / SETTINGS).read_text())
        settings.pop(name)
        (folder / SETTINGS).write_text(json.dumps(settings))

    return damage


def _write(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def _first(weights: dict[str, Tensor], matrix: str) -> str:
    return next(name for name in sorted(weights) if name.endswith(f".lora_{matrix}.weight"))


def _poison(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        weights[_first(weights, "B")].view(-1)[1] = value

    return change


def _narrow(weights: dict[str, Tensor]) -> None:
    name = _first(weights, "A")
    weights[name] = weights[name][:1].contiguous()


def _transpose(weights: dict[str, Tensor]) -> None:
    name = _first(weights, "B")
    weights[name] = weights[name].transpose(0, 1).contiguous()


DAMAGES: dict[str, tuple[Damage, str]] = {
    "without r": (_drop("r"), "its setting r is missing, not a whole number of at least 1"),
    "r null": (_set(r=None), "its setting r is missing"),
    "r text": (_set(r="8"), "its setting r is '8', not a whole number"),
    "r list": (_set(r=[2]), r"its setting r is \[2\], not a whole number"),
    "r true": (_set(r=True), "its setting r is True, not a whole number"),
    "r negative": (_set(r=-1), "its setting r is -1, not a whole number"),
    "r zero": (_set(r=0), "its setting r is 0, not a whole number"),
    "r fraction": (_set(r=2.5), "its setting r is 2.5, not a whole number"),
    "r infinite": (_set(r=float("inf")), "its setting r is inf, not a whole number"),
    "r of others": (_set(r=3), r"lora_A.weight has the shape \(2, .*which is not of rank 3"),
    "alpha null": (_set(lora_alpha=None), "its setting lora_alpha is missing"),
    "alpha nan": (_set(lora_alpha=float("nan")), "its setting lora_alpha is nan, not a number above 0"),
    "alpha negative": (_set(lora_alpha=-8), "its setting lora_alpha is -8, not a number above 0"),
    "without targets": (_drop("target_modules"), "its setting target_modules is missing, not a list"),
    "no targets": (_set(target_modules=[]), r"its setting target_modules is \[\], not a list of names"),
    "targets null": (_set(target_modules=[None]), r"target_modules is \[None\], not a list of names"),
    "targets text": (_set(target_modules="to_q"), "target_modules is 'to_q', not a list of names"),
    "rslora": (_set(use_rslora=True), "has use_rslora=True, which is not supported; give a plain LoRA"),
    "a list": (_write(SETTINGS, b"[1, 2]"), "its settings are a list, not a table"),
    "a null": (_write(SETTINGS, b"null"), "its settings are a NoneType, not a table"),
    "no JSON": (_write(SETTINGS, b"r: 8"), r"is damaged \(Expecting value"),
    "empty": (_write(SETTINGS, b""), r"is damaged \(Expecting value"),
    "NUL": (_write(SETTINGS, b"\0" * 300), r"is damaged \(Expecting value"),
    "no UTF-8": (_write(SETTINGS, b'{"r": "\xff"}'), r"is damaged \('utf-8' codec can't decode"),
    "deep": (_write(SETTINGS, b"[" * 100_000), r"is damaged \("),
    "weights empty": (_write(WEIGHTS, b""), r"is damaged \(.*header"),
    "weights NUL": (_write(WEIGHTS, b"\0" * 300), r"is damaged \("),
    "weights huge header": (_write(WEIGHTS, b"\xff" * 300), r"is damaged \("),
    "no tensors": (_change(dict.clear), "it has no tensors"),
    "A without B": (
        _change(lambda weights: weights.__delitem__(_first(weights, "B"))),
        r"it has .*lora_A.weight without .*lora_B.weight",
    ),
    "a narrow A": (_change(_narrow), r"lora_A.weight has the shape \(1, .*not of rank 2"),
    "a transposed B": (_change(_transpose), r"lora_B.weight has the shape \(2, .*not of rank 2"),
    "a foreign tensor": (
        _change(lambda weights: weights.update({"bias": torch.ones(2)})),
        "bias is no matrix A or B of a layer",
    ),
    "whole numbers": (
        _change(lambda weights: weights.update({_first(weights, "A"): weights[_first(weights, "A")].int()})),
        "lora_A.weight has numbers of the type torch.int32",
    ),
    "NaN": (_change(_poison(float("nan"))), r"to_\w+.*lora_B.weight has values that are not finite"),
    "infinity": (_change(_poison(float("inf"))), r"lora_B.weight has values that are not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused_with_one_sentence(foreign: Path, damage: str) -> None:
    apply, message = DAMAGES[damage]
    apply(foreign)
    with pytest.raises(UserError, match=message) as raised:
        adapter_shape(foreign)
    assert str(foreign) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("action", ["load", "mix", "bare"])
def test_weights_that_are_not_finite_are_refused_by_name(
    model: Any, foreign: Path, tmp_path: Path, action: str
) -> None:
    _change(_poison(float("nan")))(foreign)
    file = tmp_path / "bare.safetensors"
    shutil.copy(foreign / WEIGHTS, file)
    uses: dict[str, Callable[[], object]] = {
        "load": lambda: model.load_adapter(foreign),
        "mix": lambda: mix_adapters([(foreign, 0.5), (foreign, 0.5)], tmp_path / "out"),
        "bare": lambda: model.load_adapter(file),
    }
    with pytest.raises(UserError, match=r"lora_B.weight has values that are not finite"):
        uses[action]()
    assert not (tmp_path / "out").exists()


def test_a_weight_of_a_mix_that_is_not_finite_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nan=.*saved: the weight of an adapter is a finite number"):
        mix_adapters([(adapter, 0.5), (adapter, float("nan"))], tmp_path / "out")


def test_diffusers_metadata_is_checked_like_settings(adapter: Path, tmp_path: Path) -> None:
    (file,) = export_adapter(adapter, "diffusers", tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    for text, message in {
        "[]": "its settings are a list",
        "{": "is damaged",
        '{"unet.r": -1}': "its setting r is -1",
        "null": "has no metadata",
    }.items():
        save_file(load_file(file), file, {"lora_adapter_metadata": text})
        with pytest.raises(UserError, match=message):
            adapter_shape(tmp_path / "out")


def test_a_name_with_a_nul_is_no_adapter() -> None:
    with pytest.raises(UserError, match=r"is damaged .*null byte|has no adapter"):
        adapter_shape(Path("a\0b"))


def test_equal_adapters_have_equal_bytes(tmp_path: Path) -> None:
    """safetensors orders metadata by chance: of eight saves some would differ."""
    model = load_case(CASES["wan"], save(CASES["wan"], tmp_path / "pipeline"))
    for number in range(8):
        model.save_adapter(tmp_path / str(number))
    first, *others = [file_contents(tmp_path / str(number)) for number in range(8)]
    assert set(first) == {"pytorch_lora_weights.safetensors", "manifest.json"}
    assert all(other == first for other in others)
