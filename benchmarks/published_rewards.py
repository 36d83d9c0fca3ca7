"""Configuration files of published rewards and metrics, without weights, and the memory of their networks.

    python -m benchmarks.published_rewards                                # weights, and bytes of a query
    python -m benchmarks.published_rewards --reward hps --reward hpsv3 --frames 81x480x832

Nothing is downloaded: the sizes are copied from the configuration files on the hub, and memory is counted on
the meta device. The bytes are those of the frames and the gradient of one video in float32 between worker and
actor, as they are and resized. With ``--reward`` it counts what a process needs that scores one video and
computes the gradient with respect to its frames: weights, frames and activations, with the layers of the
Qwen networks computed again in the backward pass or kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import transformers as t
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from benchmarks.published import tokenizer
from vader_ray import metrics, rewards
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.config import MetricConfig, RewardConfig
from vader_ray.orchestration.reward_service.transport import spec_of
from vader_ray.preflight.estimate import num_bytes, without_garbage_collection
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.types import Frames, Scores

GIB, MIB = 2**30, 2**20
CHUNK_SIZE = 4
"""Frames of a video that a frame reward scores at once: ``runtime.decode_chunk_size``."""
Writers: TypeAlias = Mapping[str, Callable[[Path], Path]]
"""Options of a reward or metric that name a file or folder, and what writes it."""
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def write_vjepa(folder: Path) -> Path:
    """``facebook/vjepa2-vitl-fpc64-256``, which is transformers' default."""
    t.VJEPA2Config().save_pretrained(folder)
    processor = {
        "size": {"shortest_edge": 292},
        "crop_size": {"height": 256, "width": 256},
        **IMAGENET,
    }
    (folder / "video_preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


def write_pickscore(folder: Path) -> Path:
    """``yuvalkirstain/PickScore_v1``, a CLIP ViT-H-14, with a small tokenizer."""
    text = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    return write_clip(folder, text, vision, projection_dim=1024)


def write_clip_vit_l(folder: Path) -> Path:
    """``openai/clip-vit-large-patch14``, the encoder of the aesthetic reward."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    return write_clip(folder, text, vision, projection_dim=768)


def write_clip(folder: Path, text: dict[str, int], vision: dict[str, int], *, projection_dim: int) -> Path:
    """The configuration files of a CLIP in transformers' format."""
    parts = {
        name: {**sizes, "projection_dim": projection_dim}
        for name, sizes in {"text_config": text, "vision_config": vision}.items()
    }
    t.CLIPConfig(**parts, projection_dim=projection_dim).save_pretrained(folder)
    t.CLIPImageProcessor().save_pretrained(folder)
    tokenizer(77).save_pretrained(folder)
    return folder


def write_clip_vit_b(folder: Path) -> Path:
    """``openai/clip-vit-base-patch32``, which is transformers' default."""
    return write_clip(folder, {}, {}, projection_dim=512)


def write_processor(folder: Path, **settings: Any) -> Path:
    """An image processor's settings."""
    (folder / "preprocessor_config.json").write_text(json.dumps({**IMAGENET, **settings}), encoding="utf-8")
    return folder


def write_dino(folder: Path) -> Path:
    """``facebook/dino-vitb16``, which is transformers' default."""
    t.ViTConfig().save_pretrained(folder)
    return folder


def write_siglip(folder: Path) -> Path:
    """The image tower of ``google/siglip-so400m-patch14-384``."""
    t.SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ).save_pretrained(folder)
    return write_processor(folder)


def write_yolos(folder: Path) -> Path:
    """``hustvl/yolos-base``."""
    t.YolosConfig(image_size=[800, 1344], use_mid_position_embeddings=True, num_labels=91).save_pretrained(
        folder
    )
    return write_processor(folder, size={"shortest_edge": 800, "longest_edge": 1333})


def write_videomae(folder: Path) -> Path:
    """``MCG-NJU/videomae-base-finetuned-kinetics``."""
    t.VideoMAEConfig(num_labels=400).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    return write_processor(folder, **sides)


def write_image_reward(folder: Path) -> Path:
    """``THUDM/ImageReward``: its text encoder is BERT's base, with two more tokens."""
    settings = t.BertConfig(vocab_size=30524).to_dict()
    (folder / "med_config.json").write_text(json.dumps(settings), encoding="utf-8")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    t.BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return folder


QWEN_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
QWEN_2B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}
CRITERIA = "a" + " a" * 820 + "<|VQ_reward|><|MQ_reward|>{text_prompt}<|TA_reward|>"
"""About as many tokens as VideoReward's own text, which is not part of this package."""


def write_qwen(folder: Path, family: str, sizes: Mapping[str, int], vision: Mapping[str, Any]) -> Path:
    """A Qwen network of 28 layers, in the flat form of the hub, and a tokenizer."""
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    config = {"model_type": family, **sizes, "num_hidden_layers": 28, "rope_scaling": rope}
    return _write_network(folder, {**config, "vision_config": dict(vision)})


