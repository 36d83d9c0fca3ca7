"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL with random weights, under the names and in the files of published
checkpoints."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import pre_tokenizers, trainers
from torch import Tensor, nn

from vader_ray.rewards import hpsv3
from vader_ray.shapes.train._qwen import SPECIAL, empty_tokenizer

WIDTH = 32
CRITERIA = (
    "Rate the video.\nIts looks: <|VQ_reward|>\nEND\nIts motion: <|MQ_reward|>\nEND\n"
    "Textual prompt - {text_prompt}\nIts match: <|TA_reward|>\nEND\n"
)
"""Words of the tests' own; the published ones are a file of the user."""
STATISTICS = {"VQ_mean": 3.6757, "VQ_std": 2.2476, "MQ_mean": 1.1646, "MQ_std": 1.3811, "TA_mean": 2.8105}
STATISTICS |= {"TA_std": 2.5121}
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False}
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
}
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 4, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_heads": 4,
        "fullatt_block_indexes": [1],
        "window_size": 112,
        "tokens_per_second": 2,
    },
    "qwen3_vl": {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_heads": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}


@lru_cache(maxsize=1)
def tokenizer_text() -> str:
    """A byte-level BPE in the form of Qwen's tokenizer.json, with merges for the words of the tests."""
    tokenizer = empty_tokenizer()
    words = [hpsv3.TEMPLATE.read_text(encoding="utf-8"), CRITERIA, *["Yes No 1 2 3 4 5"] * 9]
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return str(tokenizer.to_str())


def save_base(folder: Path, family: str, *, tied: bool = False) -> Path:
    """config.json in the flat form of the hub (nested for Qwen3-VL), and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_text())
    ids = {f"{name}_token_id": index(f"<|{name}_pad|>") for name in ("image", "video")}
    ids |= {f"vision_{name}_token_id": index(f"<|vision_{name}|>") for name in ("start", "end")}
    text: dict[str, Any] = {**TEXT, "vocab_size": num_tokens() + 7, "rope_theta": 1000000.0}
    vision = {**VISION[family], "model_type": family, "in_chans": 3}
    common = {"model_type": family, "tie_word_embeddings": tied, "vision_config": vision, **ids}
    sections = {"type": "mrope", "mrope_section": [2, 1, 1]}
    if family == "qwen3_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        text |= {"head_dim": 8, "rope_scaling": rope, "model_type": "qwen3_vl_text"}
        config = {**common, "text_config": text}
    else:
        config = {**common, **text, "rope_scaling": sections}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@lru_cache(maxsize=1)
def _vocabulary() -> dict[str, int]:
    return tokenizers.Tokenizer.from_str(tokenizer_text()).get_vocab(with_added_tokens=True)


def index(token: str) -> int:
    return _vocabulary()[token]


def num_tokens() -> int:
    return len(_vocabulary())


def stock_model(folder: Path, *, seed: int = 0, rows: int | None = None) -> Any:
    """The stock network of transformers with lively random weights, tokens and images of like size."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if rows is not None:
        config.text_config.vocab_size = rows
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomise(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(std=0.5)
    return model.eval()


def randomise(network: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers 4.45."""
    return {
        name.replace("model.visual.", "visual.").replace(
            "model.language_model.", "model."
        ): value.contiguous()
        for name, value in state.items()
    }


def save_judge(folder: Path, family: str = "qwen2_5_vl", *, tied: bool = False) -> Any:
    """A whole checkpoint, as on the hub; returns the stock network."""
    model = stock_model(save_base(folder, family, tied=tied))
    state = dict(model.state_dict())
    if tied:
        del state["lm_head.weight"]
    save_file(state if family == "qwen3_vl" else published_names(state), folder / "model.safetensors")
    return model


def save_hpsv3(folder: Path) -> tuple[Any, nn.Sequential]:
    """``HPSv3.safetensors`` with base files beside it; returns the stock network and the head."""
    model = stock_model(save_base(folder, "qwen2_vl"), rows=num_tokens() + 1)
    head = nn.Sequential(
        nn.Linear(WIDTH, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    ).eval()
    randomise(head)
    state = published_names(dict(model.state_dict()))
    state |= {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file(state, folder / "HPSv3.safetensors")
    return model, head


def save_video_reward(
    folder: Path, *, split: bool = False, max_frame_pixels: int = 9 * 28 * 28
) -> tuple[Any, nn.Linear]:
    """A published folder; returns the stock network with LoRA merged, and the head.

    ``split``: the adapter, the other trained weights and the base network in files of their own.
    """
    model = stock_model(save_base(folder, "qwen2_vl", tied=True), rows=num_tokens() + 3)
    head = nn.Linear(WIDTH, 3, bias=False)
    nn.init.normal_(head.weight, std=0.4)
    settings = {
        "data_config": {
            "fps": 2,
            "max_frame_pixels": max_frame_pixels,
            "prompt_template_type": "detailed_special",
        },
        "model_config": {"output_dim": 3, "reward_token": "special"},
        "peft_lora_config": LORA,
        "inference_config": STATISTICS,
    }
    (folder / "model_config.json").write_text(json.dumps(settings))
    (folder / "template.txt").write_text(CRITERIA)
    names = published_names(dict(model.state_dict()))
    base = {name: value.clone() for name, value in names.items()}
    lora = dict[str, Tensor]()
    for name, value in base.items():
        if name.startswith("model.layers.") and name.endswith("proj.weight"):
            first, second = torch.randn(4, value.shape[1]) / 8, torch.randn(len(value), 4) / 4
            names[name].add_(2 * second @ first)
            stem = name.removesuffix(".weight")
            lora |= {f"{stem}.lora_A": first, f"{stem}.lora_B": second}
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-11352").mkdir()
    _save_parts(folder, base, lora, {"rm_head.weight": head.weight.detach()}, split)
    return model, head


def _save_parts(
    folder: Path, base: dict[str, Tensor], lora: dict[str, Tensor], head: dict[str, Tensor], split: bool
) -> None:
    last, peft = folder / "checkpoint-11352", "base_model.model."
    if split:
        adapter = {f"{peft}{name}.weight": value.contiguous() for name, value in lora.items()}
        save_file(adapter, last / "adapter_model.safetensors")
        rest = {name: value for name, value in base.items() if name.startswith("visual.")} | head
        torch.save({peft + name: value for name, value in rest.items()}, last / "non_lora_state_dict.pth")
        text = {name: value for name, value in base.items() if name not in rest and name != "lm_head.weight"}
        other = {name: torch.zeros_like(value) for name, value in rest.items() if name not in head}
        save_file(text, folder / "model-00001-of-00002.safetensors")
        save_file(other, folder / "model-00002-of-00002.safetensors")
        places = dict.fromkeys(text, "model-00001-of-00002.safetensors")
        places |= dict.fromkeys(other, "model-00002-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        return
    whole = dict[str, Tensor]()
    for name, value in (base | head).items():
        stem = name.removesuffix(".weight")
        has_lora = f"{stem}.lora_A" in lora
        whole[f"{peft}{stem}.base_layer.weight" if has_lora else peft + name] = value
    whole |= {f"{peft}{name}.default.weight": value for name, value in lora.items()}
    torch.save(whole, last / "model.pth")


def _judge(folder: Path) -> dict[str, Any]:
    save_judge(folder)
    return {"weights": str(folder), **SMALL}


def _hpsv3(folder: Path) -> dict[str, Any]:
    save_hpsv3(folder)
    return {"weights": str(folder), "pixels": 4 * 28 * 28}


def _video_reward(folder: Path) -> dict[str, Any]:
    save_video_reward(folder)
    return {"weights": str(folder)}


SMALL = {"min_pixels": 28 * 28, "max_pixels": 6 * 28 * 28}
OPTIONS = {"hpsv3": _hpsv3, "video_reward": _video_reward, "vlm_judge": _judge, "vqa_score": _judge}
"""What writes the tiny weights of a reward into a folder, and the options that name them."""
