"""Adapters in the formats of other programs: read back by the library's own loaders, or key by key."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from tests.helpers.families import CASES, save
from tests.helpers.family_runs import SEEDS, freeze, load_case, own_call
from tests.helpers.recipe import write_tiny
from vader_ray import models
from vader_ray.cli import app
from vader_ray.config import load
from vader_ray.errors import UserError
from vader_ray.models.adapters import comfyui_unet
from vader_ray.models.adapters.export import Saved, for_comfyui
from vader_ray.models.adapters.files import PEFT_ALPHA


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: save(CASES[name], tmp_path_factory.mktemp(name)))


def _export(*arguments: object) -> list[Path]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return [Path(line) for line in result.stdout.split()]


def _layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.denoiser.named_modules() if hasattr(layer, "lora_A")}


def _video(model: Any, case: Any, pipe: Any) -> Tensor:
    model.pipe = freeze(pipe)
    frames: Tensor = own_call(case, model, [], slice(0, 1), type(pipe).__call__)
    return frames


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_stock_diffusers_makes_the_same_video_of_an_exported_file(
    folders: Any, tmp_path: Path, form: str
) -> None:
    """Bit for bit, though diffusers folds ComfyUI's alpha into the weights: alpha / rank is a power of two
    here."""
    case = CASES["wan"]
    model = load_case(case, folders("wan"))
    model.save_adapter(tmp_path / "adapter")
    ours = _video(model, case, model.pipe)
    (file,) = _export(tmp_path / "adapter", "--format", form, "-o", tmp_path / "wan.safetensors")
    plain = diffusers.DiffusionPipeline.from_pretrained(folders("wan"))
    plain.set_progress_bar_config(disable=True)
    before = _video(model, case, plain)
    plain.load_lora_weights(file)
    assert torch.equal(_video(model, case, plain), ours)
    assert not torch.equal(before, ours)


@pytest.mark.parametrize(
    ("name", "layer", "key"),
    [
        ("wan_i2v", "blocks.0.attn2.add_k_proj", "diffusion_model.blocks.0.cross_attn.k_img"),
        ("ltx", "transformer_blocks.0.attn1.to_out.0", "diffusion_model.transformer_blocks.0.attn1.to_out.0"),
        (
            "svd",
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
            "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v",
        ),
    ],
)
def test_comfyui_gets_every_layer_under_its_own_name(
    folders: Any, tmp_path: Path, name: str, layer: str, key: str
) -> None:
    model = load_case(CASES[name], folders(name))
    model.save_adapter(tmp_path / "adapter")
    (file,) = _export(tmp_path / "adapter", "--format", "comfyui", "-o", tmp_path)
    tensors, layers = load_file(file), _layers(model)
    a, b = ("lora_down", "lora_up") if key.startswith("lora_unet_") else ("lora_A", "lora_B")
    assert len(tensors) == 3 * len(layers)
    assert torch.equal(tensors[f"{key}.{a}.weight"], layers[layer].lora_A["default"].weight)
    assert torch.equal(tensors[f"{key}.{b}.weight"], layers[layer].lora_B["default"].weight)
    assert float(tensors[f"{key}.alpha"]) == 4.0
    if name == "ltx":  # its names are those of the network
        for known, each in layers.items():
            assert torch.equal(tensors[f"diffusion_model.{known}.{a}.weight"], each.lora_A["default"].weight)


# Facts of comfyanonymous/ComfyUI at 00728eb (comfy/utils.py, unet_to_diffusers) and 01c4fa4 (comfy/ldm): the
# block of every attention and residual block of Stable Video Diffusion's network.
_DOWN = {(0, 0): 1, (0, 1): 2, (1, 0): 4, (1, 1): 5, (2, 0): 7, (2, 1): 8, (3, 0): 10, (3, 1): 11}
_UP = {(level, index): 3 * level + index for level in range(4) for index in range(3)}
_STACKS = {"transformer_blocks.0": "transformer_blocks.0", "temporal_transformer_blocks.0": "time_stack.0"}
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def _comfyui_names() -> dict[str, str]:
    """The attention layers of Stable Video Diffusion in diffusers, and in ComfyUI."""
    places = {"mid_block.attentions.0": "middle_block.1"}
    places |= {
        f"down_blocks.{x}.attentions.{i}": f"input_blocks.{n}.1" for (x, i), n in _DOWN.items() if x < 3
    }
    places |= {f"up_blocks.{x}.attentions.{i}": f"output_blocks.{n}.1" for (x, i), n in _UP.items() if x > 0}
    return {
        f"{ours}.{block}.{attention}.{last}": f"{theirs}.{stack}.{attention}.{last}"
        for ours, theirs in places.items()
        for block, stack in _STACKS.items()
        for attention in ("attn1", "attn2")
        for last in _PROJECTIONS
    }


def test_comfyui_gets_all_attention_layers_of_the_published_video_diffusion_network() -> None:
    with torch.device("meta"):
        network = diffusers.UNetSpatioTemporalConditionModel()
    layers = [name for name, _ in network.named_modules() if name.endswith(_PROJECTIONS)]
    names = _comfyui_names()
    assert len(layers) == 256
    assert sorted(names) == sorted(layers)
    matrix = torch.zeros(1, 1)
    saved = Saved(dict.fromkeys(layers, (matrix, matrix)), 1, 1.0, ())
    stems = {key.rpartition(".lora_down")[0] for key in for_comfyui([saved])[0] if ".lora_down" in key}
    assert stems == {f"lora_unet_{name.replace('.', '_')}" for name in names.values()}


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        ("conv_in", "input_blocks.0.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("down_blocks.3.resnets.1.spatial_res_block.conv1", "input_blocks.11.0.in_layers.2"),
        ("down_blocks.0.resnets.0.temporal_res_block.conv2", "input_blocks.1.0.time_stack.out_layers.3"),
        ("down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
        ("mid_block.resnets.1.spatial_res_block.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.2.resnets.2.spatial_res_block.conv_shortcut", "output_blocks.8.0.skip_connection"),
        ("up_blocks.1.attentions.0.time_pos_embed.linear_2", "output_blocks.3.1.time_pos_embed.2"),
        ("up_blocks.3.attentions.1.proj_in", "output_blocks.10.1.proj_in"),
    ],
)
def test_other_layers_of_a_unet_have_comfyuis_names(layer: str, name: str) -> None:
    assert comfyui_unet.name_of(layer, [layer, "down_blocks.0.attentions.1.proj_in"]) == name


@pytest.mark.parametrize(
    "layer",
    [
        "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q",
        "up_blocks.0.upsamplers.0.conv",
        "down_blocks.0.resnets.0.conv3",
    ],
)
def test_a_layer_that_comfyui_lacks_is_refused(layer: str) -> None:
    with pytest.raises(UserError, match=f"ComfyUI's network has no layer {layer}, so it cannot load"):
        comfyui_unet.name_of(layer, [layer])


def test_wan_keys_come_back_by_the_librarys_own_conversion(folders: Any, tmp_path: Path) -> None:
    """alpha / rank = 2 is folded into A there."""
    model = load_case(CASES["wan_i2v"], folders("wan_i2v"))
    model.save_adapter(tmp_path / "adapter")
    (file,) = _export(tmp_path / "adapter", "--format", "comfyui", "-o", tmp_path / "x.safetensors")
    assert subprocess.run(["sha256sum", "--check", "--quiet", f"{file}.sha256"], cwd=tmp_path).returncode == 0
    back = diffusers.WanImageToVideoPipeline.lora_state_dict(file)
    layers = _layers(model)
    assert len(back) == 2 * len(layers)
    for name, layer in layers.items():
        assert torch.equal(back[f"transformer.{name}.lora_A.weight"], 2 * layer.lora_A["default"].weight)
        assert torch.equal(back[f"transformer.{name}.lora_B.weight"], layer.lora_B["default"].weight)


def test_two_denoisers_go_into_two_folders(folders: Any, tmp_path: Path) -> None:
    model = load_case(CASES["wan_a14b"], folders("wan_a14b"))
    model.save_adapter(tmp_path / "adapter")
    first, second = _export(tmp_path / "adapter", "--format", "comfyui", "-o", tmp_path / "out")
    assert second.parent == first.parent / "transformer_2"
    key = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    assert not torch.equal(load_file(first)[key], load_file(second)[key])
    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "adapter"), "-o", str(tmp_path / "one.safetensors")]
    )
    assert result.exit_code == 2
    assert "has the adapters of two denoisers; give a folder" in result.stderr


@pytest.mark.parametrize("bare", [False, True])
def test_exports_of_exports_are_the_adapter_itself(folders: Any, tmp_path: Path, bare: bool) -> None:
    """Ours → peft → diffusers → ours; a bare peft state dict has its rank in its shapes and the authors'
    alpha."""
    model, other = (load_case(CASES["svd"], folders("svd")) for _ in range(2))
    source = tmp_path / ("adapter.pt" if bare else "adapter")
    if bare:
        state = {k: v for k, v in model.denoiser.state_dict().items() if "lora_" in k}
        torch.save({f"base_model.model.{key}": value for key, value in state.items()}, source)
    else:
        model.save_adapter(source)
    (peft,) = _export(source, "--format", "peft", "-o", tmp_path / "peft")
    (file,) = _export(peft, "--format", "diffusers", "-o", tmp_path / "diffusers")
    shape = models.adapter_shape(file.parent)
    assert (shape.rank, shape.alpha) == (2, PEFT_ALPHA if bare else 4.0)
    read = PeftModel.from_pretrained(
        diffusers.UNetSpatioTemporalConditionModel.from_pretrained(folders("svd") / "unet"), peft
    )
    theirs = [value for name, value in read.named_parameters() if "lora_" in name]
    assert all(torch.equal(a, b) for a, b in zip(theirs, model.adapter_parameters(), strict=True))
    if not bare:
        other.load_adapter(file.parent)
        assert all(
            torch.equal(a, b)
            for a, b in zip(other.adapter_parameters(), model.adapter_parameters(), strict=True)
        )


def test_merged_denoiser_makes_the_same_video_without_an_adapter(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    """float32 rounds W + ΔW once and W x + ΔW x twice."""
    recipe = write_tiny(tmp_path, tiny_pipeline_folder)
    config = load(str(recipe))
    model = models.build(
        config.model, config.sampling, config.adapter, seed=0, chunk_size=1, device=torch.device("cpu")
    )
    for parameter in model.adapter_parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    model.save_adapter(tmp_path / "adapter")
    (place,) = _export(tmp_path / "adapter", "--merge", "--recipe", recipe, "-o", tmp_path / "merged")
    ours = model.sample(model.encode(["a star"]), SEEDS[:1])
    pipe = model.pipe
    plain = models.build(
        config.model, config.sampling, None, seed=0, chunk_size=1, device=torch.device("cpu")
    )
    before = plain.sample(plain.encode(["a star"]), SEEDS[:1])
    plain.pipe.unet = type(pipe.unet).from_pretrained(place).requires_grad_(False)
    after = plain.sample(plain.encode(["a star"]), SEEDS[:1])
    torch.testing.assert_close(after, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, ours, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mochi",
            ["--format", "comfyui"],
            "only adapters of Wan, LTX-Video and diffusers' UNets can be exported to it; choose --format",
        ),
        (
            "svd",
            ["--format", "comfyui", "--recipe", "shapes_hps"],
            "ComfyUI has no network of model.family=modelscope, so it cannot load this adapter",
        ),
        (
            "animatediff",
            ["--format", "comfyui"],
            "has no layer down_blocks.0.motion_modules",
        ),
        ("svd", ["--merge"], "name its recipe by --recipe"),
        ("svd", ["--format", "peft", "-o", "x.safetensors"], "peft's format is two files; give a folder"),
    ],
)
def test_what_cannot_be_exported_is_named(
    folders: Any, tmp_path: Path, name: str, options: list[str], message: str
) -> None:
    load_case(CASES[name], folders(name)).save_adapter(tmp_path / "adapter")
    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), *options]
    )
    assert result.exit_code == 2
    assert message in result.stderr
