"""Rewards in Ray actors: bit-identical results, half precision, lost and silent actors, errors, shared
pools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from tests.helpers import served_rewards
from tests.helpers.paths import REPOSITORY
from tests.helpers.placed_rewards import BROKEN, CENTRE, CLIP, PAIRS, config_of, placed_reward, random_frames
from tests.helpers.recipe import tiny_config, write_tiny
from tests.helpers.runs import record, start
from tests.helpers.tiny_qwen import OPTIONS, save_video_reward
from tests.helpers.waiting import wait_until
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.alignment.scoring import score_only
from vader_ray.config import ExperimentConfig
from vader_ray.errors import RunFailed, UserError
from vader_ray.orchestration.reward_service import pool
from vader_ray.orchestration.reward_service.transport import spec_of
from vader_ray.training.checkpoint import State
from vader_ray.training.distributed import WorkerGroup
from vader_ray.training.experiment import build
from vader_ray.training.load_reward import load_reward
from vader_ray.training.loop import make_optimizer, train
from vader_ray.training.resolve import resolve_names
from vader_ray.training.step import train_step

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CPU = torch.device("cpu")
PROMPTS = ["a red circle", "a blue star"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A private Ray of four CPUs, of which the machine need not have as many."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=4, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


# ---- results


@pytest.mark.parametrize(("reward", "num_replicas"), [(CLIP, 2), (CENTRE, 1), ("brightness", 1)])
def test_a_replica_computes_what_the_worker_would_to_the_last_bit(
    cluster: None, reward: str, num_replicas: int
) -> None:
    config, frames = config_of(placed_reward(reward, num_replicas=num_replicas)), random_frames()
    local = load_reward(config.rewards[0].model_copy(update={"placement": None}), 3, 8, 8, CPU)
    with pool.start_pools(config) as pools:
        (pooled,) = pools.values()
        futures = [
            pooled.submit_gradient(frames, PROMPTS, 2) for _ in range(3)
        ]  # all on their way before one is fetched
        expected_scores, expected = score_and_gradient(local, frames, PROMPTS, 2)
        for future in futures:
            scores, gradient = future.result()
            assert torch.equal(scores, expected_scores)
            assert torch.equal(gradient, expected)
        assert torch.equal(
            pooled.submit_scores(frames, PROMPTS, 2).result(), score_only(local, frames, PROMPTS, 2)
        )
    assert expected.any()


@pytest.mark.parametrize("placed", [(CLIP, CENTRE), ("video_reward", "vlm_judge")], ids=["plain", "qwen"])
def test_the_adapter_is_the_same_with_served_rewards(
    cluster: None, tiny_pipeline_folder: Path, tmp_path: Path, placed: tuple[str, str]
) -> None:
    """Two rewards in actors and one here, several micro-batches, so that one is sampled while another is
    scored."""
    sampling = {"num_frames": 3, "height": 32, "width": 32, "num_inference_steps": 2}
    changes = {"sampling": sampling, "num_steps": 2, "videos_per_step": 2}
    changes["evaluation"] = {"every": 2, "num_videos": 2}
    options = {name: OPTIONS[name](tmp_path / name) for name in placed if name in OPTIONS}
    here = {"reward": "brightness", "target": 0.4}
    remote = [
        placed_reward(name, f"actor-{index}", options=options.get(name)) | {"weight": 1.0 - 3 * index}
        for index, name in enumerate(placed)
    ]
    local = [{key: value for key, value in reward.items() if key != "placement"} for reward in remote]

    def adapter(rewards: list[dict[str, Any]]) -> torch.Tensor:
        config = tiny_config(tiny_pipeline_folder, rewards=[rewards[0], here, rewards[1]], **changes)
        with pool.start_pools(config) as pools:
            experiment = build(config, CPU, pools)
            before = _flat(experiment.model.adapter_parameters())
            train(config, experiment, on_step=lambda _: None)
        after = _flat(experiment.model.adapter_parameters())
        assert not torch.equal(before, after)
        return after

    assert torch.equal(adapter(local), adapter(remote))


def _flat(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


SMALL, PUBLISHED = (96, 160), (480, 832)


def test_dropout_and_clips_are_the_same_for_rewards_in_actors(
    cluster: None, tiny_pipeline_folder: Path
) -> None:
    plain = [
        {"reward": CLIP, "dropout": 0.5, "hinge": 0.0},
        {"reward": "brightness", "dropout": 0.3},
        {"reward": CENTRE, "weight": -1.0, "dropout": 0.5},
    ]
    placed = [
        placed_reward(CLIP, "a") | {"dropout": 0.5, "hinge": 0.0},
        plain[1],
        placed_reward(CENTRE, "b") | {"weight": -1.0, "dropout": 0.5},
    ]

    def steps(rewards: list[dict[str, Any]]) -> tuple[torch.Tensor, list[set[str]], list[float]]:
        algorithm = {"name": "vader", "gradient_clip_quantile": 0.5}
        config = tiny_config(tiny_pipeline_folder, rewards=rewards, algorithm=algorithm)
        with pool.start_pools(config) as pools:
            experiment, state, kept = build(config, CPU, pools), State(), list[set[str]]()
            optimizer = make_optimizer(config, experiment)
            for _ in range(4):
                _, queries = train_step(config, experiment, optimizer, WorkerGroup(), state, 0.0)
                kept.append(set(queries[0].scores))
            parameters = experiment.model.adapter_parameters()
            return (
                torch.cat([each.detach().flatten() for each in parameters]),
                kept,
                state.algorithm_state["latents_gradient_norms"],
            )

    (local, kept, norms), (remote, kept_remotely, norms_remotely) = steps(plain), steps(placed)
    assert torch.equal(local, remote)
    assert kept == kept_remotely
    assert norms == norms_remotely
    assert len(set(map(frozenset, kept))) > 1


@pytest.mark.parametrize(
    ("reward", "size", "fewer_bytes"),
    [
        ("hps", SMALL, 6),
        ("pickscore", SMALL, 2),
        ("vjepa", SMALL, 1),
        ("vlm_judge", SMALL, 6),
        ("hpsv3", SMALL, 1),
        ("video_reward", PUBLISHED, 2),
    ],
    ids=lambda value: str(value),
)
def test_resized_frames_give_the_same_gradient_for_fewer_bytes(
    cluster: None, reward: str, size: tuple[int, int], fewer_bytes: int, tmp_path: Path
) -> None:
    """To the last bit here; on a GPU the order of the sums may depend on the number of frames. HPSv3 is sent
    frames as they are: its published rule would resize the resized ones once more."""
    frames = torch.rand(2, 4, 3, *size, generator=torch.Generator().manual_seed(0))
    if reward == "video_reward":
        save_video_reward(tmp_path / reward, max_frame_pixels=200_704)  # as published
        options = {"weights": str(tmp_path / reward)}
    else:
        options = OPTIONS.get(reward, lambda _: {"weights": f"shapes:{reward}"})(tmp_path / reward)
    settings = placed_reward(reward, options=options)
    sampling = {"num_frames": 4, "height": size[0], "width": size[1]}
    config = config_of(settings, sampling=sampling)
    local = load_reward(config.rewards[0].model_copy(update={"placement": None}), 4, *size, CPU)
    expected_scores, expected = score_and_gradient(local, frames, PROMPTS, 2)
    with pool.start_pools(config) as pools:
        scores, gradient = pools[reward].submit_gradient(frames, PROMPTS, 2).result()
    assert torch.equal(scores, expected_scores)
    assert torch.equal(gradient, expected)
    assert expected.any()
    spec = spec_of(local, *size)
    assert fewer_bytes <= spec.unresized.num_pixels / spec.resized.num_pixels < fewer_bytes + 1


def test_half_precision_bends_the_gradient_a_little(cluster: None) -> None:
    """8 bits of mantissa in bfloat16, 11 in float16: half a unit of the last place in frames and gradient."""
    frames = random_frames()
    for transport, bound in (("bfloat16", 2**-7), ("float16", 2**-10)):
        with pool.start_pools(config_of(placed_reward(CLIP, transport=transport))) as pools:
            _, gradient = pools["Clip"].submit_gradient(frames, PROMPTS, 2).result()
        config = config_of({"reward": CLIP})
        expected = score_and_gradient(load_reward(config.rewards[0], 3, 8, 8, CPU), frames, PROMPTS, 2)[1]
        relative = (gradient - expected).norm() / expected.norm()
        assert 0 < relative < bound


# ---- trouble


def _broken(how: str, tmp_path: Path, **placement: Any) -> ExperimentConfig:
    return config_of(placed_reward(BROKEN, options={"how": how, "mark": str(tmp_path / "mark")}, **placement))


def test_an_error_in_a_reward_arrives_with_its_own_message(cluster: None, tmp_path: Path) -> None:
    with pool.start_pools(_broken("error", tmp_path)) as pools:
        future = pools["Broken"].submit_gradient(random_frames(), ["break", "it"], 2)
        with pytest.raises(
            RunFailed,
            match="actor 'pool': reward 'Broken' raised RuntimeError: the lamp of the projector is "
            rf"broken \({served_rewards.__file__}:\d+ in __call__\)",
        ):
            future.result()


def test_a_nan_names_the_reward_and_the_prompt(cluster: None, tmp_path: Path) -> None:
    with pool.start_pools(_broken("nan", tmp_path)) as pools:
        future = pools["Broken"].submit_gradient(random_frames(), ["break", "it"], 2)
        with pytest.raises(
            RunFailed, match="actor 'pool': reward 'Broken' returned nan for a video of 'break'"
        ):
            future.result()


def test_a_silent_replica_is_restarted_and_its_request_repeated(cluster: None, tmp_path: Path) -> None:
    with pool.start_pools(_broken("silence", tmp_path, timeout_seconds=4)) as pools:
        scores = pools["Broken"].submit_scores(random_frames(), ["break", "it"], 2).result()
    torch.testing.assert_close(scores, random_frames().mean(dim=(1, 2, 3, 4)))
    assert (tmp_path / "mark").exists()


def test_an_actor_that_stays_silent_ends_the_run_with_the_setting_to_change(
    cluster: None, tmp_path: Path
) -> None:
    config = config_of(placed_reward(CLIP, options={"seconds": 2.0}, timeout_seconds=0.5, max_retries=1))
    with pool.start_pools(config) as pools:
        future = pools["Clip"].submit_scores(random_frames(), PROMPTS, 2)
        with pytest.raises(
            RunFailed, match=r"returned nothing within placement\.timeout_seconds=0\.5, 2 times; raise it"
        ):
            future.result()


def test_a_reward_that_cannot_be_loaded_is_told_before_the_workers_start(
    cluster: None, tmp_path: Path
) -> None:
    empty = tmp_path / "HPS.pt"
    empty.write_bytes(b"")
    config = config_of(placed_reward("hps", options={"weights": str(empty)}))
    with (
        pytest.raises(UserError, match=r"hps: .*HPS\.pt \(0 bytes\) cannot be read"),
        pool.start_pools(config),
    ):
        pass


def test_an_actor_checks_its_reward_on_the_frames_that_it_will_see(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_FACTOR", "3")  # of the driver, which null takes
    reward = placed_reward(PAIRS, runtime_env={"env_vars": {"TEST_FACTOR": None}}) | {"frames": "first:2"}
    with pool.start_pools(config_of(reward)) as pools:
        seen = random_frames()[:, :2]
        scores = pools["Pairs"].submit_scores(seen, PROMPTS, 2).result()
    torch.testing.assert_close(scores, 3 * (seen[:, 0] * seen[:, 1]).mean(dim=(1, 2, 3)))


def test_a_runtime_environment_that_cannot_be_made_is_named(cluster: None) -> None:
    config = config_of(placed_reward(CLIP, runtime_env={"working_dir": "no/such/folder"}))
    with (
        pytest.raises(UserError, match=r"Clip\.placement\.runtime_env: no/such/folder is not a valid path"),
        pool.start_pools(config),
    ):
        pass


# ---- pools that are shared


def test_a_shared_pool_is_found_again_and_guarded(cluster: None) -> None:
    config = config_of(placed_reward(CLIP, "shared-clip", shared=True, num_replicas=2))
    with pool.start_pools(config) as pools:
        first = {actor._actor_id for actor in pools["Clip"]._replicas}
    with pool.start_pools(config) as pools:
        assert {actor._actor_id for actor in pools["Clip"]._replicas} == first
        assert pools["Clip"].submit_scores(random_frames(), PROMPTS, 2).result().shape == (2,)
    other = config_of(placed_reward(CENTRE, "shared-clip", shared=True))
    with (
        pytest.raises(
            UserError, match=r"the shared pool 'shared-clip' contains .*Clip.* this recipe needs .*Centre"
        ),
        pool.start_pools(other),
    ):
        pass
    assert pool.describe_pools()["shared-clip"]["reward"] == CLIP
    assert pool.stop_pool("shared-clip") == 2
    with pytest.raises(UserError, match="there is no shared pool 'shared-clip'"):
        pool.stop_pool("shared-clip")


# ---- the command line


def _run(folder: Path, recipe: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vader_ray", "train", str(recipe), "--run-name", name]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    }
    return start(command, folder, folder / f"{name}.log", environment)


def _actor_that_computes_a_gradient(driver: int) -> psutil.Process | None:
    """An actor below the driver that is at work: Ray names its processes after their calls."""
    for child in psutil.Process(driver).children(recursive=True):
        try:
            if "ray::RewardActor.gradient" in " ".join(child.cmdline()):
                return child
        except psutil.NoSuchProcess:
            continue
    return None


@pytest.mark.chaos
def test_a_run_survives_the_loss_of_an_actor_and_ends_with_the_local_adapter(
    tiny_pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rewards in two actors; one is killed with SIGKILL while it computes in the middle of a step."""
    slow = {"seconds": 0.4}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    plain = tiny_config(tiny_pipeline_folder, rewards=[{"reward": CLIP}, {"reward": "brightness"}])
    record(resolve_names(plain), tmp_path, "plain")
    placed = write_tiny(
        tmp_path,
        tiny_pipeline_folder,
        rewards=[placed_reward(CLIP, "a", options=slow), placed_reward("brightness", "b")],
    )
    process = _run(tmp_path, placed, "placed")
    actor = wait_until(lambda: _actor_that_computes_a_gradient(process.pid), process=process)
    assert actor is not None
    actor.kill()
    assert process.wait(timeout=300) == 0, (tmp_path / "placed.log").read_text()
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / "runs" / name / "adapter").iterdir()}
        for name in ("plain", "placed")
    ]
    assert files[0] == files[1]
