"""Every family against its pipeline's own output and one monolithic graph, on tiny random weights in the
published layout."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vader_ray
from tests.helpers.families import CASES, Case, save, save_images
from tests.helpers.family_runs import (
    PROMPTS,
    SEEDS,
    STEPS,
    decode_all,
    encode_prompts,
    freeze,
    load_case,
    one_graph,
    own_call,
    parts_of,
    plain_pipe,
)
from tests.helpers.nonlinear_rewards import ClipReward
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import randomise_adapter
from vader_ray import models
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.decoding import decode
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import AdapterConfig
from vader_ray.training.events import StepEvent
from vader_ray.training.loop import train
from vader_ray.types import Frames, TruncationPlan

pytestmark = pytest.mark.filterwarnings(
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning"
)  # Mochi
EVERY = [(name, scheduler) for name, case in CASES.items() for scheduler in case.schedulers]
SLOW_BUT_TWO = [
    name if name in ("svd", "wan") else pytest.param(name, marks=pytest.mark.slow) for name in CASES
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where each case's pipeline lies; made at its first use."""
    return cache(lambda name: save(CASES[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_images(tmp_path_factory.mktemp("images"))


@pytest.mark.parametrize(("name", "scheduler"), EVERY)
def test_video_equals_the_pipelines_own_output_bit_for_bit(
    folders: Any, images: list[Path], name: str, scheduler: str | None
) -> None:
    case = CASES[name]
    model = load_case(case, folders(name), scheduler)
    conditioning = encode_prompts(model, images)
    latents = model.sample(conditioning, SEEDS)
    theirs = torch.cat(
        [own_call(case, model, images, part, type(model.pipe).__call__) for part in parts_of(model)]
    )
    with torch.no_grad():
        assert torch.equal(torch.cat([decode_all(model, latents[part]) for part in parts_of(model)]), theirs)
    assert theirs.shape[1] == case.sampling["num_frames"]
    assert theirs.std() > 0.01  # a saturated video would agree with anything
    plan = TruncationPlan(STEPS, (1, 2))
    assert torch.equal(
        latents, model.sample_with_grad(model.sample_prefix(conditioning, plan, SEEDS), conditioning, plan)
    )


@pytest.mark.parametrize(("name", "scheduler"), EVERY)
def test_prefix_of_two_with_finish_of_one_equals_one_batch(
    folders: Any, images: list[Path], name: str, scheduler: str | None
) -> None:
    """Only batching differs, which changes the summation order of float32."""
    model = load_case(CASES[name], folders(name), scheduler)
    plan, conditioning = TruncationPlan(STEPS, (2,)), encode_prompts(model, images)
    state = model.sample_prefix(conditioning, plan, SEEDS)
    together = model.sample_with_grad(state, conditioning, plan)
    apart = [
        model.sample_with_grad(state[video : video + 1], conditioning[video : video + 1], plan)
        for video in range(2)
    ]
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SLOW_BUT_TWO)
def test_staged_gradient_equals_the_monolithic_one(folders: Any, images: list[Path], name: str) -> None:
    """Relative error of the whole gradient, for K = 1, 2 and N. Bounds: float64, except where the library
    casts."""
    case = CASES[name]
    model = load_case(case, folders(name), case.schedulers[0], case.precision)
    conditioning = encode_prompts(model, images)[0:1]
    for graded in ((2,), (1, 2), (0, 1, 2)):
        for parameter in model.adapter_parameters():
            parameter.grad = None
        seen = [[tuple(range(case.sampling["num_frames"]))]]
        rollout = Rollout(PROMPTS[:1], conditioning, SEEDS[:1], seen)
        accumulate_gradient(
            model,
            [RewardTerm("clip", ClipReward())],
            rollout,
            TruncationPlan(STEPS, graded),
            Batching(),
            scale=1.0,
        )
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.adapter_parameters()]
        found = torch.cat([grad.flatten() for grad in grads]).double()
        expected = one_graph(case, model, images, graded)
        assert expected.norm() > 0
        assert (found - expected).norm() < case.tolerance * expected.norm(), f"K={len(graded)}"


@pytest.mark.parametrize("name", CASES)
def test_sampling_stays_in_float32_around_a_bfloat16_denoiser(
    folders: Any, images: list[Path], name: str
) -> None:
    model = load_case(CASES[name], folders(name), CASES[name].schedulers[0], "bfloat16")
    assert {parameter.dtype for parameter in model.adapter_parameters()} == {torch.float32}
    conditioning, plan = encode_prompts(model, images), TruncationPlan(STEPS, (2,))
    state = model.sample_prefix(conditioning, plan, SEEDS)
    assert {output.dtype for output in state.schedulers[0].outputs} == {torch.float32}
    model.sample_with_grad(state, conditioning, plan).float().square().mean().backward()
    norms = [parameter.grad.norm() for parameter in model.adapter_parameters() if parameter.grad is not None]
    assert all(norm.isfinite() for norm in norms)
    assert sum(norms) > 0


def _gradients(model: Any, latents: Tensor, found: Frames, expected: Frames) -> tuple[Tensor, Tensor]:
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    (ours,) = torch.autograd.grad((found * weights).sum(), latents)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), latents)
    return ours, theirs


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("name", ["wan", "wan_5b", "cogvideox", "ltx", "mochi"])
def test_streamed_decoder_has_the_gradient_of_the_whole_one(folders: Any, name: str, offload: bool) -> None:
    """Caches carry gradient between portions; float32 allows for the order in which portions are summed."""
    case = CASES[name]
    model = load_case(case, folders(name), case.schedulers[0], offload_decoder_cache=offload)
    with torch.no_grad():
        latents = model.sample(model.encode(PROMPTS), SEEDS)
    latents.requires_grad_()
    found, indices = decode(latents, model.decoder, range(case.sampling["num_frames"]))
    assert indices == list(range(case.sampling["num_frames"]))
    expected = (model.pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2)
    assert torch.equal(found, expected)
    ours, theirs = _gradients(model, latents, found, expected)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_cut_cache_would_be_noticed(folders: Any) -> None:
    """The gradient with detached caches is far from the true one, so the test above tests the caches."""
    model = load_case(CASES["wan"], folders("wan"))
    with torch.no_grad():
        latents = model.sample(model.encode(PROMPTS), SEEDS)
    latents.requires_grad_()
    decoder, decode_chunk = model.decoder, model.decoder.decode_chunk

    def cutting(portion: Tensor, cache: Any) -> Any:
        return decode_chunk(
            portion, [x.detach() if isinstance(x, Tensor) else x for x in cache] if cache else None
        )

    expected, _ = decode(latents, decoder, range(9))
    decoder.decode_chunk = cutting
    found, _ = decode(latents, decoder, range(9))
    ours, theirs = _gradients(model, latents, found, expected)
    assert (ours - theirs).norm() > 0.1 * theirs.norm()


