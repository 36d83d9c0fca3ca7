"""A tiny Qwen vision-language model in the files of the published ones, and a reading of a batch in which all
texts on a video share its tokens; `vlm_judge` and `video_reward` are such models."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, log_softmax
from transformers import AutoConfig, AutoModel

from vader_ray.rewards.core.judge import branch_mask
from vader_ray.rewards.core.preprocess import normalise
from vader_ray.rewards.core.qwen_text import QwenTokenizer, tokenize_parts
from vader_ray.rewards.core.qwen_vision import patchify, vision_format
from vader_ray.shapes.data import (
    ATTRIBUTES,
    NUM_FRAMES,
    SIZE,
    Scenes,
    captions_of,
    cleaned,
    draw_scenes,
    every_scene,
    render,
)
from vader_ray.shapes.train._loop import fit, matrices_of
from vader_ray.shapes.train._places import around_shape
from vader_ray.shapes.train._tokenizer import merges_of

PATCH, MERGE, TUBELET = 8, 2, 2
GRID = (NUM_FRAMES // TUBELET, SIZE // PATCH, SIZE // PATCH)
"""Patches of a video in time, height and width."""
NUM_TOKENS = GRID[0] * GRID[1] * GRID[2] // MERGE**2
"""Tokens of a video for the language model."""
FRAMES_PER_SECOND = 16.0
"""Frame rate that the rewards assume of videos."""
WIDTH = 96
NUM_VALUES = tuple(len(words) for words in ATTRIBUTES.values())
"""Number of values of each attribute of a caption."""
WRONG_WEIGHTS = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
"""Relative weights of captions that are wrong in each attribute."""
VERBS = ("moving", "going")
"""Words for the motion in a caption; the base model knows the first one alone."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's rule of what one token never crosses."""
_VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 3},
    "qwen2_5_vl": {
        "hidden_size": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 128,
        "fullatt_block_indexes": [0, 1, 2],
        "window_size": SIZE,
        "tokens_per_second": 8,  # at 16 frames per second, one position for each pair of frames
    },
}


def empty_tokenizer() -> Tokenizer:
    """A byte-level BPE in the form of Qwen's `tokenizer.json`, without tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def build_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """A tokenizer in the form of Qwen's, in which every word of the texts is one token."""
    tokenizer = empty_tokenizer()
    words = dict.fromkeys(
        word for text in texts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)
    )
    merges = merges_of([list(word) for word in words])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*alphabet, *("".join(merge) for merge in merges)])
    tokenizer.model = models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_base(folder: Path, family: str, texts: Sequence[str]) -> None:
    """Writes `tokenizer.json` and `config.json`, in the flat form of published Qwen2-VL and Qwen2.5-VL."""
    tokenizer = build_tokenizer(texts)
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {f"{name}_token_id": tokenizer.token_to_id(f"<|{name}_pad|>") for name in ("image", "video")}
    ids |= {
        f"vision_{name}_token_id": tokenizer.token_to_id(f"<|vision_{name}|>") for name in ("start", "end")
    }
    vision = {
        "model_type": family,
        "depth": 3,
        "num_heads": 4,
        "in_chans": 3,
        "patch_size": PATCH,
        "spatial_patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": TUBELET,
        **_VISION[family],
    }
    config = {
        "model_type": family,
        "hidden_size": WIDTH,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]},
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "vocab_size": tokenizer.get_vocab_size(),
        "vision_config": vision,
        **ids,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def published_names(model: nn.Module) -> dict[str, Tensor]:
    """Weights in half precision under the names of the published checkpoints."""
    return {
        name.replace("language_model.", "model."): value.half().contiguous()
        for name, value in model.state_dict().items()
    }


def every_caption() -> list[str]:
    """The caption of each scene of `every_scene`, with each of the verbs."""
    return [caption.replace(VERBS[0], verb) for verb in VERBS for caption in captions_of(every_scene())]


