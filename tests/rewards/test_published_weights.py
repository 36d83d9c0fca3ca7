"""Checkpoints with the names and shapes of the published files fit, at full size: frame rewards (HPS:
test_rewards.py).

Names and shapes are written out here from the architectures; only they matter, so the tensors lie on the meta
device, except where the file itself is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers.reward_inputs import pictures
from tests.helpers.tiny_rewards import make_clip
from vader_ray import rewards
from vader_ray.config import RewardConfig
from vader_ray.rewards.aesthetic import OTHER_TOWER
from vader_ray.rewards.core.clip import TransformersClipReward
from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from vader_ray.rewards.object_detection import RENAMED, class_index, fitted
from vader_ray.weights import load_strictly

Shapes = dict[str, tuple[int, ...]]

VIT_H_14 = {
    "model_type": "clip",
    "projection_dim": 1024,
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "hidden_act": "gelu",
        "patch_size": 14,
    },
}
"""What matters of config.json of yuvalkirstain/PickScore_v1, the CLIP of
laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""

VIT_L_14 = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "eos_token_id": 2,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
}
"""What matters of config.json of openai/clip-vit-large-patch14."""

YOLOS_BASE = {
    "model_type": "yolos",
    "image_size": [800, 1344],
    "num_detection_tokens": 100,
    "id2label": {
        str(index): "N/A" if index in (0, 12, 26, 29, 30) else f"thing {index}" for index in range(91)
    },
}
"""What matters of config.json of hustvl/yolos-base, whose other values are the defaults."""


def pair(name: str, *weight: int) -> Shapes:
    """A weight and its bias."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def clip_tower(name: str, width: int, num_layers: int) -> Shapes:
    shapes: Shapes = {}
    for layer in (f"{name}.encoder.layers.{index}" for index in range(num_layers)):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= pair(f"{layer}.self_attn.{projection}", width, width)
        shapes |= pair(f"{layer}.mlp.fc1", 4 * width, width) | pair(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= pair(f"{layer}.layer_norm1", width) | pair(f"{layer}.layer_norm2", width)
    return shapes


def clip(text: tuple[int, int], vision: tuple[int, int], projection: int) -> Shapes:
    """A whole CLIP with patches of 14 pixels at 224, from width and depth of its towers."""
    return {
        "logit_scale": (),
        "text_projection.weight": (projection, text[0]),
        "visual_projection.weight": (projection, vision[0]),
        "text_model.embeddings.token_embedding.weight": (49408, text[0]),
        "text_model.embeddings.position_embedding.weight": (77, text[0]),
        "vision_model.embeddings.class_embedding": (vision[0],),
        "vision_model.embeddings.patch_embedding.weight": (vision[0], 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": (257, vision[0]),
        **pair("text_model.final_layer_norm", text[0]),
        **pair("vision_model.pre_layrnorm", vision[0]),  # so it is spelt
        **pair("vision_model.post_layernorm", vision[0]),
        **clip_tower("text_model", *text),
        **clip_tower("vision_model", *vision),
    }


def yolos_base() -> Shapes:
    width, num_positions = 768, 800 // 16 * (1344 // 16) + 100 + 1
    shapes: Shapes = {
        "vit.embeddings.cls_token": (1, 1, width),
        "vit.embeddings.detection_tokens": (1, 100, width),
        "vit.embeddings.position_embeddings": (1, num_positions, width),
        "vit.encoder.mid_position_embeddings": (11, 1, num_positions, width),
        **pair("vit.embeddings.patch_embeddings.projection", width, 3, 16, 16),
        **pair("vit.layernorm", width),
    }
    for layer in (f"vit.encoder.layer.{index}" for index in range(12)):
        for projection in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= pair(f"{layer}.attention.{projection}", width, width)
        shapes |= pair(f"{layer}.intermediate.dense", 4 * width, width) | pair(
            f"{layer}.output.dense", width, 4 * width
        )
        shapes |= pair(f"{layer}.layernorm_before", width) | pair(f"{layer}.layernorm_after", width)
    for head, size in (("class_labels_classifier", 92), ("bbox_predictor", 4)):
        for index, out in enumerate((width, width, size)):
            shapes |= pair(f"{head}.layers.{index}", out, width)
    return shapes


def on_meta(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def config_of(folder: Path, settings: dict[str, Any], config_class: Any) -> Any:
    """The settings through the library's own reader of a folder."""
    (folder / "config.json").write_text(json.dumps(settings))
    return config_class.from_pretrained(folder)


