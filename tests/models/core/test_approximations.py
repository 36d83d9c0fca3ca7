"""Approximations in the steps before the first gradient step: less work there, gradient steps unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import videocrafter2_tiny as videocrafter2
from tests.helpers.families import CASES, save, save_images
from tests.helpers.family_runs import SEEDS, STEPS, encode_prompts, load_case
from tests.helpers.recipe import tiny_config
from tests.helpers.tiny import SAMPLING, load_tiny, randomise_adapter
from vader_ray.alignment import algorithms
from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.types import TruncationPlan

pytestmark = pytest.mark.filterwarnings(
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning"
)  # Mochi
FAST = ("svd", "ltx", "wan")
"""A case of each way in which pipelines call their denoiser."""
GUIDED = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(set(CASES) - {"hunyuan_video"})
]
UNETS = [
    "modelscope",
    "videocrafter2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("svd", "animatediff")),
]


def _set(model: Any, **sampling: Any) -> None:
    model.sampling = model.sampling.model_copy(update=sampling)


def _prefix(model: Any, images: list[Path], plan: TruncationPlan) -> tuple[Tensor, int]:
    """The sample before the first gradient step, and the calls of the denoiser."""
    calls = model.denoiser_calls
    outputs = model.sample_prefix(encode_prompts(model, images), plan, SEEDS).schedulers[0].outputs
    return outputs[0], model.denoiser_calls - calls


@pytest.mark.parametrize("name", GUIDED)
def test_outside_the_interval_a_step_is_the_pipelines_own_without_guidance(tmp_path: Path, name: str) -> None:
    """Bit for bit, with half of the calls; gradient steps from the same latents do not know of it."""
    case, images = CASES[name], save_images(tmp_path)
    model, plan = load_case(case, save(case, tmp_path / "pipeline")), TruncationPlan(STEPS, (2,))
    _, all_calls = _prefix(model, images, plan)
    conditioning = encode_prompts(model, images)
    _set(model, guidance_interval=(0.9, 1.0))
    found, calls = _prefix(model, images, plan)
    state = model.sample_prefix(conditioning, plan, SEEDS)
    approximate = model.sample_with_grad(state, conditioning, plan)
    _set(model, guidance_interval=(0.0, 1.0))
    assert torch.equal(model.sample_with_grad(state, conditioning, plan), approximate)
    _set(model, guidance_scale=1.0)
    expected, expected_calls = _prefix(model, images, plan)
    assert torch.equal(found, expected)
    assert calls == expected_calls == all_calls // 2


@pytest.fixture
def unets(tiny_pipeline_folder: Path, tmp_path: Path) -> dict[str, Callable[[], Any]]:
    def videocrafter() -> Any:
        return videocrafter2.load_tiny(
            videocrafter2.write_checkpoint(tmp_path, videocrafter2.random_weights())
        )

    def case(name: str) -> Callable[[], Any]:
        return lambda: load_case(CASES[name], save(CASES[name], tmp_path / name))

    loaders = {"modelscope": lambda: load_tiny(tiny_pipeline_folder), "videocrafter2": videocrafter}
    return loaders | {name: case(name) for name in ("svd", "animatediff")}


@pytest.mark.parametrize("name", UNETS)
def test_deep_features_are_computed_in_every_nth_step(
    tmp_path: Path, unets: dict[str, Callable[[], Any]], name: str
) -> None:
    model, images = unets[name](), save_images(tmp_path)
    randomise_adapter(model)
    last = model.sampling.num_inference_steps - 1
    plan, conditioning = TruncationPlan(last + 1, (last,)), encode_prompts(model, images)
    samples, computed, states = {}, {}, {}
    deep = model.deep_blocks(model.denoiser)
    leaf = next(part for part in deep[-1].modules() if not list(part.children()))
    for rule in ("none", "deep_features:1", "deep_features:9"):
        _set(model, prefix_cache=rule)
        calls: list[None] = []
        handle = leaf.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        states[rule] = model.sample_prefix(conditioning, plan, SEEDS)
        handle.remove()
        samples[rule], computed[rule] = states[rule].schedulers[0].outputs[0], len(calls)
        assert not any("forward" in vars(block) for block in deep)
    assert torch.equal(samples["none"], samples["deep_features:1"])
    assert not torch.equal(samples["none"], samples["deep_features:9"])
    loops = model.num_loops(len(SEEDS))
    assert [computed[rule] for rule in samples] == [last * loops, last * loops, loops]
    finished = model.sample_with_grad(states["deep_features:9"], conditioning, plan)
    _set(model, prefix_cache="none")
    expected = model.sample_with_grad(states["deep_features:9"], conditioning, plan)
    assert torch.equal(finished, expected)


def test_the_last_level_gets_features_of_an_earlier_step(tiny_pipeline_folder: Path) -> None:
    """By its inputs: those from below are repeated, those from the first level are new."""
    model = load_tiny(tiny_pipeline_folder, prefix_cache="deep_features:3")
    randomise_adapter(model)
    given: list[tuple[Tensor, Tensor]] = []
    model.denoiser.up_blocks[-1].register_forward_pre_hook(
        lambda block, args, kwargs: given.append(
            (kwargs["hidden_states"], kwargs["res_hidden_states_tuple"][-1])
        ),
        with_kwargs=True,
    )
    model.sample_prefix(encode_prompts(model, []), TruncationPlan(5, (4,)), SEEDS)
    below = [bool(torch.equal(given[step][0], given[step + 1][0])) for step in range(3)]
    assert below == [True, True, False]  # steps 0 and 3 compute
    assert not any(torch.equal(given[step][1], given[step + 1][1]) for step in range(3))


def test_both_together(tiny_pipeline_folder: Path) -> None:
    """At the border of the interval the features have other rows and are computed again."""
    model = load_tiny(tiny_pipeline_folder, prefix_cache="deep_features:9", guidance_interval=[0.4, 1.0])
    computed: list[int] = []
    model.denoiser.mid_block.resnets[0].register_forward_hook(
        lambda block, inputs, output: computed.append(len(output))
    )
    _, calls = _prefix(model, [], TruncationPlan(5, (4,)))
    assert calls == 2 * (1 + 1 + 2 + 2)
    assert computed == [2 * 3, 4 * 3]  # rows: videos and branches, by frames


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_interval": [0.5, 0.5]}, r"guidance_interval=\[0.5, 0.5\] is empty"),
        ({"guidance_interval": [-0.1, 0.5]}, "greater than or equal to 0"),
        ({"guidance_interval": [0.5]}, "Field required"),
        (
            {"guidance_interval": [0.2, 0.8], "guidance_scale": 1.0},
            r"guidance_interval=\[0.2, 0.8\] has no effect on guidance_scale=1",
        ),
        (
            {"guidance_interval": [0.2, 0.8], "prefix_cache": "first_block:0.1"},
            "changes the number of branches, .* leave one of the two out",
        ),
        ({"prefix_cache": "deep_features:0"}, "should match pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**SAMPLING | changes)


def test_models_and_algorithms_that_cannot_do_it_are_refused(
    tmp_path: Path, tiny_pipeline_folder: Path
) -> None:
    case = CASES["hunyuan_video"]
    folder = save(case, tmp_path)
    for setting, message in (
        ({"guidance_interval": [0.2, 0.8]}, "takes guidance as an input and is called once in each step"),
        ({"prefix_cache": "deep_features:2"}, "has no levels of resolution, as UNets have; set sampling"),
    ):
        with pytest.raises(UserError, match=message):
            load_case(type(case)(case.family, case.build, case.sampling | setting), folder)
    config = tiny_config(
        tiny_pipeline_folder,
        sampling=SAMPLING | {"guidance_interval": [0.2, 0.8], "eta": 1.0},
        algorithm={"name": "ddpo"},
    )
    with pytest.raises(UserError, match=r"guidance_interval=\(0.2, 0.8\) has no effect on algorithm"):
        algorithms.check(config)