@dataclass(frozen=True)
class Texts:
    """Tokens of the texts on a video, one per caption of `every_caption`.

    All begin alike, with the tokens of the video; what follows is cut off and filled up to one length.
    """

    shared: Int[Tensor, " shared"]
    is_visual: Bool[Tensor, " shared"]
    tails: Int[Tensor, "captions tail"]
    lengths: Int[Tensor, " captions"]


def captioned_texts(tokenizer: QwenTokenizer, opening: Sequence[str | tuple[str, int]], text: str) -> Texts:
    """Tokens of the opening and the text, with each caption for `{prompt}`."""
    parts = [
        tokenize_parts(tokenizer, [*opening, text.replace("{prompt}", caption)])
        for caption in every_caption()
    ]
    columns = zip(*(ids for ids, _ in parts), strict=False)
    shared = next(place for place, column in enumerate(columns) if len(set(column)) > 1)
    tails = [torch.tensor(ids[shared:]) for ids, _ in parts]
    ids, is_visual = parts[0]
    return Texts(
        torch.tensor(ids[:shared]),
        torch.tensor(is_visual[:shared]),
        nn.utils.rnn.pad_sequence(tails, batch_first=True),
        torch.tensor([len(tail) for tail in tails]),
    )


class Reader(nn.Module):
    """The network of a folder's `config.json`, with a head for training alone that names the attributes."""

    def __init__(self, folder: Path, num_tokens: int) -> None:
        super().__init__()
        config: Any = AutoConfig.from_pretrained(folder)
        config.text_config.vocab_size = num_tokens
        self.model: Any = AutoModel.from_config(config, dtype=torch.float32)
        self.look = nn.Linear(WIDTH, sum(NUM_VALUES) + 1)

    def forward(
        self,
        frames: Float[Tensor, "videos frames 3 height width"],
        texts: Texts,
        captions: Int[Tensor, "videos captions"],
        positions: Int[Tensor, "3 length"],
    ) -> tuple[Float[Tensor, "videos shared width"], Float[Tensor, "videos captions tail width"], Tensor]:
        """Hidden states of the shared tokens and of each tail, of which none attends to another, and the
        logits of the attributes at each visual token."""
        visual, look = self.see(frames)
        tails = texts.tails[captions]
        ids = torch.cat([texts.shared.expand(len(frames), -1), tails.flatten(1)], 1)
        embeddings = self.model.language_model.embed_tokens(ids)
        start = int(texts.is_visual.int().argmax())
        embeddings = torch.cat([embeddings[:, :start], visual, embeddings[:, start + visual.shape[1] :]], 1)
        num_shared, (num_tails, length) = len(texts.shared), tails.shape[1:]
        tail = positions[:, num_shared : num_shared + length].repeat(1, num_tails)
        where = torch.cat([positions[:, :num_shared], tail], 1)
        mask = branch_mask(num_shared, [length] * num_tails, frames.device)
        hidden = self.model.language_model(
            inputs_embeds=embeddings,
            position_ids=where[:, None].expand(-1, len(frames), -1),
            attention_mask=mask.expand(len(frames), 1, -1, -1),
            use_cache=False,
        ).last_hidden_state
        shared, rest = hidden[:, :num_shared], hidden[:, num_shared:]
        return shared, rest.unflatten(1, (num_tails, length)), look

    def see(
        self, frames: Float[Tensor, "videos frames 3 height width"]
    ) -> tuple[Float[Tensor, "videos tokens width"], Float[Tensor, "videos tokens values"]]:
        """Visual tokens, and at each of them logits of the attributes and of being covered by the shape."""
        style = vision_format(self.model.config)
        pixels = normalise(frames, style.mean, style.std)
        patches = torch.cat([patchify(video, style)[0] for video in pixels])
        grids = torch.tensor([GRID]).expand(len(frames), -1)
        visual = self.model.visual(patches, grid_thw=grids).pooler_output.unflatten(0, (len(frames), -1))
        return visual, self.look(visual)


