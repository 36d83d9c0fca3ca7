"""The scope of TF32: decoder and rewards in both passes, and never the denoiser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from tests.helpers.tiny import load_tiny, randomise_adapter
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.precision import matmul_precision
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import MatmulPrecision
from vader_ray.types import Frames, Granularity, Scores, TruncationPlan

Switches: TypeAlias = tuple[bool, bool, str]
OUTSIDE: Switches = (False, True, "highest")
"""Torch's own settings: TF32 of matrix products, TF32 of convolutions, and the setting for all devices."""
INSIDE: dict[MatmulPrecision, Switches] = {"tf32": (True, True, "high"), "highest": (False, False, "highest")}


def _switches() -> Switches:
    """Read the switches as libraries do; torch raises if their states contradict each other."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    assert _switches() == OUTSIDE
    yield
    assert _switches() == OUTSIDE


@pytest.mark.parametrize("precision", INSIDE)
def test_the_switches_are_restored_also_after_an_error(precision: MatmulPrecision) -> None:
    inside = list[Switches]()

    def fail() -> None:
        with matmul_precision(precision):
            inside.append(_switches())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside == [INSIDE[precision]]


def test_settings_of_the_user_are_restored_whichever_names_set_them() -> None:
    matmul = torch.backends.cuda.matmul
    try:
        matmul.fp32_precision = "tf32"
        with matmul_precision("highest"):
            assert _switches() == INSIDE["highest"]
        assert matmul.fp32_precision == "tf32"
        matmul.allow_tf32 = True
        with matmul_precision("highest"):
            pass
        assert _switches() == (True, True, "high")
    finally:
        matmul.allow_tf32, matmul.fp32_precision = False, "none"


class Watching:
    """A reward that records the switches of its passes."""

    unit = "none"

    def __init__(self, seen: dict[str, set[Switches]], granularity: Granularity) -> None:
        self.seen, self.granularity = seen, granularity

    def __call__(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        _watch(self.seen, "reward", frames)
        return frames.mean(dim=(1, 2, 3, 4))


def _watch(seen: dict[str, set[Switches]], name: str, tensor: Tensor) -> None:
    """Record the switches now, and when the gradient of a tensor is computed."""
    seen.setdefault(name, set()).add(_switches())
    if tensor.requires_grad:
        tensor.register_hook(lambda gradient: seen.setdefault(f"{name} backward", set()).add(_switches()))


@pytest.mark.parametrize("granularity", ["frame", "clip"])  # one decodes once, the other twice
@pytest.mark.parametrize("precision", INSIDE)
def test_decoder_and_rewards_have_the_precision_and_the_denoiser_has_not(
    precision: MatmulPrecision,
    granularity: Granularity,
    tiny_pipeline_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = load_tiny(tiny_pipeline_folder), dict[str, set[Switches]]()
    randomise_adapter(model)
    decode, forward = model.pipe.vae.decoder.forward, model.denoiser.conv_out.forward

    def watched_decode(latents: Tensor) -> Tensor:
        frames: Tensor = decode(latents)
        _watch(seen, "decoder", frames)
        return frames

    def watched_forward(hidden: Tensor) -> Tensor:
        predicted: Tensor = forward(hidden)
        _watch(seen, "denoiser", predicted)
        return predicted

    monkeypatch.setattr(model.pipe.vae.decoder, "forward", watched_decode)
    monkeypatch.setattr(model.denoiser.conv_out, "forward", watched_forward)
    conditioning = model.encode(["a red circle"])
    rollout = Rollout(["a red circle"], conditioning, [3], [[[0, 1, 2]]])
    batching = Batching(matmul_precision=precision)
    plan, terms = TruncationPlan(5, (4,)), [RewardTerm("watching", Watching(seen, granularity))]
    accumulate_gradient(model, terms, rollout, plan, batching, scale=1.0)
    scoped = ("reward", "reward backward", "decoder", "decoder backward")
    assert {name: seen[name] for name in scoped} == {name: {INSIDE[precision]} for name in scoped}
    assert seen["denoiser"] == seen["denoiser backward"] == {OUTSIDE}
