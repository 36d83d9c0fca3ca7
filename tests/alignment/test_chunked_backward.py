"""Scoring each chunk as it is decoded gives the gradient of decoding twice, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.families import CASES, save
from tests.helpers.family_runs import load_case
from tests.helpers.nonlinear_rewards import REWARD_TERMS, ClipReward, FrameReward
from tests.helpers.tiny import SAMPLING, load_tiny, randomise_adapter
from vader_ray.alignment.algorithms import vader
from vader_ray.alignment.chunked_backward import is_separable
from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.types import TruncationPlan

PROMPTS = ["a red circle moving left", "a blue star moving up"]
FRAMES = SAMPLING["num_frames"]
FRAME_TERMS = [
    RewardTerm("frame", FrameReward(), weight=0.7),
    RewardTerm("negative", FrameReward(), weight=-0.2, frames="first:3"),
]


def _gradient(
    model: Any, terms: Sequence[RewardTerm], seen: Sequence[Sequence[int]], batching: Batching
) -> tuple[list[RewardOutput], Tensor]:
    for parameter in model.adapter_parameters():
        parameter.grad = None
    rollout = Rollout(PROMPTS, model.encode(PROMPTS), [3, 4], [[frames] * 2 for frames in seen])
    steps = model.sampling.num_inference_steps
    plan = TruncationPlan(steps, (steps - 1,))
    outputs = vader.accumulate_gradient(model, terms, rollout, plan, batching, scale=0.5)
    return outputs, torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])


def _decode_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vader, "is_separable", lambda *_: False)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_frame_rewards_have_the_same_gradient_with_fewer_calls_of_the_decoder(
    tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, precision: Any
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision=precision, chunk_size=chunk)
    randomise_adapter(model)
    decode, decoded = model.decoder.decode, list[tuple[int, ...]]()

    def record_and_decode(latents: Tensor, state: Any, frames: tuple[int, ...]) -> Any:
        decoded.append(frames)
        return decode(latents, state, frames)

    model.decoder.decode = record_and_decode
    seen, batching = [range(FRAMES), range(3)], Batching(2, 1, chunk)
    once, ours = _gradient(model, FRAME_TERMS, seen, batching)
    num_decoded = len(decoded)
    _decode_twice(monkeypatch)
    twice, expected = _gradient(model, FRAME_TERMS, seen, batching)
    num_micro_batches = 2  # of each the last chunk is not decoded again
    assert len(decoded) - num_decoded == 2 * num_decoded - num_micro_batches
    assert torch.equal(ours, expected)
    assert ours.any()
    for one, two in zip(once, twice, strict=True):
        assert torch.equal(one.objective, two.objective)
        assert all(torch.equal(one.scores[name], two.scores[name]) for name in ("frame", "negative"))
        for name in ("frame", "negative"):  # of many frames at once, or of one chunk after another
            torch.testing.assert_close(one.gradient_norms[name], two.gradient_norms[name])


@pytest.mark.parametrize("terms", REWARD_TERMS.values(), ids=REWARD_TERMS.keys())
def test_a_clip_of_one_chunk_is_decoded_once_for_every_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terms: list[RewardTerm]
) -> None:
    case, decoded = CASES["hunyuan_video"], list[tuple[int, ...]]()
    model = load_case(case, save(case, tmp_path / "hunyuan_video"))
    randomise_adapter(model)
    decode = model.decoder.decode

    def record_and_decode(latents: Tensor, state: Any, frames: tuple[int, ...]) -> Any:
        decoded.append(frames)
        return decode(latents, state, frames)

    model.decoder.decode = record_and_decode
    seen = [range(model.sampling.num_frames)] * len(terms)
    once, ours = _gradient(model, terms, seen, Batching())
    _decode_twice(monkeypatch)
    again, expected = _gradient(model, terms, seen, Batching())
    assert torch.equal(ours, expected)
    assert ours.any()
    assert torch.equal(once[0].objective, again[0].objective)
    assert decoded == [tuple(range(model.sampling.num_frames))] * 4  # two videos, each way


@pytest.mark.parametrize(
    ("term", "rows", "expected"),
    [
        (RewardTerm("frame", FrameReward()), [[0, 1]] * 2, True),
        (RewardTerm("frame", FrameReward()), [[0, 1], [0, 2]], False),  # not the same frames
        (RewardTerm("frame", FrameReward(), target=0.5), [[0, 1]] * 2, False),  # the sign needs all frames
        (RewardTerm("frame", FrameReward(), hinge=0.5), [[0, 1]] * 2, False),  # so does the side of the hinge
        (RewardTerm("clip", ClipReward()), [[0, 1]] * 2, False),
        (RewardTerm("clip", ClipReward(), target=0.5), [[1]] * 2, True),  # one chunk
    ],
)
def test_rewards_that_need_several_chunks_are_not_separable(
    tiny_pipeline_folder: Path, term: RewardTerm, rows: list[list[int]], expected: bool
) -> None:
    model = load_tiny(tiny_pipeline_folder, chunk_size=1)
    rollout = Rollout(PROMPTS, model.encode(PROMPTS), [3, 4], [rows])
    assert is_separable(model.noise([3, 4]), model.decoder, [term], rollout) is expected


def test_chunks_with_a_cache_are_not_separable(tmp_path: Path) -> None:
    model = load_case(CASES["wan"], save(CASES["wan"], tmp_path / "wan"))
    frames = list(range(model.sampling.num_frames))
    rollout = Rollout(PROMPTS, model.encode(PROMPTS), [3, 4], [[frames] * 2])
    assert not is_separable(model.noise([3, 4]), model.decoder, REWARD_TERMS["frame"], rollout)
