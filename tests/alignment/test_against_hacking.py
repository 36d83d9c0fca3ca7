"""Hinges, clips of single videos' gradients and reward dropout, against one graph and closed forms."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.nonlinear_rewards import REWARD_TERMS, ClipReward, FrameReward
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import SAMPLING, adapter_gradient, load_tiny, randomise_adapter
from tests.helpers.training import Keeper, file_contents
from vader_ray.alignment.algorithms.vader import accumulate_gradient
from vader_ray.alignment.decoding import decode_all
from vader_ray.alignment.endings import mean_outputs
from vader_ray.alignment.gradient_clip import clip_by_video
from vader_ray.alignment.reward_dropout import draw_kept, keep_probabilities, kept_terms
from vader_ray.alignment.reward_gradient import RewardOutput, RewardTerm
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import ExperimentConfig
from vader_ray.models.adapters.files import WEIGHTS
from vader_ray.training.loop import train
from vader_ray.types import RemoteReward, TruncationPlan

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS, STEPS, FRAMES = [3, 4], SAMPLING["num_inference_steps"], SAMPLING["num_frames"]
PLAN = TruncationPlan(STEPS, (STEPS - 1,))
ALONE, TOGETHER = Batching(), Batching(2, 2, 2)


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder: Path) -> Any:
    loaded = load_tiny(tiny_pipeline_folder, precision="float64")
    randomise_adapter(loaded)
    return loaded


def _gradient(
    model: Any, terms: Sequence[RewardTerm], batching: Batching = TOGETHER, max_norm: float | None = None
) -> tuple[list[RewardOutput], Tensor]:
    """The engine's gradient of the mean objective over two videos."""
    for parameter in model.adapter_parameters():
        parameter.grad = None
    rollout = Rollout(PROMPTS, model.encode(PROMPTS), SEEDS, [[range(FRAMES)] * 2 for _ in terms])
    outputs = accumulate_gradient(model, terms, rollout, PLAN, batching, scale=0.5, max_norm=max_norm)
    return outputs, -torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])


def _scores(model: Any, terms: Sequence[RewardTerm]) -> tuple[Tensor, dict[str, Tensor]]:
    """Latents of the two videos and the scores of each reward, in one graph."""
    conditioning = model.encode(PROMPTS)
    latents = model.sample_with_grad(model.sample_prefix(conditioning, PLAN, SEEDS), conditioning, PLAN)
    frames = decode_all(latents, model.decoder)
    scores = dict[str, Tensor]()
    for term in terms:
        assert not isinstance(term.reward, RemoteReward)
        scores[term.name] = term.reward(frames, PROMPTS)
    return latents, scores


# ---- hinge


@pytest.mark.parametrize(("reward", "batching"), [(FrameReward(), ALONE), (ClipReward(), TOGETHER)])
def test_a_hinge_has_the_gradient_of_one_graph_over_its_formula(
    model: Any, reward: Any, batching: Batching
) -> None:
    """The hinge is between the scores of the two videos: one of them is raised, the other is not."""
    _, scores = _scores(model, [RewardTerm("r", reward)])
    hinge = float(scores["r"].detach().mean())
    assert (scores["r"] < hinge).sum() == 1
    loss = torch.relu(hinge - scores["r"])
    expected = adapter_gradient(model, -0.7 * loss.mean())
    (outputs, gradient) = _gradient(model, [RewardTerm("r", reward, weight=0.7, hinge=hinge)], batching)
    objective = torch.cat([output.objective for output in outputs])
    torch.testing.assert_close(objective, -0.7 * loss.detach(), rtol=1e-12, atol=1e-14)
    # two orders of float64 sums
    assert (gradient - expected).norm() <= 1e-11 * expected.norm()
    assert expected.any()


def test_a_hinge_stops_the_gradient_where_the_score_is_enough(model: Any) -> None:
    _, scores = _scores(model, [RewardTerm("r", ClipReward())])
    lowest, highest = float(scores["r"].detach().min()), float(scores["r"].detach().max())
    _, none = _gradient(model, [RewardTerm("r", ClipReward(), hinge=lowest - 1)])
    assert not none.any()
    _, same = _gradient(model, [RewardTerm("r", ClipReward(), hinge=highest + 1)])
    _, plain = _gradient(model, [RewardTerm("r", ClipReward())])
    assert torch.equal(same, plain), "below the hinge nothing differs"


def test_the_slope_of_a_hinge_is_its_finite_difference() -> None:
    term, scores = RewardTerm("r", FrameReward(), weight=0.7, hinge=0.3), torch.linspace(-1, 1, 8).double()
    step = 1e-6
    difference = (term.value(scores + step) - term.value(scores - step)) / (2 * step)
    torch.testing.assert_close(term.slope(scores), difference, rtol=0, atol=1e-9)
    assert float(term.slope(torch.tensor([0.3]))) == 0, "at the kink"
    assert term.value(torch.tensor([math.nan])).isnan().all(), "a NaN is not hidden"


