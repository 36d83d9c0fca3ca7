"""The embedded Qwen networks load as the published ones, and the rewards on them tell right from wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vader_ray.rewards.core.qwen_checkpoint import present_names, read_checkpoint
from vader_ray.rewards.core.qwen_text import QwenTokenizer
from vader_ray.rewards.video_reward import TOKENS
from vader_ray.shapes import CHECKPOINTS, checkpoint
from vader_ray.shapes.caption_classifier import caption_labels
from vader_ray.shapes.data import ATTRIBUTES, captions, cleaned, draw_scenes, render
from vader_ray.shapes.train._qwen import Reader, attributes_of, every_caption, right_and_wrong
from vader_ray.shapes.train._qwen_quality import (
    ahead_of_wrong,
    caption_scores,
    judge_quality,
    load_judge,
    load_video_reward,
    video_reward_quality,
)
from vader_ray.shapes.train.video_reward import Rater, criteria, train_video_reward
from vader_ray.shapes.train.vlm_judge import (
    ANSWERS,
    answer_logits,
    judge_positions,
    questions,
    train_vlm_judge,
)


def test_the_tokenizers_have_every_word_of_the_prompts_as_one_token() -> None:
    words = {
        word
        for split in ("train", "validation_going")
        for prompt in captions(split)
        for word in prompt.split()
    }
    for name in ("vlm_judge", "video_reward"):
        tokenizer = QwenTokenizer(checkpoint(name))
        assert all(tokenizer.index(f" {word}") for word in words)


def test_every_caption_of_right_and_wrong_differs_from_the_right_one_in_one_attribute() -> None:
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(30)))
    every = every_caption()
    for row in right_and_wrong(attributes_of(scenes), Generator().manual_seed(31)).tolist():
        right, *wrong = [caption_attributes(every[index]) for index in row]
        for attribute, caption in zip(ATTRIBUTES, wrong, strict=True):
            differ = [name for name in ATTRIBUTES if caption[name] != right[name]]
            assert differ == [attribute], every[row[0]]


def caption_attributes(caption: str) -> dict[str, int]:
    return {name: int(caption_labels([caption], name)[0]) for name in ATTRIBUTES}


@pytest.mark.filterwarnings("ignore")
def test_the_judge_loads_in_transformers() -> None:
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint("vlm_judge"), output_loading_info=True
    )
    assert set(report["missing_keys"]) <= {"lm_head.weight"}  # tied
    assert not report["unexpected_keys"]


@torch.no_grad()
def test_the_judge_scores_the_right_caption_higher_on_well_filmed_and_on_uncurated_videos() -> None:
    judge, web = load_judge(CHECKPOINTS), draw_scenes(16, Generator().manual_seed(32))
    for scenes, floor in ((cleaned(web), 0.9), (web, 0.85)):
        ahead = ahead_of_wrong(caption_scores(judge.score, scenes, Generator().manual_seed(33)))
        assert min(ahead["colour"], ahead["direction"], ahead["landmark"]) >= floor, ahead


@torch.no_grad()
def test_the_video_reward_prefers_right_captions_good_looks_and_steady_motion() -> None:
    quality = video_reward_quality(CHECKPOINTS, Generator().manual_seed(34), num_scenes=16)
    floors = {
        "match_colour": 0.85,
        "match_direction": 0.7,
        "looks_well_filmed_ahead": 0.9,
    }
    floors |= {"motion_ahead_of_flicker": 0.85, "motion_ahead_of_still": 0.9}
    assert all(quality[f"video_reward/{name}"] >= floor for name, floor in floors.items()), quality


@torch.no_grad()
def test_trainers_read_a_batch_as_the_rewards_read_one_video() -> None:
    scenes = draw_scenes(3, Generator().manual_seed(35))
    frames, every = render(scenes), every_caption()
    chosen = right_and_wrong(attributes_of(scenes), Generator().manual_seed(36))

    def scores(score: Callable[[Tensor, list[str]], Tensor]) -> Tensor:
        columns = chosen.unbind(1)
        return torch.stack([score(frames, [every[index] for index in column]) for column in columns], 1)

    folder = checkpoint("vlm_judge")
    tokenizer = QwenTokenizer(folder)
    reader, texts = Reader(folder, len(tokenizer)), questions(tokenizer)
    reader.model.load_state_dict(present_names(read_checkpoint(folder)))
    logits, _ = answer_logits(reader, frames, texts, chosen, judge_positions(reader, texts))
    yes, no = (logits[..., tokenizer.index(answer)] for answer in ANSWERS)
    torch.testing.assert_close(
        yes - no, scores(load_judge(CHECKPOINTS).score), atol=1e-4, rtol=1e-4
    )  # summation order

    folder = checkpoint("video_reward")
    tokenizer = QwenTokenizer(folder, TOKENS)
    rater = Rater(folder, tokenizer)
    (path,) = folder.glob("checkpoint-*/model.pth")
    state = present_names(torch.load(path, weights_only=True))
    rater.head.load_state_dict({"weight": state.pop("rm_head.weight")})
    rater.reader.model.load_state_dict(state)
    looks, motion, match, _ = rater(frames, criteria(tokenizer), chosen)
    reward = load_video_reward(CHECKPOINTS)
    ratings = scores(reward.ratings) * torch.tensor(reward.std) + torch.tensor(reward.mean)
    expected = torch.stack([looks[:, None].expand_as(match), motion[:, None].expand_as(match), match], 2)
    torch.testing.assert_close(ratings, expected, atol=1e-4, rtol=1e-4)  # summation order


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("train", "quality"), [(train_vlm_judge, judge_quality), (train_video_reward, video_reward_quality)]
)
def test_trainers_write_what_the_rewards_read(
    train: Callable[..., None], quality: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("text_to_video"), tmp_path / "text_to_video")
    name, states = train.__name__.removeprefix("train_"), []
    for num_steps in (2, 4, 4):
        train(tmp_path, num_steps=num_steps, num_videos=8, look_steps=2)
        assert quality(tmp_path, Generator().manual_seed(37), num_scenes=2)
        files = {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()}
        loaded = load_judge(tmp_path) if name == "vlm_judge" else load_video_reward(tmp_path)
        states.append(loaded.state_dict())
    packaged = {path.relative_to(checkpoint(name)) for path in checkpoint(name).rglob("*") if path.is_file()}
    assert {path.name for path in packaged} == {path.name for path in files}
    few, more, again = states
    assert any(not torch.equal(few[key], more[key]) for key in few)
    assert all(torch.equal(again[key], more[key]) for key in more)