@pytest.mark.parametrize(
    ("name", "wanted", "expected"), [("wan", [0], 1), ("wan", [0, 4], 5), ("cogvideox", [3], 9)]
)
def test_a_causal_stream_stops_after_the_last_wanted_frame(
    folders: Any, name: str, wanted: list[int], expected: int
) -> None:
    case = CASES[name]
    model = load_case(case, folders(name), case.schedulers[0])
    with torch.no_grad():
        latents = model.sample(model.encode(PROMPTS), SEEDS)
        frames, indices = decode(latents, model.decoder, wanted)
        assert indices == list(range(expected))
        assert torch.equal(frames, decode_all(model, latents)[:, :expected])


def test_temporal_portions_equal_the_pipelines_decode_chunks(folders: Any, images: list[Path]) -> None:
    case = CASES["svd"]
    model = load_case(case, folders("svd"), temporal_decoder_frames=2)
    with torch.no_grad():
        latents = model.sample(model.encode(PROMPTS[:1], images[:1]), SEEDS[:1])
        assert model.decoder.chunks(latents, [2]) == [(2,)]
        pipe = model.pipe
        theirs = pipe.decode_latents(
            latents.transpose(1, 2) * pipe.vae.config.scaling_factor, 3, decode_chunk_size=2
        )
        theirs = (theirs / 2 + 0.5).clamp(0, 1).transpose(1, 2)
        torch.testing.assert_close(decode_all(model, latents), theirs, rtol=0, atol=1e-6)  # z·s/s rounds
        whole = load_case(case, folders("svd"))
        assert not torch.allclose(decode_all(whole, latents), theirs, atol=1e-4)