def fit_reader(
    model: nn.Module,
    reader: Reader,
    loss_of: Callable[[int], Tensor],
    generator: Generator,
    num_steps: int,
    look_steps: int,
) -> nn.Module:
    """The average of `model`, of which `reader` is a part: first its vision tower learns to see on 1500
    well-filmed scenes, then all of it trains on the loss."""
    scenes = cleaned(draw_scenes(1500, generator))
    frames, attributes, near = render(scenes), attributes_of(scenes), covered(scenes)

    def seeing_loss(step: int) -> Tensor:
        chosen = torch.randint(len(scenes), (12,), generator=generator)
        _, look = reader.see(frames[chosen])
        return look_loss(look, attributes[chosen], near[chosen], torch.ones(len(chosen)))

    seeing = matrices_of(reader.model.visual.blocks)
    average = fit(
        reader,
        seeing_loss,
        num_steps=look_steps,
        learning_rate=1e-3,
        ema_decay=0.98,
        matrices=seeing,
        matrix_rate=0.005,
    )
    reader.load_state_dict(average.state_dict())
    return fit(
        model,
        loss_of,
        num_steps=num_steps,
        learning_rate=1.5e-3,
        ema_decay=0.99,
        matrices=seeing + matrices_of(reader.model.language_model.layers),
        matrix_rate=0.01,
    )


def covered(scenes: Scenes) -> Float[Tensor, "scenes tokens"]:
    """Share of the two frames of each visual token in which the token covers the shape."""
    cells = around_shape(scenes, GRID[1] // MERGE).float()
    share: Tensor = cells.unflatten(1, (GRID[0], TUBELET)).mean(2)
    return share.flatten(1)


def attributes_of(scenes: Scenes, *, said: bool = False) -> Int[Tensor, "scenes attributes"]:
    """Attributes of each scene, in the order of `ATTRIBUTES`: the true ones, or those of its caption."""
    return torch.stack([getattr(scenes, f"said_{name}" if said else name) for name in ATTRIBUTES], 1)


def caption_index(attributes: Int[Tensor, "*n attributes"]) -> Int[Tensor, "*n"]:
    """Number of the caption with these attributes and the first verb, in `every_caption`."""
    index = torch.zeros_like(attributes[..., 0])
    for kind, num in enumerate(NUM_VALUES):
        index = index * num + attributes[..., kind]
    return index


def right_and_wrong(
    attributes: Int[Tensor, "videos attributes"], generator: Generator
) -> Int[Tensor, "videos captions"]:
    """Numbers of six captions per video: the right one, then ones that are wrong in one attribute each; all
    with the same verb, chosen by chance."""
    every = attributes[:, None].repeat(1, 1 + len(NUM_VALUES), 1)
    for kind, num in enumerate(NUM_VALUES):
        shift = 1 + torch.randint(num - 1, (len(attributes),), generator=generator)
        every[:, 1 + kind, kind] = (attributes[:, kind] + shift) % num
    verb = torch.randint(len(VERBS), (len(attributes), 1), generator=generator)
    return caption_index(every) + verb * prod(NUM_VALUES)


def look_loss(
    logits: Float[Tensor, "videos tokens values"],
    attributes: Int[Tensor, "videos attributes"],
    near: Float[Tensor, "videos tokens"],
    weight: Float[Tensor, " videos"],
) -> Float[Tensor, ""]:
    """Weighted loss of what the visual tokens show: all attributes of the shape where they are covered by
    it, the landmark in their mean, and where they are covered."""
    *parts, cover = logits.split([*NUM_VALUES, 1], 2)
    share = near / near.sum(1, keepdim=True)
    losses = [
        (-log_softmax(part, 2)[torch.arange(len(part)), :, attributes[:, kind]] * share).sum(1)
        for kind, part in enumerate(parts[:-1])
    ]
    losses.append(cross_entropy(parts[-1].mean(1), attributes[:, -1], reduction="none"))
    losses.append(binary_cross_entropy_with_logits(cover[..., 0], near, reduction="none").mean(1))
    total: Tensor = torch.stack(losses).sum(0)
    return (total * weight).mean()
