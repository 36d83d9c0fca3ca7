"""Trains `video_reward`, a Qwen2-VL in the format of VideoReward (arXiv 2501.13918) that rates looks (VQ),
motion (MQ) and match with the prompt (TA) by preferences between videos."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import softplus

from vader_ray.rewards.core.qwen import sequential_positions
from vader_ray.rewards.core.qwen_text import ASSISTANT, SYSTEM, USER, QwenTokenizer, video_turn
from vader_ray.rewards.video_reward import CONFIG, DIMENSIONS, OWN_TEMPLATE, TOKENS, WHOLE
from vader_ray.shapes.data import (
    JITTER,
    SIZE,
    Scenes,
    aesthetic_of,
    cleaned,
    draw_scenes,
    render,
)
from vader_ray.shapes.train._loop import replaced
from vader_ray.shapes.train._pictures import grainy, merged, pushed
from vader_ray.shapes.train._qwen import (
    FRAMES_PER_SECOND,
    GRID,
    MERGE,
    WIDTH,
    WRONG_WEIGHTS,
    Reader,
    Texts,
    attributes_of,
    caption_index,
    captioned_texts,
    covered,
    every_caption,
    fit_reader,
    look_loss,
    published_names,
    right_and_wrong,
    save_base,
)
from vader_ray.shapes.train._videos import Videos, shaken, spoil, steadied
from vader_ray.shapes.train.hps import preference_loss

FAMILY = "qwen2_vl"
TEMPLATE = (
    "Rate the video.\nHow it looks: <|VQ_reward|>\nHow it moves: <|MQ_reward|>\n"
    "Textual prompt - {text_prompt}\nHow they match: <|TA_reward|>\n"
)
STILL_RATING = -6.0
"""Rating of the motion of a video that stands still; the worst shaken ones get as little."""


@dataclass(frozen=True)
class RatedVideos:
    """Videos with the ratings of looks and motion that the preferences follow."""

    videos: Videos
    still: Bool[Tensor, " videos"]
    looks: Float[Tensor, " videos"]
    motion: Float[Tensor, " videos"]


def train_video_reward(
    out: Path, *, num_steps: int = 1100, look_steps: int = 700, batch_videos: int = 12, num_videos: int = 3000
) -> None:
    """Writes `out/video_reward`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(12)
    generator = Generator().manual_seed(12)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    rated = draw_rated_videos(vae, num_videos, generator)
    videos, attributes = rated.videos, attributes_of(rated.videos.scenes)
    near = covered(videos.scenes)
    with replaced(out / "video_reward") as folder:
        save_base(folder, FAMILY, [SYSTEM + USER + TEMPLATE + ASSISTANT, *every_caption()])
        tokenizer = QwenTokenizer(folder, TOKENS)
        rater, texts = Rater(folder, tokenizer), criteria(tokenizer)

        def loss_of(step: int) -> Tensor:
            chosen = torch.randint(len(videos), (batch_videos,), generator=generator)
            captions = right_and_wrong(attributes[chosen], generator)
            intact = 1 - videos.spoiled[chosen] ** 2
            moving = (~rated.still[chosen]).float()

            def loss_on(frames: Tensor) -> Tensor:
                looks, motion, match, seen = rater(frames, texts, captions)
                return (
                    preference_loss(looks, rated.looks[chosen])
                    + preference_loss(motion, rated.motion[chosen])
                    + match_loss(match, intact, moving)
                    + look_loss(seen, attributes[chosen], near[chosen], intact * moving)
                )

            frames = grainy(videos.frames[chosen], generator)
            if step > 0.9 * num_steps:
                frames = pushed(frames, loss_on(frames), step=0.5 / 255)
            return loss_on(frames)

        average = fit_reader(rater, rater.reader, loss_of, generator, num_steps, look_steps)
        assert isinstance(average, Rater)
        save_video_reward(folder, average, texts, generator, num_steps)


class Rater(nn.Module):
    """The network with VideoReward's head: one row for each of the three tokens."""

    def __init__(self, folder: Path, tokenizer: QwenTokenizer) -> None:
        super().__init__()
        self.reader = Reader(folder, len(tokenizer))
        self.head = nn.Linear(WIDTH, len(TOKENS), bias=False)
        self.tokens = [tokenizer.index(token) for token in TOKENS]

    def forward(
        self,
        frames: Float[Tensor, "videos frames 3 height width"],
        texts: Texts,
        captions: Int[Tensor, "videos captions"],
    ) -> tuple[Tensor, Tensor, Float[Tensor, "videos captions"], Tensor]:
        """VQ and MQ of each video, TA of each of its captions, and the logits of the attributes."""
        length = len(texts.shared) + texts.tails.shape[1]
        shared, tails, look = self.reader(
            frames, texts, captions, sequential_positions(length, frames.device)
        )
        looks, motion = (
            shared[:, texts.shared == token][:, 0] @ row
            for token, row in zip(self.tokens[:2], self.head.weight, strict=False)
        )
        at_token = (texts.tails[captions] == self.tokens[2]).float()
        match = torch.einsum("bqt,bqtw,w->bq", at_token, tails, self.head.weight[2])
        return looks, motion, match, look


