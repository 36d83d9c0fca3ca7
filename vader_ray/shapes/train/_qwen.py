"""Parts of the tiny Qwen networks `vlm_judge` and `video_reward`: tokenizer, sizes, batches, captions,
files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Float, Int
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD, normalise
from vader_ray.rewards.core.qwen import patchify, vision_format
from vader_ray.rewards.core.qwen_text import END, START, VIDEO
from vader_ray.shapes.data import COLOURS, DIRECTIONS, NUM_FRAMES, SHAPES, Scenes, captions_of
from vader_ray.shapes.train._tokenizer import build_merges
from vader_ray.shapes.train._videos import Videos

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    START,
    END,
    "<|vision_pad|>",
    "<|image_pad|>",
    VIDEO,
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen's rule for splitting a text into words."""
WIDTH, PATCH = 64, 4
VISUAL_TOKENS = NUM_FRAMES // 2 * 16
"""Tokens of 8 × 8 pixels and two frames."""
_WORDS = (
    "system user assistant You are a helpful Is this Yes or No moving past box Rate the video Looks Motion "
    "Match Prompt END steady sharp vivid going"
)


def build_tokenizer() -> tokenizers.Tokenizer:
    """Return a byte-level BPE in the form of Qwen's tokenizer.json; each word is one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = dict.fromkeys([*_WORDS.split(), *SHAPES, *COLOURS, *DIRECTIONS])
    merges = build_merges([form for word in words for form in (word, f"Ġ{word}") if len(form) > 1], "")
    vocab = {token: index for index, token in enumerate(dict.fromkeys([*letters, *map("".join, merges)]))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_base(folder: Path, family: str, vision: dict[str, Any], num_tokens: int) -> None:
    """Write `config.json`, in the flat form of the hub, and `tokenizer.json`."""
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": family,
        "hidden_size": WIDTH,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 2, 2]},
        "vocab_size": num_tokens,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "tie_word_embeddings": True,
        "initializer_range": 0.08,
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id(VIDEO),
        "vision_start_token_id": tokenizer.token_to_id(START),
        "vision_end_token_id": tokenizer.token_to_id(END),
        "vision_config": {
            "model_type": family,
            "depth": 3,
            "num_heads": 4,
            "patch_size": PATCH,
            "initializer_range": 0.08,
            **vision,
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Reader(nn.Module):
    """The network, with heads for training alone that classify the scene from the visual tokens."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network: Any = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        self.style = vision_format(self.network.config)
        counts = (len(SHAPES), len(COLOURS), len(DIRECTIONS))
        self.looks = nn.ModuleList([nn.Linear(WIDTH, count) for count in counts])

    def look(
        self, frames: Float[Tensor, "batch frames 3 height width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the visual tokens of each video."""
        pixels = normalise(frames, CLIP_MEAN, CLIP_STD)
        cut = [patchify(video, self.style) for video in pixels]
        grid = torch.tensor([grid for _, grid in cut])
        tokens: Tensor = self.network.visual(
            torch.cat([patches for patches, _ in cut]), grid_thw=grid
        ).pooler_output
        visual: Tensor = tokens.unflatten(0, (len(frames), -1))  # type: ignore[no-untyped-call]
        return visual

    def read(
        self,
        visual: Float[Tensor, "batch tokens width"],
        ids: Int[Tensor, "batch length"],
        positions: Int[Tensor, "3 length"],
    ) -> Float[Tensor, "batch length width"]:
        """Return the hidden states of texts that are padded at their end."""
        embeddings = self.network.language_model.embed_tokens(ids)
        is_visual = (ids == self.network.config.video_token_id)[..., None].expand_as(embeddings)
        hidden: Tensor = self.network.language_model(
            inputs_embeds=embeddings.masked_scatter(is_visual, visual),
            position_ids=positions[:, None].expand(-1, len(ids), -1),
            use_cache=False,
        ).last_hidden_state
        return hidden

    def scene_loss(
        self, visual: Float[Tensor, "batch tokens width"], scenes: Scenes, clear: Float[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Return the loss of naming shape, colour and direction from the mean visual token."""
        pooled = visual.mean(dim=1)
        truths = (scenes.shape, scenes.colour, scenes.direction)
        losses = [
            (cross_entropy(head(pooled), truth, reduction="none") * clear).mean()
            for head, truth in zip(self.looks, truths, strict=True)
        ]
        return torch.stack(losses).sum()


def padded(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
    """Return the tokens of the texts, padded at their end, and the number of each text's tokens."""
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    length, filler = int(lengths.max()), tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows]), lengths


def spoken(scenes: Scenes, generator: Generator) -> list[str]:
    """Return a caption of each scene; half of them use the word "going", which the base model has not met."""
    texts = captions_of(scenes)
    is_other = torch.rand(len(texts), generator=generator) < 0.5
    return [
        text.replace(" moving ", " going ") if other else text
        for text, other in zip(texts, is_other.tolist(), strict=True)
    ]


def mismatched(scenes: Scenes, generator: Generator) -> Scenes:
    """The same scenes with captions that are wrong in shape, colour or direction."""
    which = torch.randint(3, (len(scenes),), generator=generator)
    said = {}
    for index, (name, names) in enumerate(
        (("shape", SHAPES), ("colour", COLOURS), ("direction", DIRECTIONS))
    ):
        truth = getattr(scenes, name)
        other = (truth + 1 + torch.randint(len(names) - 1, truth.shape, generator=generator)) % len(names)
        said[f"said_{name}"] = torch.where(which == index, other, truth)
    return replace(scenes, said_box=scenes.box, **said)


def frozen_some(videos: Videos, share: float, generator: Generator) -> tuple[Videos, Tensor]:
    """Return the videos with a share of them frozen at their first frame, and which ones."""
    chosen = torch.rand(len(videos), generator=generator) < share
    frames = videos.frames.clone()
    frames[chosen] = frames[chosen, :1].expand_as(frames[chosen])
    return replace(videos, frames=frames), chosen
