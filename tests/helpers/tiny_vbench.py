"""Tiny checkpoints of the networks of VBench's metrics in their published layouts, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torchvision.models.optical_flow import raft_small

from tests.helpers.tiny_clips import save_clip
from tests.helpers.tiny_scorers import enliven
from vader_ray.metrics.core.musiq import Musiq

OLD_NAMES = (
    ("layers.", "encoder.layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
"""Parts of names in transformers 5, and those of published vision transformers."""


def save_dino(folder: Path) -> Path:
    """A vision transformer of two layers for images of 32 pixels, with the names of 2021."""
    torch.manual_seed(8)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    network = transformers.ViTModel(config, add_pooling_layer=False)
    enliven(network)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    state = {}
    for name, value in network.state_dict().items():
        for new, old in OLD_NAMES:
            name = name.replace(new, old)
        state[name] = value
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def save_laion_head(folder: Path) -> Path:
    """LAION's linear layer for the tiny CLIP, which has 24 features."""
    torch.manual_seed(9)
    path = folder / "sa_0_4_vit_l_14_linear.pth"
    torch.save({"weight": torch.randn(1, 24), "bias": torch.tensor([5.0])}, path)
    return path


def save_musiq(folder: Path) -> Path:
    """A MUSIQ of two blocks and 12 features."""
    torch.manual_seed(10)
    network = Musiq(width=12, blocks=2)
    enliven(network)
    path = folder / "musiq_spaq_ckpt-358bb6af.pth"
    torch.save(network.state_dict(), path)
    return path


def save_raft(folder: Path, *, flow: float | None = None, num_updates: int = 1) -> Path:
    """A small RAFT with random weights; or with weights of 0 but for a bias, so that its flow is ``flow``
    pixels to the right at each pixel after ``num_updates`` iterations, whatever the frames."""
    torch.manual_seed(11)
    network = raft_small()
    if flow is not None:
        for parameter in network.parameters():
            parameter.data.zero_()
        network.update_block.flow_head.conv2.bias.data[0] = flow / 8 / num_updates
    path = folder / "raft_small.pth"
    torch.save(network.state_dict(), path)
    return path


def options(folder: Path) -> dict[str, dict[str, Any]]:
    """Options of every metric with networks, from a folder that does not exist yet."""
    folder.mkdir(parents=True)
    clip, dino = str(save_clip(folder / "clip")), str(save_dino(folder / "dino"))
    musiq, head, raft = (str(save(folder)) for save in (save_musiq, save_laion_head, save_raft))
    flow = {"architecture": "small", "num_updates": 1}
    return {
        "clip_diversity": {"weights": clip},
        "subject_consistency": {"weights": dino},
        "background_consistency": {"weights": clip},
        "aesthetic_quality": {"encoder": clip, "head": head},
        "imaging_quality": {"weights": musiq},
        "dynamic_degree": {"weights": raft, **flow},
        "warp_error": {"weights": raft, **flow},
        "vbench_quality": {
            "dino": dino,
            "clip": clip,
            "encoder": clip,
            "head": head,
            "musiq": musiq,
            "raft": raft,
            "architecture": "small",
        },
    }


def optical_flow(folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return {"weights": str(save_raft(folder)), "architecture": "small", "num_updates": 1}
