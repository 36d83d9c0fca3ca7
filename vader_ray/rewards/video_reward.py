"""VideoReward of VideoAlign (arXiv 2501.13918): a Qwen2-VL-2B that rates looks, motion and alignment."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from vader_ray.errors import UserError
from vader_ray.rewards.base import NetworkReward, frozen
from vader_ray.rewards.core.qwen import QwenNetwork
from vader_ray.rewards.core.qwen_checkpoint import (
    SETTINGS,
    load_model,
    merge_lora,
    obtain_checkpoint,
    present_names,
    read_checkpoint,
    read_head,
    read_settings,
    read_text,
)
from vader_ray.rewards.core.qwen_reward import sampled_frames, special_token_states
from vader_ray.rewards.core.qwen_text import QwenTokenizer, video_turn
from vader_ray.rewards.core.resizing import Resizing
from vader_ray.types import Frames, Granularity, Scores
from vader_ray.weights import Source, read_state_dict, resolve_weights, without_weights

REPOSITORY, BASE = "KwaiVGI/VideoReward", "Qwen/Qwen2-VL-2B-Instruct"
CONFIG, WHOLE = "model_config.json", "model.pth"
ADAPTER, REST = "adapter_model.safetensors", "non_lora_state_dict.pth"
TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
DIMENSIONS = ("VQ", "MQ", "TA")
PUBLISHED_TEMPLATE, OWN_TEMPLATE = "prompt_template.py", "template.txt"
CONSTANT = "DETAILED_PROMPT_WITH_SPECIAL_TOKEN"
DIGEST = "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700"
"""SHA-256 of the published text."""
MIN_PIXELS = 128 * 28 * 28


class VideoReward(NetworkReward):
    """The rating of a video, from one reading of its frames, the criteria and the prompt.

    Three tokens stand in the text: visual quality (VQ), motion quality (MQ), text alignment (TA). The score
    of each is the head's output of its own row at its own token. The prompt stands behind the first two, so
    VQ and MQ do not depend on it. Positions are sequential, as in training. Frames are evenly spaced, at
    ``fps`` per second, an even number of at least four; they are resized bicubically with antialiasing (480 ×
    832 to 336 × 588), without the published rounding to 8 bits.

    Normalised scores have mean 0 and deviation 1 on the authors' validation videos (VQ 3.6757 ± 2.2476, MQ
    1.1646 ± 1.3811, TA 2.8105 ± 2.5121, read from ``model_config.json``); raw ones are the head's outputs.
    ``overall`` is the sum of the three, normalised or raw. More frames give higher scores, so compare only
    scores of equal frames and write their number beside them. Trained hard it drifts to over-exposed, drawn
    pictures: set a target, and hold out another reward.

    About 2 billion weights: 4.1 GiB in bfloat16. The size of the published table of embeddings is unverified;
    any table with at least the tokens of the tokenizer loads.

    Deviation from float32 on a tiny network with random weights (tests): bfloat16 below 0.06, float16 below
    0.01.

    Args:
        weights: hub repository or folder with ``model_config.json`` and ``checkpoint-N``; the largest N is
            taken, as ``model.pth`` or as ``adapter_model.safetensors`` with ``non_lora_state_dict.pth``. LoRA
            is merged.
        base: hub repository or folder of the base network: ``config.json``, ``tokenizer.json``, and its
            weights if the checkpoint has an adapter alone; by default the folder of the weights, if they are
            there, or else the published one.
        template: the published ``prompt_template.py`` (github.com/KwaiVGI/VideoAlign), or a text with
            ``{text_prompt}`` and the three tokens; by default ``prompt_template.py`` or ``template.txt`` in
            the folder of the weights.
        score: the rating to return.
        normalised: whether ratings are normalised.
        video_fps: frames per second of the videos.
        fps: frames per second to look at; by default that of ``model_config.json``, published 2.
        num_frames: number of frames to look at, instead of ``fps``.
        checkpointing: recompute layers in the backward pass, which needs less memory.
    """

    granularity: Granularity = "clip"
    unit = "rating; normalised: deviations from the mean of the authors' videos, their sum if overall"
    default_weights = f"{REPOSITORY}, {BASE}"
    licence = "MIT (code); weights not stated; base network Apache-2.0"

    def __init__(  # noqa: PLR0913
        self,
        *,
        weights: Source = REPOSITORY,
        base: Source | None = None,
        template: Source | None = None,
        score: Literal["overall", "VQ", "MQ", "TA"] = "overall",
        normalised: bool = True,
        video_fps: Annotated[float, Field(gt=0)] = 16.0,
        fps: Annotated[float, Field(gt=0)] | None = None,
        num_frames: Annotated[int, Field(ge=1)] | None = None,
        checkpointing: bool = True,
    ) -> None:
        super().__init__()
        folder = resolve_weights(weights, CONFIG, f"checkpoint-11352/{WHOLE}")
        settings = read_settings(folder / CONFIG, "data_config", "peft_lora_config", "inference_config")
        self.template = read_template(folder, template)
        has_base = base is None and all((folder / name).is_file() for name in SETTINGS)
        base_folder = folder if has_base else resolve_weights(base or BASE, *SETTINGS)
        self.tokenizer = QwenTokenizer(base_folder, TOKENS)
        state, source = read_weights(
            folder, settings["peft_lora_config"], base=str(folder) if has_base else base or BASE
        )
        model = load_model(base_folder, state, source, "qwen2_vl", min_tokens=len(self.tokenizer))
        max_pixels = int(settings["data_config"]["max_frame_pixels"])
        self.network = frozen(
            QwenNetwork(
                model,
                min_pixels=min(MIN_PIXELS, max_pixels),
                max_pixels=max_pixels,
                checkpointing=checkpointing,
            )
        )
        width = self.network.model.config.text_config.hidden_size
        self.head = frozen(nn.Linear(width, len(TOKENS), bias=False))
        read_head(state, self.head, source)
        statistics = settings["inference_config"] if normalised else {}
        self.mean = [float(statistics.get(f"{name}_mean", 0.0)) for name in DIMENSIONS]
        self.std = [float(statistics.get(f"{name}_std", 1.0)) for name in DIMENSIONS]
        self.kind = score
        self.video_fps, self.fps = video_fps, fps or float(settings["data_config"]["fps"])
        self.num_frames = num_frames

    def resizing(self, height: int, width: int) -> Resizing:
        """Return the resizing to the published size, all of which is used."""
        return self.network.resizing(height, width)

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return the rating of each video."""
        ratings = self.ratings(frames, prompts)
        return ratings.sum(dim=1) if self.kind == "overall" else ratings[:, DIMENSIONS.index(self.kind)]

    def ratings(self, frames: Frames, prompts: Sequence[str]) -> Float[Tensor, "batch 3"]:
        """Return VQ, MQ and TA of each video."""
        ratings = torch.stack(
            [self._rate(video, prompt) for video, prompt in zip(frames, prompts, strict=True)]
        )
        return (ratings - ratings.new_tensor(self.mean)) / ratings.new_tensor(self.std)

    def _rate(self, video: Float[Tensor, "frames 3 height width"], prompt: str) -> Float[Tensor, "3"]:
        chosen = sampled_frames(
            len(video), video_fps=self.video_fps, fps=self.fps, num_wanted=self.num_frames
        )
        visual = self.network.encode(video[chosen])
        text = self.template.replace("{text_prompt}", prompt)
        turn = [*video_turn(visual.grid, self.network.format.merge, None), text]
        hidden = special_token_states(self.network, self.tokenizer, visual, turn, TOKENS)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return functional.linear(hidden.to(wide), self.head.weight.to(wide)).diagonal()


