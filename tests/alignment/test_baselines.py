"""DDPO and Diffusion-DPO: closed forms, the papers' formulas written again, finite differences, and exact
continuation."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers.families import CASES, save, save_images
from tests.helpers.linear import linear_model
from tests.helpers.nonlinear_rewards import REWARD_TERMS
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import SAMPLING, adapter_gradient, load_tiny, randomise_adapter
from tests.helpers.training import Keeper, file_contents
from vader_ray import models
from vader_ray.alignment import algorithms
from vader_ray.alignment.algorithms.ddpo import DDPOAlgorithm, DDPOSettings, PromptStatTracker, clipped_loss
from vader_ray.alignment.algorithms.dpo import DiffusionDPOAlgorithm, DiffusionDPOSettings, preference_loss
from vader_ray.alignment.base import StepContext
from vader_ray.alignment.rollout import Batching, Rollout
from vader_ray.config import (
    AdapterConfig,
    ModelConfig,
    SamplingConfig,
    load,
)
from vader_ray.errors import UserError
from vader_ray.models.adapters.files import WEIGHTS
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.transitions import noised
from vader_ray.models.videocrafter2.scheduler import DynamicRescaleDDIMScheduler
from vader_ray.shapes.data import draw_scenes, render
from vader_ray.training.loop import train
from vader_ray.training.media import write_mp4
from vader_ray.training.pairs import read_frames, read_pairs

PROMPTS = ["a red circle moving left", "a blue star moving up"]
SEEDS = [3, 4]
FRAMES = SAMPLING["num_frames"]
NUM_STEPS = SAMPLING["num_inference_steps"]


def _closed_form(model: Any, step: int) -> tuple[float, float, float]:
    """a, b, σ of x′ = a·x + b·ε + σ·noise (arXiv 2010.02502, formulas 12 and 16), ε = θ·x."""
    scheduler = model.pipe.scheduler
    alphas = [float(scheduler.alphas_cumprod[timestep]) for timestep in scheduler.timesteps] + [1.0]
    now, after = alphas[step], alphas[step + 1]
    sigma = 0.7 * math.sqrt((1 - after) / (1 - now) * (1 - now / after))
    a = math.sqrt(after / now)
    return a, math.sqrt(1 - after - sigma**2) - a * math.sqrt(1 - now), sigma


@pytest.mark.parametrize("step", [0, 1])
def test_log_probability_and_score_function_of_a_linear_denoiser_have_their_closed_form(step: int) -> None:
    model, nothing = linear_model(0.2, 3, (1, 1, 2, 3), eta=0.7), Conditioning({})
    chain = model.sample_trajectory(nothing, SEEDS)
    assert chain.stochastic == (0, 1)  # the last step ends at variance 0
    x, following = chain.samples[step], chain.samples[step + 1]
    a, b, sigma = _closed_form(model, step)
    mean = (a + b * 0.2) * x
    expected = torch.distributions.Normal(mean, sigma).log_prob(following).mean(dim=(1, 2, 3, 4))
    found = model.log_probabilities(chain, nothing, step)
    # the scheduler's tables are float32, and σ² is a difference of them
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert chain.log_probabilities[:, step].tolist() == pytest.approx(found.tolist(), rel=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), model.pipe.transformer.theta)
    score = ((following - mean) * b * x / sigma**2).mean(dim=(1, 2, 3, 4)).sum()
    assert float(gradient) == pytest.approx(float(score), rel=1e-4)


def _accumulated(model: Any, chain: Any, advantages: Tensor, clip_range: float) -> float:
    settings, nothing = DDPOSettings(clip_range=clip_range), Conditioning({})
    model.pipe.transformer.theta.grad = None
    rollout = Rollout(PROMPTS, nothing, SEEDS, [])
    DDPOAlgorithm(settings, model.sampling)._accumulate(model, chain, rollout, advantages, 1, 0.5)
    return float(model.pipe.transformer.theta.grad)


def test_gradient_at_ratio_one_is_the_policy_gradient() -> None:
    """∂(mean loss)/∂θ = −mean over videos and steps of A·∂log p/∂θ (arXiv 2305.13301, the score function
    estimator)."""
    model = linear_model(0.2, 3, (1, 1, 2, 3), eta=0.7)
    chain, advantages = (
        model.sample_trajectory(Conditioning({}), SEEDS),
        torch.tensor([1.5, -0.4], dtype=torch.float64),
    )
    expected = 0.0
    for step in (0, 1):
        a, b, sigma = _closed_form(model, step)
        x, following = chain.samples[step], chain.samples[step + 1]
        score = ((following - (a + b * 0.2) * x) * b * x / sigma**2).mean(dim=(1, 2, 3, 4))
        expected -= float((advantages * score).mean()) / 2
    assert _accumulated(model, chain, advantages, 1e-4) == pytest.approx(expected, rel=1e-4)  # as above


def test_the_clipped_region_has_no_gradient_and_the_way_back_has() -> None:
    model = linear_model(0.2, 3, (1, 1, 2, 3), eta=0.7)
    chain, nothing = model.sample_trajectory(Conditioning({}), SEEDS), Conditioning({})
    model.pipe.transformer.theta.data += 0.3
    with torch.no_grad():
        ratios = torch.stack(
            [
                (model.log_probabilities(chain, nothing, s) - chain.log_probabilities[:, s]).exp()
                for s in (0, 1)
            ]
        )
    assert ((ratios - 1).abs() > 1e-3).all(), "θ has moved far enough for every ratio to leave the clip range"
    further = torch.where(ratios[0] > 1, 1.0, -1.0)
    assert (torch.sign(ratios[0] - 1) == torch.sign(ratios[1] - 1)).all(), "both steps have moved alike"
    assert _accumulated(model, chain, further, 1e-3) == 0
    assert _accumulated(model, chain, -further, 1e-3) != 0
    assert _accumulated(model, chain, further, 1e3) != 0


def test_clipped_loss_is_the_formula() -> None:
    now = torch.tensor([0.1, -0.1, 0.02, 0.1], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([2.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    loss, ratio = clipped_loss(now, torch.zeros(4), advantages, 0.05)
    assert ratio.tolist() == pytest.approx(np.exp([0.1, -0.1, 0.02, 0.1]))
    assert loss.tolist() == pytest.approx([-2 * 1.05, -2 * math.exp(-0.1), math.exp(0.02), math.exp(0.1)])
    (gradient,) = torch.autograd.grad(loss.sum(), now)
    assert gradient.tolist() == pytest.approx([0, -2 * math.exp(-0.1), math.exp(0.02), math.exp(0.1)])


def test_rewards_are_normalised_by_prompt_once_enough_are_known() -> None:
    tracker = PromptStatTracker({"a": [1.0, 2.0, 3.0]}, buffer_size=3, min_count=3)
    prompts, values = ["a", "b", "b", "c"], [4.0, 1.0, 3.0, float("nan")]
    tracker.add(prompts, values)
    assert tracker.rewards == {"a": [2.0, 3.0, 4.0], "b": [1.0, 3.0]}
    found = tracker.normalise(prompts, [*values[:3], 0.0])
    step = np.array([4.0, 1.0, 3.0, 0.0])
    expected = [1 / math.sqrt(2 / 3), *((step[1:] - step.mean()) / step.std())]
    assert found == pytest.approx(expected, rel=1e-6)  # 1e-8 is added to the deviation


def _parameters(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.adapter_parameters()])


def _shift(model: Any, direction: Tensor, step: float) -> None:
    pieces = direction.split([parameter.numel() for parameter in model.adapter_parameters()])
    for parameter, piece in zip(model.adapter_parameters(), pieces, strict=True):
        parameter.data += step * piece.view_as(parameter)


def _direction(model: Any) -> Tensor:
    return torch.randn(
        _parameters(model).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def _numeric(model: Any, value: Any, size: float = 1e-5) -> float:
    """Central difference along a random direction."""
    direction = _direction(model)
    results = []
    for step in (size, -size):
        _shift(model, direction, step)
        with torch.no_grad():
            results.append(float(value()))
        _shift(model, direction, -step)
    return (results[0] - results[1]) / (2 * size)


@pytest.mark.parametrize("step", [0, 2, 4])
def test_log_probabilities_of_a_pipeline_equal_those_of_its_chain_and_finite_differences(
    tiny_pipeline_folder: Path, step: int
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64", eta=1.0)
    randomise_adapter(model)
    conditioning = model.encode(PROMPTS)
    chain = model.sample_trajectory(conditioning, SEEDS)
    assert torch.equal(chain.latents, model.sample(conditioning, SEEDS))
    assert chain.stochastic == tuple(range(NUM_STEPS))
    now = model.log_probabilities(chain[1:], conditioning[1:], step)
    assert float(now.detach()) == pytest.approx(float(chain.log_probabilities[1, step]), rel=1e-9)
    gradient = adapter_gradient(model, model.log_probabilities(chain, conditioning, step).sum())
    numeric = _numeric(model, lambda: model.log_probabilities(chain, conditioning, step).sum())
    assert numeric == pytest.approx(float(gradient @ _direction(model)), rel=1e-5)
    assert gradient.norm() > 0


def _error_by_hand(model: Any, chain: Any, conditioning: Any, seed: int, step: int, kind: str) -> Tensor:
    """‖target − prediction‖² per element by the library's own noising and velocity, the conditional branch
    alone."""
    scheduler, clean = model.pipe.scheduler, chain.samples[-1]
    timestep = scheduler.timesteps[step]
    noise = (
        torch.randn(FRAMES, *clean.shape[1:], generator=torch.Generator().manual_seed(seed))
        .repeat(2, 1, 1, 1)
        .double()
    )
    times = timestep.expand(len(clean))
    videos = scheduler.add_noise(clean, noise, times).unflatten(0, (2, FRAMES)).transpose(1, 2)
    predicted = model.pipe.unet(videos, timestep, conditioning.tensors["prompt_embeds"]).sample
    target = noise if kind == "epsilon" else scheduler.get_velocity(clean, noise, times)
    target = target.unflatten(0, (2, FRAMES)).transpose(1, 2)
    return (predicted - target).square().mean(dim=(1, 2, 3, 4))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("step", [0, 3])
def test_denoising_errors_are_those_of_the_conditional_prediction(
    tiny_pipeline_folder: Path, kind: str, step: int
) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    model.pipe.scheduler.register_to_config(prediction_type=kind)
    randomise_adapter(model)
    conditioning = model.encode(PROMPTS)
    chain = model.sample_trajectory(conditioning, SEEDS)
    found = model.denoising_errors(chain, conditioning, [7, 7], step)
    with torch.no_grad():
        expected = _error_by_hand(model, chain, conditioning, 7, step, kind)
        assert found.tolist() == pytest.approx(
            expected.tolist(), rel=1e-6
        )  # the library's tables are float32
        with model.without_adapter():
            plain = model.denoising_errors(chain, conditioning, [7, 7], step)
            unadapted = load_tiny(tiny_pipeline_folder, precision="float64")
            unadapted.pipe.scheduler = model.pipe.scheduler
            assert plain.tolist() == pytest.approx(
                _error_by_hand(unadapted, chain, conditioning, 7, step, kind).tolist(), rel=1e-6
            )
    assert not torch.allclose(plain, found)
    gradient = adapter_gradient(model, found.sum())
    numeric = _numeric(model, lambda: model.denoising_errors(chain, conditioning, [7, 7], step).sum())
    assert numeric == pytest.approx(float(gradient @ _direction(model)), rel=1e-5)


def test_preference_loss_is_equation_14() -> None:
    """−log σ(−βTω(‖ε_w − ε_θ‖² − ‖ε_w − ε_ref‖² − (‖ε_l − ε_θ‖² − ‖ε_l − ε_ref‖²))), with numpy."""
    w, w_ref, lost, lost_ref, weight = 0.31, 0.28, 0.52, 0.55, 30.0
    expected = -np.log(1 / (1 + np.exp(weight * ((w - w_ref) - (lost - lost_ref)))))
    errors = torch.tensor([w, lost, lost, w], dtype=torch.float64)
    reference = torch.tensor([w_ref, lost_ref, lost_ref, w_ref], dtype=torch.float64)
    loss, margin = preference_loss(errors, reference, torch.tensor([1.0, -1.0]), beta=2 * weight)
    assert loss.tolist() == pytest.approx([expected, expected])
    assert (margin < 0).all(), "the winner's error has grown, the loser's fallen"
    tie, unknown = torch.tensor([0.0]), torch.tensor([float("nan")])
    assert float(preference_loss(torch.rand(2), torch.rand(2), tie, 5.0)[0]) == 0
    assert preference_loss(torch.rand(2), torch.rand(2), unknown, 5.0)[0].isnan()


@torch.no_grad()
def _dpo_loss(
    model: Any, conditioning: Any, chain: Any, sign: float, draws: int, settings: DiffusionDPOSettings
) -> float:
    """The mean loss of one pair over its draws, from errors computed by hand."""
    generator, total = torch.Generator().manual_seed(draws), 0.0
    for _ in range(settings.num_draws):
        step = int(torch.randint(NUM_STEPS, (), generator=generator))
        seed = int(torch.randint(2**62, (), generator=generator))
        new = _error_by_hand(model, chain, conditioning, seed, step, "epsilon")
        with model.without_adapter():
            old = _error_by_hand(model, chain, conditioning, seed, step, "epsilon")
        inside = -settings.beta / 2 * sign * float((new[0] - old[0]) - (new[1] - old[1]))
        total += math.log1p(math.exp(-inside)) / settings.num_draws
    return total


def test_dpo_gradient_equals_finite_differences_of_the_papers_loss(tiny_pipeline_folder: Path) -> None:
    model = load_tiny(tiny_pipeline_folder, precision="float64")
    randomise_adapter(model)
    prompts = [PROMPTS[0]] * 2
    conditioning, terms, settings = (
        model.encode(prompts),
        REWARD_TERMS["frame"],
        DiffusionDPOSettings(beta=3.0, num_draws=2),
    )
    rollout = Rollout(prompts, conditioning, SEEDS, [[range(FRAMES)] * 2], draw_seeds=[11, 12])
    context = StepContext(2, list, torch.Generator(), {})
    algorithm = DiffusionDPOAlgorithm(settings, model.sampling)
    (update,) = algorithm.updates(model, terms, rollout, Batching(2, 2, 3), context)
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.adapter_parameters()])
    first, second = update.outputs[0].objective.tolist()
    chain, sign = model.sample_trajectory(conditioning, SEEDS), 1.0 if first > second else -1.0
    expected = _dpo_loss(model, conditioning, chain, sign, 11, settings)
    assert np.mean(update.metrics["loss"]) == pytest.approx(expected, rel=1e-6)
    numeric = _numeric(model, lambda: _dpo_loss(model, conditioning, chain, sign, 11, settings))
    assert numeric == pytest.approx(float(gradient @ _direction(model)), rel=1e-5)


ALGORITHMS = {
    "ddpo": {"name": "ddpo", "num_updates": 2, "clip_range": 1e-3, "min_count": 2, "buffer_size": 3},
    "dpo": {"name": "dpo", "num_updates": 2, "num_draws": 2, "beta": 50.0},
}


def _config(folder: Path, name: str, **changes: Any) -> Any:
    model = {
        "family": "modelscope",
        "weights": str(folder),
        "precision": "float64",
        "decoder_precision": "float64",
    }
    settings = {"algorithm": ALGORITHMS[name], "sampling": SAMPLING | {"eta": 1.0}, "model": model}
    return tiny_config(folder, **settings | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_resumed_run_equals_the_straight_run_bit_for_bit(
    tiny_pipeline_folder: Path, tmp_path: Path, name: str
) -> None:
    config = _config(tiny_pipeline_folder, name, num_steps=4, videos_per_step=4)
    straight, resumed = Keeper(tmp_path / "straight"), Keeper(tmp_path / "resumed")
    train(config, on_step=straight)
    state = train(config, on_step=resumed, resume_from=tmp_path / "straight" / "2")
    for part in ("adapter", "best_adapter", "optimizer.pt"):
        first, second = tmp_path / "straight" / "4" / part, tmp_path / "resumed" / "4" / part
        assert (
            first.read_bytes() == second.read_bytes()
            if first.is_file()
            else file_contents(first) == file_contents(second)
        )
    names = (
        "train/reward_mean",
        "train/grad_norm",
        "eval/objective",
        "cost/reward_queries",
        "cost/denoiser_calls",
    )
    assert straight.metrics(*names)[3:] == resumed.metrics(*names)
    assert bool(state.algorithm_state) == (name == "ddpo")


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_costs_are_counted(tiny_pipeline_folder: Path, tmp_path: Path, name: str) -> None:
    state = train(_config(tiny_pipeline_folder, name, num_steps=1), on_step=Keeper(tmp_path))
    sampling = 4 * NUM_STEPS * 2  # videos, denoising steps, guidance branches
    learning = {
        "ddpo": sampling * 2,
        "dpo": 4 * 2 * 2 * 2,
    }  # updates; videos, updates, draws, with and without adapter
    assert (state.reward_queries, state.denoiser_calls) == (4, sampling + learning[name])


WORKER = """
import shutil, sys
from pathlib import Path
import torch
from vader_ray.config import ExperimentConfig
from vader_ray.training.distributed import WorkerGroup
from vader_ray.models.core.transitions import noised
from vader_ray.training.loop import train
names, rank, folder = sys.argv[1].split(","), int(sys.argv[2]), Path(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
def keep(name):
    return lambda report: (
        report.checkpoint and shutil.copytree(report.checkpoint, folder / name / str(report.step))
    )
for name in names:
    config = ExperimentConfig.model_validate_json((folder / f"{name}.json").read_text())
    train(config, group=WorkerGroup(rank, 2), on_step=keep(name))
"""


def _moments(folder: Path) -> list[Tensor]:
    """The first moments of AdamW: a sum over steps of the gradients."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)["state"]
    return [entry["exp_avg"] for entry in state.values()]


@pytest.mark.slow
def test_two_workers_equal_one(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """float64, so that only the order of sums differs; without fresh advantages the second step would show
    it."""
    for name in ALGORITHMS:
        config = _config(
            tiny_pipeline_folder,
            name,
            num_steps=2,
            evaluation={"every": 2, "num_videos": 2, "num_shown": 1},
            optimizer={"learning_rate": 0.01, "schedule": "cosine", "ema_decay": 0.9},
        )
        (tmp_path / f"{name}.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", WORKER, ",".join(ALGORITHMS)]
    workers = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [worker.wait(timeout=500) for worker in workers] == [0, 0]
    for name in ALGORITHMS:
        config = _config(
            tiny_pipeline_folder,
            name,
            num_steps=2,
            evaluation={"every": 2, "num_videos": 2, "num_shown": 1},
            optimizer={"learning_rate": 0.01, "schedule": "cosine", "ema_decay": 0.9},
        )
        train(config, on_step=Keeper(tmp_path / f"{name}_alone"))
        alone, together = tmp_path / f"{name}_alone" / "2", tmp_path / name / "2"
        for one, two in zip(_moments(alone), _moments(together), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-7, atol=1e-12 + 1e-7 * float(one.abs().max()))
        for part in ("adapter", "raw_adapter"):
            one, two = (load_file(folder / part / WEIGHTS) for folder in (alone, together))
            for key in one:
                torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-6)
        states = [json.loads((folder / "state.json").read_text()) for folder in (alone, together)]
        assert states[0]["algorithm_state"].keys() == states[1]["algorithm_state"].keys()
        assert states[0]["denoiser_calls"] == states[1]["denoiser_calls"]


@pytest.mark.slow
def test_dpo_pairs_share_prompts(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    train(_config(tiny_pipeline_folder, "dpo", num_steps=3), on_step=keeper)
    prompts = [query.prompt for report in keeper.reports for query in report.queries]
    assert prompts[::2] == prompts[1::2]
    assert len(set(prompts[:6:2])) == 3, "every prompt comes once before any comes again"
    assert len({query.noise_seed for report in keeper.reports for query in report.queries}) == 12


def _write_pairs(folder: Path, suffix: str, videos: str) -> Path:
    """Bright videos preferred to dark ones."""
    rows = []
    for place, prompt in enumerate(PROMPTS):
        names = []
        for word, level in (("bright", 220), ("dark", 30)):
            frames = np.full((FRAMES, 8, 8, 3), level + place, np.uint8)
            names.append(f"{word}{place}{videos}")
            if videos == ".npy":
                np.save(folder / names[-1], frames)
            else:
                write_mp4(frames, folder / names[-1], 8)
        rows.append({"prompt": prompt, "winner": names[0], "loser": names[1]})
    path = folder / f"pairs{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize(("suffix", "videos"), [(".jsonl", ".npy"), (".parquet", ".mp4")])
def test_given_pairs_are_learnt_from_without_a_reward_query(
    tiny_pipeline_folder: Path, tmp_path: Path, suffix: str, videos: str
) -> None:
    path = _write_pairs(tmp_path, suffix, videos)
    algorithm = {"name": "dpo", "num_draws": 2, "pairs": str(path)}
    keeper = Keeper(tmp_path)
    evaluation = {"every": 2, "num_videos": 2, "num_shown": 1}
    config = tiny_config(tiny_pipeline_folder, algorithm=algorithm, num_steps=2, evaluation=evaluation)
    state = train(config, on_step=keeper)
    assert state.reward_queries == 0
    assert state.denoiser_calls == 2 * 4 * 2 * 2  # steps, videos, draws, with and without adapter
    losses = [report.metrics["train/loss"] for report in keeper.reports[1:]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6), "a fresh adapter prefers nothing"
    assert abs(losses[1] - math.log(2)) > 1e-3
    pair = read_pairs(str(path))[0]
    frames = read_frames(pair.winner, config.sampling)
    assert frames.shape == (FRAMES, 3, 8, 8)
    assert float(frames.mean()) == pytest.approx(220 / 255, abs=0.02)  # mp4 loses a little


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "winner": "x.npy"}, "needs prompt, winner, loser in every row"),
        ({"prompt": "a", "winner": "x.npy", "loser": "none.npy"}, "the video .*none.npy .* does not exist"),
    ],
)
def test_a_faulty_file_of_pairs_is_named(tmp_path: Path, row: dict[str, str], message: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=f"algorithm.pairs: .*{message}"):
        read_pairs(str(tmp_path / "pairs.jsonl"))
    with pytest.raises(
        ValueError, match=r"algorithm.pairs: .*x.npy holds uint8 \(2, 8, 8, 3\), the recipe's sampling makes"
    ):
        read_frames(tmp_path / "x.npy", SamplingConfig(**SAMPLING))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["algorithm.name=ddpo"],
         "algorithm.name=ddpo needs stochastic denoising steps; set sampling.eta to 1"),
        (["algorithm.name=ddpo", "sampling.eta=1", "sampling.truncation_depth=2"],
         "sampling.truncation_depth=2 has no effect on algorithm.name=ddpo; set it to 1, or name=vader"),
        (["algorithm.name=dpo", "videos_per_step=3"],
         "videos_per_step=3 gives runtime.num_workers=1 no equal number of them"),
        (["algorithm.name=dpo", "runtime.num_workers=8"], "choose a multiple of 16"),
        (["algorithm.name=ppo"],
         "algorithm.name: there is no 'ppo'; did you mean 'dpo'? give one of ddpo, dpo, vader, or"),
        (["algorithm.beta=1"], "algorithm.beta: there is no such setting; here are gradient_clip_quantile"),
        (["algorithm.name=dpo", "algorithm.clip_range=1"],
         "algorithm.clip_range: there is no such setting; here are beta, num_draws, num_updates, pairs"),
        (["algorithm.name=ddpo", "algorithm.buffer_size=2", "sampling.eta=1"],
         "min_count=16 is never reached by buffer_size=2"),
        (["algorithm.name=dpo", "algorithm.pairs=/nowhere.parquet"], "/nowhere.parquet is no file of pairs"),
    ],
)  # fmt: skip
def test_settings_that_do_not_apply_are_refused_with_their_remedy(changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        algorithms.check(load("shapes_hps", changes))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_ddpo_refuses_a_scheduler_whose_density_is_unknown(tiny_pipeline_folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"EulerDiscreteScheduler does not give; set sampling.scheduler=DDIMScheduler"
    ):
        load_tiny(tiny_pipeline_folder, scheduler="EulerDiscreteScheduler").check_densities()


@pytest.mark.slow
def test_ddpo_raises_the_reward_on_held_out_prompts(tiny_pipeline_folder: Path, tmp_path: Path) -> None:
    """Diffusion-DPO would not: the errors of this random denoiser say nothing about how probable its videos
    are."""
    keeper = Keeper(tmp_path)
    config = _config(
        tiny_pipeline_folder,
        "ddpo",
        algorithm={"name": "ddpo", "num_updates": 2, "clip_range": 1e-2},
        num_steps=10,
        videos_per_step=8,
        evaluation={"every": 10, "num_videos": 8, "num_shown": 1},
        runtime={"prefix_batch_size": 8, "micro_batch_size": 8},
    )
    train(config, on_step=keeper)
    gain, error = (
        keeper.reports[-1].metrics[f"eval/{kind}/brightness"] for kind in ("gain", "gain_standard_error")
    )
    assert gain > 2 * error > 0


def _schedulers() -> list[Any]:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return [
        diffusers.DDIMScheduler(**betas, steps_offset=1),
        diffusers.EulerDiscreteScheduler(**betas, prediction_type="v_prediction"),
        diffusers.DPMSolverMultistepScheduler(**betas),
        diffusers.UniPCMultistepScheduler(**flow),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        diffusers.CogVideoXDDIMScheduler(
            **betas, prediction_type="v_prediction", rescale_betas_zero_snr=True
        ),
    ]


@pytest.mark.parametrize("scheduler", _schedulers(), ids=lambda scheduler: type(scheduler).__name__)
@pytest.mark.parametrize("step", [0, 3])
def test_noised_samples_and_targets_are_the_librarys(scheduler: Any, step: int) -> None:
    scheduler.set_timesteps(NUM_STEPS)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    times = scheduler.timesteps[step].expand(2)
    sample, target = noised(scheduler, clean, noise, step)
    theirs = scheduler.scale_noise if hasattr(scheduler, "scale_noise") else scheduler.add_noise
    expected = (
        theirs(clean, times, noise) if hasattr(scheduler, "scale_noise") else theirs(clean, noise, times)
    )
    torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
    kind = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "v_prediction":  # whoever predicts it finds the clean latents
        found = scheduler.step(target, scheduler.timesteps[step], sample).pred_original_sample
        torch.testing.assert_close(
            found, clean, rtol=1e-3, atol=1e-3
        )  # float32 at a signal of a twentieth of the noise
    else:
        torch.testing.assert_close(target, noise if kind == "epsilon" else noise - clean)


def test_videocrafters_clean_latents_are_shrunk() -> None:
    scheduler = DynamicRescaleDDIMScheduler()
    scheduler.set_timesteps(4)
    clean, noise = torch.ones(1, 4, 2, 8, 8), torch.zeros(1, 4, 2, 8, 8)
    timestep = int(scheduler.timesteps[1])
    expected = 0.7 * math.sqrt(scheduler.alphas_cumprod[timestep])
    assert timestep > 400
    assert float(noised(scheduler, clean, noise, 1)[0].mean()) == pytest.approx(expected, rel=1e-5)


FLOW_AND_VELOCITY = ["svd", "animatediff", "cogvideox", "wan", "wan_a14b", "ltx", "hunyuan_video"]


@pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported:UserWarning")
@pytest.mark.parametrize("name", FLOW_AND_VELOCITY)
def test_every_family_denoises_the_noised_sample_itself(tmp_path: Path, name: str) -> None:
    """Wherever the loop is entered, the scheduler would get the very sample that was noised, and errors have
    gradient."""
    case = CASES[name]
    settings = ModelConfig(family=case.family, weights=str(save(case, tmp_path)))
    model = models.build(
        settings,
        SamplingConfig(**case.sampling),
        AdapterConfig(rank=2),
        seed=0,
        chunk_size=2,
        device=torch.device("cpu"),
    )
    randomise_adapter(model)
    conditioning = model.encode(PROMPTS, save_images(tmp_path) if model.is_image_to_video else None)
    chain = model.sample_trajectory(conditioning, SEEDS)
    torch.testing.assert_close(chain.latents, model.sample(conditioning, SEEDS))
    sample = chain.samples[-1]
    for step in (0, 2):
        given = model._reach(sample, chain.seeds, conditioning, step, model.no_guidance_kwargs).given
        torch.testing.assert_close(given["sample"], sample, rtol=1e-5, atol=1e-5)
        assert given["model_output"].shape == sample.shape
        errors = model.denoising_errors(chain, conditioning, [5, 5], step)
        assert errors.isfinite().all()
        assert adapter_gradient(model, errors.sum()).norm() > 0


def test_mochis_inverted_sigmas_are_refused() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    scheduler.set_timesteps(4)
    with pytest.raises(
        ValueError, match=r"algorithm.name=dpo: what the denoiser predicts .* choose algorithm.name=vader"
    ):
        noised(scheduler, torch.zeros(1), torch.zeros(1), 0)


def test_given_videos_of_shapes_survive_their_autoencoder() -> None:
    config = load("shapes_hps")
    model = models.build(
        config.model, config.sampling, None, seed=0, chunk_size=4, device=torch.device("cpu")
    )
    videos = render(draw_scenes(2, torch.Generator().manual_seed(0)))
    chain = model.encode_videos(videos, SEEDS)
    latents = chain.samples[-1].unflatten(0, (2, -1)).transpose(1, 2) / model.pipe.vae.config.scaling_factor
    decoded = model.decoder.decode(latents, None, tuple(range(config.sampling.num_frames)))[0]
    assert float((decoded - videos).detach().abs().mean()) < 0.02  # 37 dB is a mean error of about 0.01
