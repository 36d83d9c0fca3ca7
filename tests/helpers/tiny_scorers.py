"""Tiny checkpoints of image scorers in their published layouts, with random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

HEAD_SIZES = (32, 16, 12, 8, 4, 1)
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "an",
    "dog",
    "cat",
    "is",
    "running",
    "eats",
    "apple",
    "red",
]
"""Vocabulary of the tiny BERT tokenizer."""


def save_image_reward(folder: Path) -> Path:
    """An ``ImageReward.pt`` of two layers for images of 32 pixels; beside it the same weights as a
    BlipForImageTextRetrieval of transformers, for an independent score."""
    torch.manual_seed(5)
    blip = transformers.BlipForImageTextRetrieval(
        transformers.BlipConfig(
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
                "layer_norm_eps": 1e-6,
            },
            text_config={
                "hidden_size": 32,
                "encoder_hidden_size": 128,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": len(WORDS),
                "max_position_embeddings": 40,
                "bos_token_id": 2,
                "sep_token_id": 3,
                "eos_token_id": 3,
            },
        )
    )
    enliven(blip)
    blip.save_pretrained(folder / "transformers")
    state = {
        f"blip.visual_encoder.{_med_name(name)}": value
        for name, value in blip.vision_model.state_dict().items()
    }
    state |= {f"blip.text_encoder.{name}": value for name, value in blip.text_encoder.state_dict().items()}
    state |= {
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "blip.vision_proj.weight": torch.zeros(3, 128),
        "blip.vision_proj.bias": torch.zeros(3),
        "blip.text_proj.weight": torch.zeros(3, 32),
        "blip.text_proj.bias": torch.zeros(3),
    }
    state |= head_state("mlp.layers", (0, 2, 4, 6, 7))
    torch.save(state, folder / "ImageReward.pt")
    text = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 40,
        "layer_norm_eps": 1e-12,
        "encoder_width": 768,
        "model_type": "bert",
    }
    (folder / "med_config.json").write_text(json.dumps(text))
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def _med_name(name: str) -> str:
    """The published name of a weight of BLIP's image encoder."""
    for ours, theirs in (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("encoder.layers", "blocks"),
        ("post_layernorm", "norm"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"),
        ("layer_norm", "norm"),
    ):
        name = name.replace(ours, theirs)
    return name


def head_state(name: str, indices: tuple[int, ...]) -> dict[str, Tensor]:
    """Linear layers in a published layout."""
    state = {}
    for index, wide, narrow in zip(indices, HEAD_SIZES, HEAD_SIZES[1:], strict=False):
        state[f"{name}.{index}.weight"] = torch.randn(narrow, wide) * 1.5 / math.sqrt(wide)
        state[f"{name}.{index}.bias"] = 0.1 * torch.randn(narrow)
    return state


def save_mps(folder: Path) -> Path:
    """An ``MPS_overall.pth`` of two layers of CLIP for images of 32 pixels, with CLIP's tokenizer."""
    from tests.helpers.tiny_rewards import clip_tokenizer

    torch.manual_seed(6)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8, "projection_dim": 128},
            text_config={
                **tower,
                "bos_token_id": 49406,
                "eos_token_id": 49407,
                "max_position_embeddings": 40,
                "projection_dim": 128,
            },
            projection_dim=128,
            logit_scale_init_value=math.log(100),
        )
    )
    enliven(clip)
    clip.save_pretrained(folder / "clip")
    clip_tokenizer(40).save_pretrained(folder / "clip")
    state = {f"model.{name}": value for name, value in clip.state_dict().items()}
    state["model.text_model.embeddings.position_ids"] = torch.arange(40)[None]
    shapes: dict[str, tuple[int, ...]] = {
        "0.fn.to_q": (128, 128),
        "0.fn.to_kv": (128, 128),
        "0.fn.to_out": (128, 128),
        "0.fn.ff.0": (1024, 128),
        "0.fn.ff.2": (128, 512),
        "1.fn.fused_attn_ff_proj": (1280, 128),
        "1.fn.attn_out": (128, 128),
        "1.fn.ff_out.1": (128, 512),
    }
    for layer in (f"cross_model.layers.{index}" for index in range(4)):
        state |= {
            f"{layer}.{name}.weight": torch.randn(shape) / math.sqrt(shape[1])
            for name, shape in shapes.items()
        }
        for part in (0, 1):
            state[f"{layer}.{part}.fn.norm.weight"] = 1 + 0.1 * torch.randn(128)
            state[f"{layer}.{part}.fn.norm.bias"] = torch.zeros(128)
        state[f"{layer}.1.fn.rotary_emb.inv_freq"] = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    torch.save(state, folder / "MPS_overall.pth")
    return folder


def save_siglip(folder: Path) -> Path:
    """A whole SigLIP of two layers for images of 32 pixels, its processor, and the head of aesthetic v2.5."""
    torch.manual_seed(7)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    network = transformers.SiglipModel(
        transformers.SiglipConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            text_config={
                **tower,
                "vocab_size": 99,
                "bos_token_id": 97,
                "eos_token_id": 98,
                "pad_token_id": 1,
            },
        )
    )
    enliven(network)
    network.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.SiglipImageProcessorPil(size=size).save_pretrained(folder)
    head = {name: value.bfloat16() for name, value in head_state("scoring_head", (0, 2, 4, 6, 8)).items()}
    torch.save(head, folder / "aesthetic_predictor_v2_5.pth")
    return folder


def enliven(network: nn.Module) -> None:
    """Weights so large that another image gives a clearly other answer, as in a trained network."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def image_reward(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return {"weights": str(save_image_reward(folder))}


def mps(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    save_mps(folder)
    return {"weights": str(folder / "MPS_overall.pth"), "clip": str(folder / "clip")}


def aesthetic_v2_5(folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    save_siglip(folder)
    return {"encoder": str(folder), "head": str(folder / "aesthetic_predictor_v2_5.pth")}


OPTIONS = {"image_reward": image_reward, "mps": mps, "aesthetic_v2_5": aesthetic_v2_5}
"""What writes the tiny weights of a reward into a folder, and the options that name them."""