def _write_network(folder: Path, config: Mapping[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _word_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token for each word or mark, of which Qwen's has about as many."""
    special = ["endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    words = Tokenizer(models.WordLevel({"word": 0}, unk_token="word"))  # noqa: S106
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.add_special_tokens([f"<|{name}|>" for name in special])
    return words


def write_qwen2_vl(folder: Path, sizes: Mapping[str, int]) -> Path:
    """A Qwen2-VL, whose sizes have one vision tower in common."""
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
    return write_qwen(folder, "qwen2_vl", sizes, {**vision, "hidden_size": sizes["hidden_size"]})


def write_hpsv3(folder: Path) -> Path:
    """``MizzenAI/HPSv3`` with files of ``Qwen/Qwen2-VL-7B-Instruct``."""
    return write_qwen2_vl(folder, QWEN_7B)


def write_video_reward(folder: Path) -> Path:
    """``KwaiVGI/VideoReward`` with files of ``Qwen/Qwen2-VL-2B-Instruct``, and words of our own."""
    settings = {
        "data_config": {"fps": 2, "max_frame_pixels": 200_704},
        "peft_lora_config": {"lora_r": 64, "lora_alpha": 128},
        "inference_config": {},
    }
    write_qwen2_vl(folder, QWEN_2B)
    (folder / "model_config.json").write_text(json.dumps(settings))
    (folder / "template.txt").write_text(CRITERIA)
    return folder


def write_qwen2_5_vl(folder: Path) -> Path:
    """``Qwen/Qwen2.5-VL-7B-Instruct``."""
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": QWEN_7B["hidden_size"],
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "tokens_per_second": 2,
    }
    return write_qwen(folder, "qwen2_5_vl", QWEN_7B, vision)


def write_qwen3_vl_4b(folder: Path) -> Path:
    """``Qwen/Qwen3-VL-4B-Instruct``."""
    text = {
        "model_type": "qwen3_vl_text",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_theta": 5_000_000,
        "rope_scaling": {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True},
    }
    vision = {
        "model_type": "qwen3_vl",
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    }
    config = {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision}
    return _write_network(folder, {**config, "tie_word_embeddings": True})


REWARDS: dict[str, Writers] = {
    "hps": {},
    "pickscore": {"weights": write_pickscore},
    "clip_score": {"weights": write_clip_vit_l},
    "image_reward": {"weights": write_image_reward},
    "mps": {"clip": write_pickscore},
    "hpsv3": {"weights": write_hpsv3},
    "video_reward": {"weights": write_video_reward},
    "vlm_judge": {"weights": write_qwen2_5_vl},
    "vqa_score": {"weights": write_qwen2_5_vl},
    "aesthetic": {"encoder": write_clip_vit_l},
    "aesthetic_v2_5": {"encoder": write_siglip},
    "object_detection": {"weights": write_yolos},
    "action": {"weights": write_videomae},
    "vjepa": {"weights": write_vjepa},
    "optical_flow": {},
}
"""Rewards with weights, and what their options need; MPS has the CLIP of PickScore."""
OTHER_WEIGHTS: dict[str, Writers] = {"Qwen/Qwen3-VL-4B-Instruct": {"weights": write_qwen3_vl_4b}}
"""The same for weights that are not a reward's default, by their repository."""
METRICS: dict[str, Writers] = {
    "subject_consistency": {"weights": write_dino},
    "background_consistency": {"weights": write_clip_vit_b},
    "dynamic_degree": {},
    "warp_error": {},
    "aesthetic_quality": {"encoder": write_clip_vit_l},
    "imaging_quality": {},
    "vbench_quality": {"dino": write_dino, "clip": write_clip_vit_b, "encoder": write_clip_vit_l},
    "clip_diversity": {"weights": write_clip_vit_l},
}
"""Metrics with weights, and what their options need."""
OTHER_OPTIONS: dict[str, dict[str, Any]] = {
    "object_detection": {"object": "LABEL_7"},
    "action": {"action": "LABEL_7"},
}
"""Options without a default."""
QWEN_REWARDS = ("hpsv3", "video_reward", "vlm_judge", "vqa_score")
"""Rewards whose published precision is bfloat16, and which have the option ``checkpointing``."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Counted bytes of a reward in a process of its own."""

    weights: int
    peak: int
    """Weights, frames, their gradient and activations."""


def written(writers: Writers, folder: Path) -> dict[str, str]:
    """Write the files of a reward or metric and return the options that name them."""
    for setting, write in writers.items():
        (folder / setting).mkdir(parents=True, exist_ok=True)
        write(folder / setting)
    return {setting: str(folder / setting) for setting in writers}


def writers_of(spec: RewardConfig) -> Writers:
    """Return what the options of a recipe's reward need; nothing for a reward without published weights."""
    weights = str(spec.options.get("weights"))
    return OTHER_WEIGHTS.get(weights) or REWARDS.get(spec.reward, {})


def reward_of(name: str, folder: Path, **changes: Any) -> RewardConfig:
    """Return a reward of published size in its published precision."""
    precision = "bfloat16" if name in QWEN_REWARDS else "float32"
    options = {**written(REWARDS[name], folder), **OTHER_OPTIONS.get(name, {}), **changes}
    return RewardConfig(reward=name, **{"precision": precision, **options})


def count_memory(spec: RewardConfig, num_frames: int, height: int, width: int) -> Memory:
    """Count the memory of scores and gradient of one video.

    Of a frame reward the last chunk alone is run, beside the frames and the gradient of the others: each
    chunk takes the same memory.
    """
    with without_garbage_collection(), meta_device_mode():
        reward = rewards.build(spec, device=META)
        weights = num_bytes([reward]) if isinstance(reward, nn.Module) else 0
        size = min(CHUNK_SIZE, num_frames) if reward.granularity == "frame" else num_frames
        with PeakMemoryTracker(META.type) as tracker:
            frames = torch.zeros(1, num_frames, 3, height, width, device=META)
            others = torch.zeros_like(frames[:, size:])
            _, gradient = score_and_gradient(reward, frames[:, -size:], ["a cat is running"], CHUNK_SIZE)
            torch.cat([others, gradient], dim=1)
    return Memory(weights, weights + tracker.peak)


IN_USE: list[int] = []
"""What `record_memory` has found."""


def record_memory(frames: Frames, prompts: Sequence[str]) -> Scores:  # noqa: ARG001
    """A reward that takes no memory: it records the bytes in use, without its own frames and their copy."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, PeakMemoryTracker):
            IN_USE.append(mode.now - 2 * frames.numel() * frames.element_size())
    return frames.mean(dim=(1, 2, 3, 4))


def show_weights(size: tuple[int, int, int]) -> None:
    """Print the weights of all rewards and metrics, and the bytes of a query to a remote reward."""
    table = Table(
        "reward or metric",
        "million weights",
        "GiB, float32",
        "GiB, bfloat16",
        "MiB moved",
        "resized",
        box=None,
    )
    with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as folder, meta_device_mode():
        for name in (*REWARDS, *METRICS):
            network = _network(name, Path(folder) / name)
            number = sum(each.numel() for each in network.parameters())
            moved = _moved(network, size) if name in REWARDS else ()
            table.add_row(
                name,
                f"{number / 1e6:.4g}",
                f"{4 * number / GIB:.2f}",
                f"{2 * number / GIB:.2f}",
                *(f"{num_bytes / MIB:.3g}" for num_bytes in moved),
            )
    Console(width=100, highlight=False).print(table)


def _moved(reward: Any, size: tuple[int, int, int]) -> tuple[int, int]:
    """Return the bytes of the frames and the gradient of one video in float32, as they are and resized."""
    num_frames, height, width = size
    spec = spec_of(reward, height, width)
    unresized, resized = (2 * 4 * 3 * num_frames * each.num_pixels for each in (spec.unresized, spec.resized))
    return unresized, resized


def _network(name: str, folder: Path) -> nn.Module:
    if name in REWARDS:
        loaded: object = rewards.build(reward_of(name, folder), device=META)
    else:
        loaded = metrics.build(MetricConfig(metric=name, **written(METRICS[name], folder)), device=META)
    assert isinstance(loaded, nn.Module)
    return loaded


def show_memory(names: Sequence[str], size: tuple[int, int, int]) -> None:
    """Print the memory of scores and gradient of one video."""
    table = Table(
        "reward", "precision", "GiB of weights", "GiB at the peak", "without recomputation", box=None
    )
    for name in names:
        found = list[Memory]()
        for changes in ({}, {"checkpointing": False})[: 1 + (name in QWEN_REWARDS)]:
            with tempfile.TemporaryDirectory(prefix="vader_ray_published_") as folder:
                spec = reward_of(name, Path(folder), **changes)
                found.append(count_memory(spec, *size))
        peaks = [f"{each.peak / GIB:.1f}" for each in found]
        table.add_row(name, spec.precision, f"{found[0].weights / GIB:.1f}", *peaks)
    Console(width=100, highlight=False).print(table)


def main(
    reward: Annotated[
        list[str] | None, typer.Option(help="count scores and gradient of this one; several times")
    ] = None,
    frames: Annotated[str, typer.Option(help="FRAMESxHEIGHTxWIDTH of the video")] = "81x480x832",
) -> None:
    """Count the memory of rewards and metrics at their published sizes."""
    num_frames, height, width = map(int, frames.split("x"))
    if reward is None:
        show_weights((num_frames, height, width))
    else:
        show_memory(reward, (num_frames, height, width))


if __name__ == "__main__":
    typer.run(main)