@pytest.mark.parametrize(
    ("settings", "shapes", "num_weights"),
    [
        pytest.param(VIT_H_14, clip((1024, 24), (1280, 32), 1024), 986_109_441, id="PickScore_v1"),
        pytest.param(VIT_L_14, clip((768, 12), (1024, 24), 768), 427_616_513, id="clip-vit-large-patch14"),
    ],
)
def test_full_size_clip_checkpoint_fits(
    settings: dict[str, Any], shapes: Shapes, num_weights: int, tmp_path: Path
) -> None:
    with torch.device("meta"):
        network = transformers.CLIPModel(config_of(tmp_path, settings, transformers.CLIPConfig))
    state = on_meta(shapes)
    assert sum(value.numel() for value in state.values()) == num_weights
    load_strictly(network, state, tmp_path)
    assert (network.config.vision_config.image_size, network.config.text_config.max_position_embeddings) == (
        224,
        77,
    )
    with pytest.raises(ValueError, match=r"1 missing \(logit_scale\)"):
        load_strictly(
            network, {name: value for name, value in state.items() if name != "logit_scale"}, tmp_path
        )


def test_full_size_aesthetic_encoder_fits(tmp_path: Path) -> None:
    with torch.device("meta"):
        config = config_of(tmp_path, VIT_L_14, transformers.CLIPVisionConfig)
        network = transformers.CLIPVisionModelWithProjection(config)
    shapes = {
        name: shape
        for name, shape in clip((768, 12), (1024, 24), 768).items()
        if not name.startswith(OTHER_TOWER)
    }
    load_strictly(network, on_meta(shapes), tmp_path)
    assert (network.config.projection_dim, network.config.image_size) == (768, 224)


def test_full_size_detector_checkpoint_fits(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = transformers.YolosForObjectDetection(
            config_of(tmp_path, YOLOS_BASE, transformers.YolosConfig)
        )
    known = network.state_dict()
    state = on_meta(
        {RENAMED[name] if RENAMED.get(name) in known else name: shape for name, shape in yolos_base().items()}
    )
    load_strictly(network, state, tmp_path)
    assert class_index("thing 17", network.config.id2label) == 17
    assert fitted(320, 512, 800, 1333) == (800, 1280)


@pytest.fixture
def detector_folder(tmp_path: Path) -> Iterator[Path]:
    """hustvl/yolos-base with random weights, as its files are: half a gigabyte, removed at once."""
    config_of(tmp_path, YOLOS_BASE, transformers.YolosConfig)
    statistics = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": 800, "max_size": 1333, **statistics})
    )
    generator = torch.Generator().manual_seed(0)
    shapes = yolos_base()
    state = {
        name: torch.randn(shape, generator=generator) * shape[-1] ** -0.5 for name, shape in shapes.items()
    }
    save_file(state, tmp_path / "model.safetensors")
    yield tmp_path
    (tmp_path / "model.safetensors").unlink()


@pytest.mark.chaos
def test_full_size_detector_scores(detector_folder: Path) -> None:
    reward = rewards.build(
        RewardConfig(reward="object_detection", weights=str(detector_folder), object="thing 17"), device="cpu"
    )
    frames = pictures(45, 80, batch=1, num_frames=1).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(frames, [""]).sum(), frames)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_old_forms_of_a_clip_checkpoint_are_read(tmp_path: Path) -> None:
    """``pytorch_model.bin`` in half precision with the ``position_ids`` that old versions of transformers
    saved."""
    folder = make_clip(tmp_path / "clip")
    new: Any = rewards.build(RewardConfig(reward="clip_score", weights=str(folder)), device="cpu")
    assert isinstance(new, TransformersClipReward)
    assert (tuple(new.image_mean), tuple(new.image_std)) == (CLIP_MEAN, CLIP_STD)
    state = {name: value.half() for name, value in new.clip.state_dict().items()}
    state |= {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    old: Any = rewards.build(RewardConfig(reward="clip_score", weights=str(folder)), device="cpu")
    frames = pictures(32, 32)
    # weights rounded to 11 bits, on scores of up to 100
    torch.testing.assert_close(old(frames, ["a cat"] * 2), new(frames, ["a cat"] * 2), atol=0.1, rtol=0)