# ---- clip of each video's gradient


@pytest.mark.parametrize(
    ("kind", "batching"), [("frame", ALONE), ("clip", TOGETHER), ("mix", ALONE), ("mix", TOGETHER)]
)
def test_each_videos_gradient_is_clipped_by_its_own_norm(model: Any, kind: str, batching: Batching) -> None:
    """Expected: sum over videos of min(1, c / n) · ∂R/∂adapter, with n = ‖∂R/∂latents‖, from one graph."""
    terms = REWARD_TERMS[kind]
    latents, scores = _scores(model, terms)
    objective = torch.stack([term.value(scores[term.name]) for term in terms]).sum(dim=0)
    (d_latents,) = torch.autograd.grad(objective.sum(), latents, retain_graph=True)
    norms = d_latents.flatten(1).norm(dim=1)
    assert float(norms.max() / norms.min()) > 1.01, "one is clipped and the other is not"
    limit = float(norms.mean())
    expected = adapter_gradient(model, ((limit / norms).clamp(max=1) * objective).mean())
    outputs, gradient = _gradient(model, terms, batching, max_norm=limit)
    found = torch.cat(
        [out.latents_gradient_norms for out in outputs if out.latents_gradient_norms is not None]
    )
    torch.testing.assert_close(found, norms, rtol=1e-11, atol=0)
    assert (gradient - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("kind", ["frame", "mix"])
def test_without_a_limit_no_bit_changes(model: Any, kind: str) -> None:
    plain, free = (_gradient(model, REWARD_TERMS[kind], max_norm=limit)[1] for limit in (None, math.inf))
    assert torch.equal(plain, free)


def test_what_is_not_finite_stays_so_and_a_zero_stays_zero() -> None:
    gradient = torch.ones(4, 1, 1, 2, 2)
    gradient[1], gradient[2, ..., 0], gradient[3] = 0.0, math.nan, math.inf
    norms = clip_by_video(gradient, 1.0, scale=0.5)
    assert norms.tolist()[:2] == [4.0, 0.0]
    torch.testing.assert_close(gradient[0], torch.full((1, 1, 2, 2), 0.25))
    assert not gradient[1].any()
    assert not gradient[2].isfinite().all()
    assert not gradient[3].isfinite().any()


def test_several_endings_count_as_their_mean_norm() -> None:
    def output(norms: list[float] | None) -> RewardOutput:
        clipped = None if norms is None else torch.tensor(norms)
        return RewardOutput({}, torch.zeros(2), {}, clipped)

    (mean,) = mean_outputs([output([1.0, 2.0]), output([3.0, 6.0])], 2)
    assert mean.latents_gradient_norms is not None
    assert mean.latents_gradient_norms.tolist() == [2.0, 4.0]
    assert mean_outputs([output(None)] * 2, 2)[0].latents_gradient_norms is None


# ---- dropout

DROPOUT = [0.5, 0.0, 0.3], [0.5, 0.2, 0.9], [0.9, 0.9]


def _subsets(dropout: Sequence[float]) -> dict[tuple[int, ...], float]:
    """Every set of kept rewards that is not empty, with its probability, by enumeration."""
    indices = range(len(dropout))
    sets = chain.from_iterable(combinations(indices, size) for size in indices)
    weights = {
        kept: math.prod(1 - dropout[i] if i in kept else dropout[i] for i in indices)
        for kept in [*(kept for kept in sets if kept), tuple(indices)]
    }
    return {kept: weight / sum(weights.values()) for kept, weight in weights.items()}


@pytest.mark.parametrize("dropout", DROPOUT)
def test_rewards_are_kept_with_their_probability(dropout: list[float]) -> None:
    subsets = _subsets(dropout)
    exact = [sum(share for kept, share in subsets.items() if i in kept) for i in range(len(dropout))]
    assert keep_probabilities(dropout) == pytest.approx(exact, rel=1e-12)
    draws = 2000
    drawn = [draw_kept(dropout, torch.Generator().manual_seed(seed)) for seed in range(draws)]
    for index, probability in enumerate(exact):
        deviation = math.sqrt(max(0.0, draws * probability * (1 - probability)))
        assert abs(sum(index in kept for kept in drawn) - draws * probability) <= 5 * deviation + 1e-9


def test_the_mean_gradient_over_all_draws_is_that_of_the_mix(model: Any) -> None:
    dropout, terms = [0.5, 0.2], REWARD_TERMS["mix"]
    _, expected = _gradient(model, terms)
    mean = torch.zeros_like(expected)
    for kept, probability in _subsets(dropout).items():
        mean += probability * _gradient(model, kept_terms(terms, dropout, kept))[1]
    assert (mean - expected).norm() <= 1e-11 * expected.norm()
    assert expected.any()


# ---- whole steps: all of it together


def _config(folder: Path, **changes: Any) -> ExperimentConfig:
    settings: dict[str, Any] = {
        "algorithm": {"name": "vader", "gradient_clip_quantile": 0.6},
        "rewards": [
            {"reward": "brightness", "hinge": 0.9, "dropout": 0.5, "frames": "random:1"},
            {"reward": "sharpness", "weight": -0.3, "dropout": 0.4},
            {"reward": "colorfulness", "weight": 0.2, "target": 0.3, "dropout": 0.4},
        ],
        "model": {
            "family": "modelscope",
            "weights": str(folder),
            "precision": "float64",
            "decoder_precision": "float64",
        },
        "num_steps": 4,
        "evaluation": {"every": 4, "num_videos": 2, "num_shown": 1},
    }
    return tiny_config(folder, **settings | changes)


def _kept(keeper: Keeper) -> list[set[str]]:
    """Rewards of each step; those of all its videos are the same."""
    kept = []
    for report in keeper.reports[1:]:
        names = {frozenset(query.scores) for query in report.queries}
        assert len(names) == 1
        kept.append(set(next(iter(names))))
    return kept


@pytest.mark.slow
def test_a_step_clips_at_the_quantile_of_the_videos_before_it(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config, keeper = _config(tiny_pipeline_folder), Keeper(tmp_path)
    state = train(config, on_step=keeper)
    norms = state.algorithm_state["latents_gradient_norms"]
    assert len(norms) == 4 * 4
    assert len(set(norms)) == 4 * 4
    for step, (share, mean) in enumerate(
        keeper.metrics("train/clipped_share", "train/latents_gradient_norm")[1:]
    ):
        own, before = norms[4 * step : 4 * step + 4], norms[: 4 * step]
        limit = float(np.quantile(before, 0.6)) if before else math.inf
        assert share == np.mean([norm > limit for norm in own])
        assert mean == pytest.approx(np.mean(own), rel=1e-12)
    assert len(set(map(frozenset, _kept(keeper)))) > 1, "the steps must have different rewards"


@pytest.mark.slow
def test_a_resumed_run_has_the_norms_and_the_draws_of_a_straight_one(
    tiny_pipeline_folder: Path, tmp_path: Path
) -> None:
    config = _config(tiny_pipeline_folder)
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    train(config, on_step=straight)
    saved = json.loads((tmp_path / "straight" / "2" / "state.json").read_text())
    assert len(saved["algorithm_state"]["latents_gradient_norms"]) == 8
    train(config, on_step=resumed, resume_from=tmp_path / "straight" / "2")
    first, second = tmp_path / "straight" / "4", tmp_path / "resumed" / "4"
    assert file_contents(first / "adapter") == file_contents(second / "adapter")
    assert (first / "optimizer.pt").read_bytes() == (second / "optimizer.pt").read_bytes()
    names = ("train/clipped_share", "train/latents_gradient_norm", "train/reward_mean", "train/grad_norm")
    assert straight.metrics(*names)[3:] == resumed.metrics(*names)
    states = [
        json.loads((folder / "state.json").read_text())["algorithm_state"] for folder in (first, second)
    ]
    assert states[0] == states[1]


WORKER = """
import json, shutil, sys
from pathlib import Path
import torch
from vader_ray.config import ExperimentConfig
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.loop import train
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
def keep(report):
    if report.checkpoint:
        shutil.copytree(report.checkpoint, folder / "together" / str(report.step))
config = ExperimentConfig.model_validate_json((folder / "recipe.json").read_text())
state = train(config, group=WorkerGroup(rank, 2), on_step=keep)
(folder / f"state{rank}.json").write_text(json.dumps(state.algorithm_state))
"""


@pytest.mark.slow
def test_two_workers_equal_one(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """float64, so that only the order of sums differs."""
    config, keeper = _config(tiny_pipeline_folder), Keeper(tmp_path / "alone")
    (tmp_path / "recipe.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", WORKER]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    state = train(config, on_step=keeper)
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    first, second = (json.loads((tmp_path / f"state{rank}.json").read_text()) for rank in range(2))
    assert first == second, "the running quantile must be the same on all workers"
    name = "latents_gradient_norms"
    assert first[name] == pytest.approx(state.algorithm_state[name], rel=1e-6)
    one, two = (load_file(tmp_path / kind / "4" / "adapter" / WEIGHTS) for kind in ("alone", "together"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-6)