def read_weights(folder: Path, lora: dict[str, object], *, base: str) -> tuple[dict[str, Tensor], Path]:
    """Return the weights of the last checkpoint with LoRA merged, under their present names, and their file.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
    """
    if without_weights():
        return {}, folder
    numbers = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    if not (numbers := [number for number in numbers if number.isdecimal()]):
        raise UserError(
            f"{folder} has no folder checkpoint-N; give the folder with {CONFIG} and checkpoint-N"
        )
    checkpoint = folder / f"checkpoint-{max(numbers, key=int)}"
    if (checkpoint / WHOLE).is_file():
        source, state = checkpoint / WHOLE, present_names(read_state_dict(checkpoint / WHOLE))
    else:
        source = checkpoint / ADAPTER
        adapter = present_names(read_state_dict(source))
        rest = present_names(read_state_dict(checkpoint / REST))
        state = present_names(read_checkpoint(obtain_checkpoint(base))) | rest | adapter
    merged = merge_lora(
        state,
        alpha=float(str(lora.get("lora_alpha", 0))),
        use_rslora=bool(lora.get("use_rslora", False)),
        source=source,
    )
    return merged, source


def read_template(folder: Path, given: str | None) -> str:
    """Return the text with the three tokens and ``{text_prompt}``.

    Raises:
        UserError: there is none, or it is another text.
    """
    candidates = [resolve_weights(given)] if given else [folder / PUBLISHED_TEMPLATE, folder / OWN_TEMPLATE]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise UserError(
            f"video_reward needs the published text of its criteria; copy {PUBLISHED_TEMPLATE} of "
            f"github.com/KwaiVGI/VideoAlign to {folder}, or give its path as template"
        )
    text = _published_text(path) if path.suffix == ".py" else read_text(path)
    where = [text.find(part) for part in (*TOKENS, "{text_prompt}")]
    if min(where) < 0 or any(text.count(token) != 1 for token in TOKENS) or where[:3] != sorted(where[:3]):
        raise UserError(
            f"{path} must have {', '.join(TOKENS)} in this order, each once, and {{text_prompt}}; "
            f"give the published {PUBLISHED_TEMPLATE} or a text with them"
        )
    return text


def _published_text(path: Path) -> str:
    try:
        tree = ast.parse(read_text(path))
    except SyntaxError as error:
        raise UserError(f"{path} is no Python file (line {error.lineno}); download it again") from error
    found = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and any(isinstance(target, ast.Name) and target.id == CONSTANT for target in node.targets)
    ]
    if not found or hashlib.sha256(found[0].encode()).hexdigest() != DIGEST:
        raise UserError(
            f"{path} has no {CONSTANT} with the published words; download it again, or give a text file of "
            "your own"
        )
    return found[0]
