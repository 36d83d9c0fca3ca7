"""Quality of the rewards on Qwen networks, `vlm_judge` and `video_reward`, as a recipe loads them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from vader_ray.rewards.video_reward import VideoReward
from vader_ray.rewards.vlm_judge import VLMJudgeReward
from vader_ray.shapes.data import (
    ATTRIBUTES,
    NUM_FRAMES,
    SIZE,
    Scenes,
    captions_of,
    cleaned,
    draw_scenes,
    render,
)
from vader_ray.shapes.train._qwen import attributes_of, every_caption, right_and_wrong
from vader_ray.shapes.train._videos import shaken, steadied


def load_judge(out: Path) -> VLMJudgeReward:
    """The reward `vlm_judge` on `out/vlm_judge`, which looks at every frame at its own size."""
    num_pixels = SIZE**2
    return VLMJudgeReward(
        weights=str(out / "vlm_judge"), num_frames=NUM_FRAMES, min_pixels=num_pixels, max_pixels=num_pixels
    ).float()


def load_video_reward(out: Path) -> VideoReward:
    """The reward `video_reward` on `out/video_reward`."""
    return VideoReward(weights=str(out / "video_reward")).float()


@torch.no_grad()
def judge_quality(out: Path, generator: Generator, *, num_scenes: int = 100) -> dict[str, float]:
    """How often `vlm_judge` answers rightly on uncurated videos, and prefers the right caption."""
    scenes = draw_scenes(num_scenes, generator)
    scores = caption_scores(load_judge(out).score, scenes, generator)
    quality = ahead_of_wrong(scores)
    quality["yes_to_right"] = (scores[:, 0] > 0).float().mean().item()
    quality["no_to_wrong"] = (scores[:, 1:] < 0).float().mean().item()
    return {f"vlm_judge/{name}": value for name, value in quality.items()}


@torch.no_grad()
def video_reward_quality(out: Path, generator: Generator, *, num_scenes: int = 100) -> dict[str, float]:
    """How often VideoReward prefers the right caption (TA), the better filmed of two scenes (VQ) and the
    steady video of a scene (MQ)."""
    reward = load_video_reward(out)
    scenes = steadied(draw_scenes(num_scenes, generator))

    def match(frames: Tensor, captions: Sequence[str]) -> Tensor:
        return reward.ratings(frames, captions)[:, 2]

    def ratings(videos: Tensor) -> tuple[Tensor, Tensor]:
        looks, motion, _ = reward.ratings(videos, captions_of(scenes)).unbind(1)
        return looks, motion

    steady = render(scenes)
    looks, motion = ratings(steady)
    filmed_well, _ = ratings(render(cleaned(scenes)))
    others = {
        "flicker": render(shaken(scenes, generator, jitter=False)),
        "jitter": render(shaken(scenes, generator, flicker=False)),
        "still": steady[:, 3:4].expand(steady.shape),
    }
    scores = caption_scores(match, scenes, generator)
    quality = {f"match_{name}": value for name, value in ahead_of_wrong(scores).items()}
    quality["looks_well_filmed_ahead"] = (filmed_well > looks).float().mean().item()
    for name, videos in others.items():
        quality[f"motion_ahead_of_{name}"] = (motion > ratings(videos)[1]).float().mean().item()
    return {f"video_reward/{name}": value for name, value in quality.items()}


def caption_scores(
    score: Callable[[Tensor, Sequence[str]], Tensor], scenes: Scenes, generator: Generator
) -> Tensor:
    """Scores of the right caption of each scene and of those that are wrong in each attribute."""
    frames, every = render(scenes), every_caption()
    chosen = right_and_wrong(attributes_of(scenes), generator)
    return torch.stack([score(frames, [every[index] for index in column]) for column in chosen.unbind(1)], 1)


def ahead_of_wrong(scores: Tensor) -> dict[str, float]:
    """Share of scenes whose right caption scores higher, by the attribute in which the other is wrong."""
    ahead = (scores[:, :1] > scores[:, 1:]).float().mean(0).tolist()
    return dict(zip(ATTRIBUTES, ahead, strict=True))
