"""Chains of clips in every image-to-video pipeline: the gradient of one graph, flat memory, noise."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.clip_chains import chain_by_loops
from tests.helpers.families import CASES, Case, save, save_images
from tests.helpers.family_runs import PROMPTS, SEEDS, STEPS, encode_prompts, load_case
from tests.helpers.nonlinear_rewards import ClipReward, FrameReward
from tests.helpers.pipeline_cases import PIPELINES
from tests.helpers.tiny import adapter_gradient
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.clips import clip_seeds, sample_frames
from vader_ray.alignment.decoding import decode_all
from vader_ray.alignment.reward_gradient import RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.errors import UserError
from vader_ray.preflight.trackers import PeakMemoryTracker
from vader_ray.types import TruncationPlan

REFUSED = ("ltx2_i2v", "hunyuan_video_i2v", "kandinsky5_i2v")
"""Their images are compressed, seen by the text encoder, or encoded without gradient: `continues_frames`."""
FROM_TEXT = "kandinsky6"
"""The first clip has no image, the later ones have; so the case with images is left out."""
IMAGE_CASES = {
    name: case
    for name, case in (CASES | PIPELINES).items()
    if (case.images and name not in (*REFUSED, "kandinsky6_i2v")) or name == FROM_TEXT
}
QUICK = "wan_i2v"
NAMES = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in IMAGE_CASES]
CLIPS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda name: save(IMAGE_CASES[name], tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_images(tmp_path_factory.mktemp("images"))


def _gradient(  # noqa: PLR0913
    model: Any,
    case: Case,
    images: list[Path],
    plan: TruncationPlan,
    *,
    num_videos: int = 1,
    frames: tuple[int, ...] | None = None,
    reward: Any = ClipReward(),
    batching: Batching = Batching(prefix=2),
) -> tuple[Tensor, Tensor]:
    """Scores and the adapter's gradient, as a run computes them."""
    for parameter in model.adapter_parameters():
        parameter.grad = None
    every = tuple(range(plan.num_clips * (case.sampling["num_frames"] - 1) + 1))
    rollout = Rollout(
        PROMPTS[:num_videos],
        encode_prompts(model, images if case.images else None)[0:num_videos],
        SEEDS[:num_videos],
        [[frames or every] * num_videos],
    )
    outputs = accumulate_gradient(model, [RewardTerm("reward", reward)], rollout, plan, batching, scale=1.0)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.adapter_parameters()]
    return torch.cat([output.objective for output in outputs]), torch.cat([g.flatten() for g in grads])


