"""Tiny checkpoints of network rewards in their published formats, with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from torch import nn

from tests.helpers import tiny_clips, tiny_qwen, tiny_scorers, tiny_vbench
from vader_ray import rewards
from vader_ray.config import RewardConfig

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 24,
}
LABELS = ("N/A", "person", "bicycle", "car", "fire hydrant", "N/A", "cat")


def build_reward(name: str, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A reward on the CPU, its network in a precision that recipes need not offer."""
    reward = rewards.build(RewardConfig(reward=name, **options), device="cpu")
    return reward.to(dtype) if isinstance(reward, nn.Module) else reward


def liven(network: nn.Module) -> None:
    """Weights so large that another image gives a clearly other answer, as in a trained network."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))


def clip_tokenizer(length: int = 77) -> transformers.CLIPTokenizer:
    """CLIP's own vocabulary, from open_clip's copy of it."""
    original = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): index for token, index in original.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocab, merges=list(original.bpe_ranks), model_max_length=length)


def make_clip(folder: Path, *, eos_token_id: int = 49407) -> Path:
    """A whole CLIPModel with its processor and tokenizer."""
    torch.manual_seed(2)
    config = transformers.CLIPConfig(
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        text_config={
            **TOWER,
            "bos_token_id": 49406,
            "eos_token_id": eos_token_id,
            "max_position_embeddings": 12,
        },
        projection_dim=24,
        logit_scale_init_value=math.log(100),
    )
    clip = transformers.CLIPModel(config)
    liven(clip)
    clip.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    clip_tokenizer(12).save_pretrained(folder)
    return folder


def make_detector(folder: Path) -> Path:
    """A YolosForObjectDetection with position embeddings in the middle layers, COCO-like labels and its
    processor."""
    torch.manual_seed(3)
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=[48, 80],
        patch_size=16,
        num_detection_tokens=10,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    detector = transformers.YolosForObjectDetection(config)
    liven(detector)
    with torch.no_grad():
        last = detector.class_labels_classifier.layers[-1]
        last.weight *= 2  # some boxes are sure of their class, others of none
        last.bias[
            [index for index, label in enumerate(LABELS) if label == "N/A"]
        ] = -9  # trained ones never say this
    detector.save_pretrained(folder)
    size = {"shortest_edge": 48, "longest_edge": 80}
    transformers.YolosImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def pickscore(folder: Path) -> dict[str, Any]:
    return {"weights": str(make_clip(folder))}


def clip_score(folder: Path) -> dict[str, Any]:
    return {"weights": str(make_clip(folder))}


def object_detection(folder: Path) -> dict[str, Any]:
    return {"weights": str(make_detector(folder)), "object": "cat"}


def relative(folder: Path) -> dict[str, Any]:
    of = {"reward": "pickscore", "weights": str(make_clip(folder))}
    return {"of": of, "positive": "A photo. {prompt}", "negative": "CG. {prompt}"}


OPTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "pickscore": pickscore,
    "clip_score": clip_score,
    "object_detection": object_detection,
    "relative": relative,
    **tiny_clips.OPTIONS,
    **tiny_scorers.OPTIONS,
    "optical_flow": tiny_vbench.optical_flow,
    **tiny_qwen.OPTIONS,
}
"""Options with which the contract test builds a reward, from a folder that does not exist yet."""
