"""Counted memory of HPSv3 and VideoReward at their published sizes, on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny_qwen import LORA, STATISTICS, tokenizer_text
from vader_ray import rewards
from vader_ray.config import RewardConfig
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.trackers import PeakMemoryTracker

GIB = 2.0**30
QWEN2_VL: dict[str, dict[str, int]] = {
    "hpsv3": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "video_reward": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
}
"""What matters of config.json of Qwen/Qwen2-VL-7B-Instruct and Qwen/Qwen2-VL-2B-Instruct."""
TEXTS = {
    "hpsv3": "a" + " a" * 600 + "<|Reward|>{text_prompt}",
    "video_reward": "a" + " a" * 820 + "<|VQ_reward|><|MQ_reward|>{text_prompt}<|TA_reward|>",
}
"""Texts of about the published numbers of tokens."""


def save_settings(folder: Path, name: str) -> None:
    sizes = QWEN2_VL[name]
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": sizes["hidden_size"], "num_heads": 16}
    rope = {"type": "mrope", "mrope_section": [16, 24, 24]}
    config = {"model_type": "qwen2_vl", **sizes, "num_hidden_layers": 28, "rope_scaling": rope}
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": {**vision, "mlp_ratio": 4}}))
    (folder / "tokenizer.json").write_text(tokenizer_text())
    (folder / "template.txt").write_text(TEXTS["video_reward"])
    data = {"fps": 2, "max_frame_pixels": 200_704}
    settings = {"data_config": data, "peft_lora_config": LORA, "inference_config": STATISTICS}
    (folder / "model_config.json").write_text(json.dumps(settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_frames", "weights", "peak", "peak_without"),
    [("hpsv3", 1, 14.4, 15.0, 22.5), ("video_reward", 81, 4.1, 5.8, 21.3)],
)
def test_counted_memory_is_what_the_documentation_states(
    name: str, num_frames: int, weights: float, peak: float, peak_without: float, tmp_path: Path
) -> None:
    save_settings(tmp_path, name)
    for checkpointing, expected in ((True, peak), (False, peak_without)):
        options = {"weights": str(tmp_path), "precision": "bfloat16", "checkpointing": checkpointing}
        with meta_device_mode():
            reward: Any = rewards.build(RewardConfig(reward=name, **options), device=META)
            reward.template = TEXTS[name]
            size = sum(tensor.numel() * tensor.element_size() for tensor in reward.parameters())
            with PeakMemoryTracker("meta") as tracker:
                frames = torch.zeros(1, num_frames, 3, 480, 832, device=META).requires_grad_()
                torch.autograd.grad(reward(frames, ["a"]).sum(), frames)
        assert size / GIB == pytest.approx(weights, abs=0.1)
        assert (size + tracker.peak) / GIB == pytest.approx(expected, abs=0.1)