def _in_float64(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model with every layer in float64, also those of Wan that the library keeps in float32."""
    model = load_case(case, folder, None, "float64")
    for network in model.modules():
        network.double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return model


def _plan(graded: tuple[int, ...], num_graded: int, **more: Any) -> TruncationPlan:
    return TruncationPlan(STEPS, graded, num_clips=CLIPS, num_gradient_clips=num_graded, **more)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_one_graph_over_all_clips(
    folders: Any, images: list[Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K = 1 and N, and all or some clips with gradient: float64, by the pipelines' own loops."""
    case = IMAGE_CASES[name]
    model = _in_float64(case, folders(name), monkeypatch)
    for graded, num_graded in (((2,), 3), ((0, 1, 2), 3), ((2,), 2), ((1, 2), 1)):
        scores, found = _gradient(model, case, images, _plan(graded, num_graded))
        video = chain_by_loops(case, model, images, graded, CLIPS, num_graded)
        objective = ClipReward()(video, PROMPTS[:1])
        expected = adapter_gradient(model, -objective.sum())
        assert torch.equal(scores, objective.detach()), f"{graded}, {num_graded} clips"
        assert expected.norm() > 0
        assert (found - expected).norm() < 1e-10 * expected.norm(), f"{graded}, {num_graded} clips"


@pytest.mark.parametrize(
    "name",
    [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in ("svd", "ltx_i2v", "kandinsky6"))],
)
def test_the_gradient_is_the_difference_quotient_of_the_pipelines_own_chains(
    folders: Any, images: list[Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of the adapter; nothing of this project computes the two videos.

    Pixels saturate, which bounds the change from above; the loops of LTX and Wan round images to float32, and
    LTX has a small gradient, which bounds it from below.
    """
    case, every_step = IMAGE_CASES[name], tuple(range(STEPS))
    model = _in_float64(case, folders(name), monkeypatch)
    _, gradient = _gradient(model, case, images, _plan(every_step, CLIPS))
    place, size = int(gradient.abs().argmax()), {"ltx_i2v": 1e-3}.get(name, 1e-4)
    weights = torch.nn.utils.parameters_to_vector(model.adapter_parameters()).detach()

    def objective(change: float) -> float:
        moved = weights.clone()
        moved[place] += change
        torch.nn.utils.vector_to_parameters(moved, model.adapter_parameters())
        video = chain_by_loops(case, model, images, every_step, CLIPS, CLIPS)
        return float(-ClipReward()(video, PROMPTS[:1]).sum())

    with torch.no_grad():
        quotient = (objective(size) - objective(-size)) / (2 * size)
    assert quotient == pytest.approx(float(gradient[place]), rel=2e-3)


def test_gradient_passes_from_clip_to_clip(folders: Any, images: list[Path]) -> None:
    """The reward scores the last clip alone, and its gradient in the adapter depends on all three."""
    case = IMAGE_CASES["wan_i2v"]
    model, gradients = load_case(case, folders("wan_i2v")), list[Tensor]()
    num_frames = case.sampling["num_frames"]
    for num_graded in (1, 2, 3):
        plan, start = _plan((2,), num_graded), 2 * (num_frames - 1) + 1
        frames = tuple(range(start, start + num_frames - 1))
        _, gradient = _gradient(model, case, images, plan, frames=frames)
        gradients.append(gradient)
    assert all((after - before).norm() > 1e-3 * before.norm() for before, after in pairwise(gradients))


def _peak(model: Any, images: list[Path], num_clips: int) -> int:
    """Bytes of tensors in a step whose reward scores the first and the last frame."""
    case, plan = (
        IMAGE_CASES["svd"],
        TruncationPlan(STEPS, (2,), num_clips=num_clips, num_gradient_clips=num_clips),
    )
    with PeakMemoryTracker() as memory:
        _gradient(model, case, images, plan, frames=(0, num_clips * (case.sampling["num_frames"] - 1)))
    return memory.peak


def _peak_of_one_graph(model: Any, images: list[Path], num_clips: int) -> int:
    with PeakMemoryTracker() as memory:
        video = chain_by_loops(IMAGE_CASES["svd"], model, images, (2,), num_clips, num_clips)
        adapter_gradient(model, -ClipReward()(video[:, [0, -1]], PROMPTS[:1]).sum())
    return memory.peak


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_clips(folders: Any, images: list[Path]) -> None:
    """Stable Video Diffusion, which encodes no text; one graph over all clips shows that the peak counts."""
    model = load_case(IMAGE_CASES["svd"], folders("svd"))
    two, four = (_peak(model, images, num_clips) for num_clips in (2, 4))
    assert four < 1.02 * two
    assert _peak_of_one_graph(model, images, 4) > 1.9 * _peak_of_one_graph(model, images, 2)


def test_a_video_of_one_clip_and_the_first_clip_of_a_chain_are_the_same_bits(
    folders: Any, images: list[Path]
) -> None:
    case = IMAGE_CASES["wan_i2v"]
    model = load_case(case, folders("wan_i2v"))
    conditioning = encode_prompts(model, images)
    latents, num_frames = model.sample(conditioning, SEEDS), case.sampling["num_frames"]
    plain = torch.cat([decode_all(each, model.decoder) for each in latents.split(1)])
    one = torch.cat(list(sample_frames(model, conditioning, SEEDS)))
    chain = torch.cat(list(sample_frames(model, conditioning, SEEDS, num_clips=CLIPS)))
    assert torch.equal(one, plain)
    assert chain.shape[1] == CLIPS * (num_frames - 1) + 1
    assert torch.equal(chain[:, :num_frames], one)
    seeds = [clip_seeds(SEEDS, clip) for clip in range(CLIPS)]
    assert seeds[0] == SEEDS
    assert len({seed for row in seeds for seed in row}) == CLIPS * len(SEEDS)


def test_training_and_evaluation_see_the_same_frames(folders: Any, images: list[Path]) -> None:
    case = IMAGE_CASES["wan_i2v"]
    model = load_case(case, folders("wan_i2v"))
    (video,) = sample_frames(model, encode_prompts(model, images)[0:1], SEEDS[:1], num_clips=CLIPS)
    scores, _ = _gradient(model, case, images, _plan((1, 2), CLIPS))
    assert torch.equal(scores, ClipReward()(video, PROMPTS[:1]))


@pytest.mark.parametrize("name", ["cogvideox_i2v", "wan_i2v"])
def test_the_batch_has_no_effect(
    folders: Any, images: list[Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two videos together and one by one; Wan's pipeline takes one image."""
    case = IMAGE_CASES[name]
    model = _in_float64(case, folders(name), monkeypatch)
    together = _gradient(model, case, images, _plan((2,), CLIPS), num_videos=2, batching=Batching(2, 2, 3))
    split = _gradient(model, case, images, _plan((2,), CLIPS), num_videos=2)
    for found, expected in zip(together, split, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", REFUSED)
def test_pipelines_that_change_their_image_without_gradient_are_refused(tmp_path: Path, name: str) -> None:
    case = PIPELINES[name]
    with pytest.raises(UserError, match="does more with an image than to encode it"):
        load_case(case, save(case, tmp_path)).check_clips()


@pytest.mark.parametrize("rule", [(0,), (3,), (4, 5), (12,)])
def test_rewards_get_the_frames_of_the_whole_video_by_their_index(
    folders: Any, images: list[Path], rule: tuple[int, ...]
) -> None:
    """Of a clip, of the frame between two clips, of two clips; clips of five frames."""
    case = IMAGE_CASES["wan_i2v"]
    model = load_case(case, folders("wan_i2v"))
    (video,) = sample_frames(model, encode_prompts(model, images)[0:1], SEEDS[:1], num_clips=CLIPS)
    reward = FrameReward()
    scores, _ = _gradient(model, case, images, _plan((2,), CLIPS), frames=rule, reward=reward)
    assert torch.equal(scores, reward(video[:, list(rule)], PROMPTS[:1]))


def test_denoiser_calls_are_those_of_sampling(folders: Any, images: list[Path]) -> None:
    case = IMAGE_CASES["wan_i2v"]
    model = load_case(case, folders("wan_i2v"))
    _gradient(model, case, images, _plan((1, 2), CLIPS))
    assert model.denoiser_calls == CLIPS * STEPS * 2  # branches of guidance


def test_memory_settings_have_no_effect(
    folders: Any, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = IMAGE_CASES["cogvideox_i2v"]
    model = _in_float64(case, folders("cogvideox_i2v"), monkeypatch)
    _, expected = _gradient(model, case, images, _plan((1, 2), CLIPS))
    for recompute in (False, "earlier"):
        _, found = _gradient(model, case, images, _plan((1, 2), CLIPS, recompute=recompute))
        assert torch.equal(found, expected)
    model.apply_memory_optimizations("block", compile_blocks=False)
    for recompute in (True, "nested"):
        _, found = _gradient(model, case, images, _plan((1, 2), CLIPS, recompute=recompute))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_a_pipeline_without_gradient_in_its_image_is_named(folders: Any, images: list[Path]) -> None:
    case = IMAGE_CASES["cogvideox_i2v"]
    model = load_case(case, folders("cogvideox_i2v"))
    original = model.pipe.prepare_latents

    def detached(*args: Any, **kwargs: Any) -> Any:
        latents, image_latents = original(*args, **kwargs)
        return latents, image_latents.detach()

    model.pipe.prepare_latents = detached
    with pytest.raises(UserError, match=r"no gradient in the image .*; set sampling.truncation_clips=1"):
        _gradient(model, case, images, _plan((2,), CLIPS))
    _, gradient = _gradient(model, case, images, _plan((2,), 1))
    assert gradient.norm() > 0