STOCK = [
    name
    for name, case in CASES.items()
    if models.resolve(case.family).stock_loader and name != "ltx_denoising_decoder"
]


@pytest.mark.parametrize("name", CASES)
def test_adapter_makes_the_same_video_in_plain_diffusers(
    folders: Any, images: list[Path], tmp_path: Path, name: str
) -> None:
    """Bit for bit through the stock loader, where there is one, and through ours everywhere."""
    case = CASES[name]
    model = load_case(case, folders(name), case.schedulers[0])
    model.save_adapter(tmp_path)
    for parameter in model.adapter_parameters():
        parameter.requires_grad_(False)  # torch picks other CPU kernels for weights that require gradient
    ours = own_call(case, model, images, slice(0, 1), type(model.pipe).__call__)
    plain = load_case(case, folders(name), case.schedulers[0])
    loaders = [vader_ray.load_adapter] + [_stock] * (name in STOCK)
    for load in loaders:
        plain.pipe = plain_pipe(folders(name), plain)
        before = own_call(case, plain, images, slice(0, 1), type(plain.pipe).__call__)
        load(plain.pipe, tmp_path)
        after = own_call(case, plain, images, slice(0, 1), type(plain.pipe).__call__)
        assert torch.equal(after, ours)
        assert not torch.equal(before, ours)


def _stock(pipe: Any, folder: Path) -> None:
    pipe.load_lora_weights(folder)
    if getattr(pipe, "transformer_2", None) is not None:
        pipe.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)
    freeze(pipe)


@pytest.mark.parametrize("name", CASES)
def test_adapter_survives_saving_and_loading(folders: Any, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model, other = (load_case(case, folders(name), case.schedulers[0]) for _ in range(2))
    model.save_adapter(tmp_path)
    assert models.adapter_shape(tmp_path) == AdapterConfig(
        rank=2, alpha=4.0, target_modules=tuple(sorted(model.adapter_targets))
    )
    randomise_adapter(other, seed=9)
    other.load_adapter(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(model.adapter_parameters(), other.adapter_parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "num_frames", "message"),
    [
        ("wan", 8, "num_frames=8 is not a number of frames that this model can make; choose 5 or 9"),
        (
            "cogvideox",
            13,
            "makes 4 latent frames, of which this decoder makes 16 frames; choose a multiple of 8 plus 1",
        ),
        ("mochi", 6, "choose 1 or 7"),
    ],
)
def test_a_number_of_frames_that_would_be_rounded_is_refused(
    folders: Any, name: str, num_frames: int, message: str
) -> None:
    case = CASES[name]
    changed = Case(case.family, case.build, case.sampling | {"num_frames": num_frames})
    with pytest.raises(ValueError, match=message):
        load_case(changed, folders(name)).noise(SEEDS)


def test_a_run_trains_on_images_and_shows_rewards_the_text(folders: Any, images: list[Path]) -> None:
    case, reports = CASES["svd"], list[StepEvent]()
    prompts = {"train": [f"{images[0]} | a dog"], "validation": [f"{images[1]} | a cat"]}
    changes = {"num_steps": 1, "videos_per_step": 1, "prompts": prompts, "sampling": case.sampling}
    config = tiny_config(folders("svd"), **changes, model={"family": "svd", "weights": str(folders("svd"))})
    train(config, on_step=reports.append)
    assert [query.prompt for query in reports[-1].queries] == ["a dog"]
    assert {video.prompt for video in reports[-1].videos} == {"a cat"}
    assert reports[-1].metrics["train/grad_norm"] > 0


def test_missing_images_and_wrong_pipelines_are_named(folders: Any) -> None:
    with pytest.raises(ValueError, match=r"write each prompt as `path/to/image.png \| text`"):
        load_case(CASES["svd"], folders("svd")).encode(PROMPTS)
    with pytest.raises(
        ValueError,
        match=r"is a MochiPipeline; model\.family=wan takes WanPipeline or WanImageToVideoPipeline",
    ):
        load_case(CASES["wan"], folders("mochi"))