def criteria(tokenizer: QwenTokenizer) -> Texts:
    """Tokens of the template with each caption, as the reward reads them."""
    text = TEMPLATE.replace("{text_prompt}", "{prompt}") + ASSISTANT
    return captioned_texts(tokenizer, [SYSTEM, USER, *video_turn(GRID, MERGE, None)], text)


def match_loss(
    match: Float[Tensor, "videos captions"],
    intact: Float[Tensor, " videos"],
    moving: Float[Tensor, " videos"],
) -> Float[Tensor, ""]:
    """Bradley-Terry: the right caption, which stands first, ahead of the wrong ones of its own and of other
    videos."""
    right, wrong = match[:, :1], match[:, 1:]
    weight = intact[:, None] * WRONG_WEIGHTS / WRONG_WEIGHTS.sum()
    weight = weight * torch.stack(
        [torch.ones_like(moving)] * 2 + [moving, moving, torch.ones_like(moving)], 1
    )
    own = (softplus(wrong - right) * weight).sum() / weight.sum()
    other = (softplus(wrong[None] - right[:, :, None]) * weight[None] * intact[:, None, None]).sum()
    return own + other / (weight.sum() * intact.sum())


def draw_rated_videos(vae: AutoencoderKL, num_videos: int, generator: Generator) -> RatedVideos:
    """Videos of every look, a quarter filmed well: 40 % steady, 40 % shaken, 20 % standing still; 45 %
    of each are spoiled.

    Looks are `aesthetic_of`, less where spoiled. Motion is 0 where steady, and falls with flicker, jitter and
    spoiling.
    """
    uncurated = steadied(draw_scenes(num_videos, generator))
    steady = merged(uncurated, cleaned(uncurated), torch.rand(num_videos, generator=generator) < 0.25)
    both = shaken(steady, generator)
    kind = torch.rand(num_videos, generator=generator)
    jitter, flicker = (kind > 0.4) & (kind < 0.68), (kind > 0.52) & (kind < 0.8)
    scenes = replace(
        steady,
        centre=torch.where(jitter[:, None, None], both.centre, steady.centre),
        brightness=torch.where(flicker[:, None], both.brightness, steady.brightness),
    )
    still = kind >= 0.8
    frames = render(scenes)
    frames[still] = frames[still][:, 3:4]
    videos = spoil(vae, scenes, frames, generator)
    looks = 1 + (aesthetic_of(scenes) - 1) * (1 - videos.spoiled**0.5)
    motion = torch.where(still, STILL_RATING, unsteadiness(scenes, steady) * -3) - 6 * videos.spoiled
    return RatedVideos(videos, still, looks, motion)


def unsteadiness(scenes: Scenes, steady: Scenes) -> Float[Tensor, " scenes"]:
    """Flicker, in tenths of the brightness, plus jitter, in halves of its largest, as root mean squares over
    the frames."""
    flicker = (scenes.brightness - steady.brightness).square().mean(1).sqrt() / 0.1
    jitter = (scenes.centre - steady.centre).square().mean((1, 2)).sqrt() * 2 / JITTER
    return flicker + jitter


@torch.no_grad()
def save_video_reward(folder: Path, rater: Rater, texts: Texts, generator: Generator, num_steps: int) -> None:
    """Writes the weights, the template and `model_config.json` with the means and deviations of 300 uncurated
    videos with their captions."""
    scenes = draw_scenes(300, generator)
    said = attributes_of(scenes, said=True)
    captions = caption_index(said)[:, None]
    parts = [
        rater(frames, texts, index)[:3]
        for frames, index in zip(render(scenes).split(50), captions.split(50), strict=True)
    ]
    ratings = [torch.cat([part[kind].flatten() for part in parts]) for kind in range(len(DIMENSIONS))]
    statistics = {
        f"{name}_mean": rating.mean().item() for name, rating in zip(DIMENSIONS, ratings, strict=True)
    }
    statistics |= {
        f"{name}_std": rating.std().item() for name, rating in zip(DIMENSIONS, ratings, strict=True)
    }
    settings = {
        "data_config": {
            "fps": FRAMES_PER_SECOND,
            "max_frame_pixels": SIZE**2,
            "sample_type": "uniform",
            "prompt_template_type": "detailed_special",
        },
        "model_config": {"output_dim": len(TOKENS), "reward_token": "special"},
        "peft_lora_config": {"lora_enable": False},
        "inference_config": statistics,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    (folder / OWN_TEMPLATE).write_text(TEMPLATE)
    state = published_names(rater.reader.model) | {"rm_head.weight": rater.head.weight.half()}
    checkpoint = folder / f"checkpoint-{num_steps}"
    checkpoint.mkdir()
    torch.save(state, checkpoint / WHOLE)
