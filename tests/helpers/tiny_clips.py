"""Tiny checkpoints of video networks, random weights in the published formats."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn

LABELS = (
    "moving left",
    "moving right",
    "playing guitar",
    "playing piano",
    "riding a bike",
    "walking the dog",
    "archery",
)


def save_vjepa(folder: Path) -> Path:
    """A V-JEPA 2 for 8 frames of 32 pixels: 8 × 8 patches, tubelets of 2."""
    torch.manual_seed(2)
    network = transformers.VJEPA2Model(
        transformers.VJEPA2Config(
            crop_size=32,
            patch_size=4,
            frames_per_clip=8,
            hidden_size=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            mlp_ratio=2.0,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=2,
            pred_mlp_ratio=2.0,
        )
    )
    _randomise(network)
    network.save_pretrained(folder)
    transformers.VJEPA2VideoProcessor(crop_size=32).save_pretrained(folder)
    return folder


def save_action(folder: Path) -> Path:
    """A VideoMAE classifier for 8 frames of 32 pixels, with the image processor that published checkpoints
    come with."""
    torch.manual_seed(3)
    network = transformers.VideoMAEForVideoClassification(
        transformers.VideoMAEConfig(
            image_size=32,
            patch_size=8,
            num_frames=8,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            use_mean_pooling=True,
            id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        )
    )
    _randomise(network)
    network.save_pretrained(folder)
    transformers.VideoMAEImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A whole CLIP with its processor."""
    torch.manual_seed(4)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 24,
    }
    network = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            text_config={**tower, "vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98},
            projection_dim=24,
        )
    )
    _randomise(network)
    network.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    return folder


OPTIONS = {
    "vjepa": lambda folder: {"weights": str(save_vjepa(folder))},
    "action": lambda folder: {"weights": str(save_action(folder))},
}
"""What writes the tiny weights of a reward into a folder, and the options that name them."""


def _randomise(network: nn.Module) -> None:
    """Weights so large that another video gives clearly other features, as in a trained network; nothing
    stays zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif not parameter.any():
                parameter.normal_(std=0.1)
