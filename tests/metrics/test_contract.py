"""The contract of metrics, for every file of the folder, and the messages about metrics that break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import tiny_vbench
from vader_ray import metrics
from vader_ray.config import MetricConfig, load
from vader_ray.errors import UserError
from vader_ray.metrics import PairedMetric, SetMetric, VideoMetric
from vader_ray.training.guard import check_guard


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return tiny_vbench.options(tmp_path_factory.mktemp("metrics") / "tiny")


COSTLY = ("imaging_quality", "vbench_quality")
"""Metrics with MUSIQ, which enlarges each frame to hundreds of pixels: they see fewer frames."""
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "vbench_quality" else [])
    for name in metrics.names()
]


def build(name: str, options: dict[str, dict[str, Any]]) -> Any:
    settings = {"metric": name, **options.get(name, {})}
    return metrics.build(MetricConfig.model_validate(settings), device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_keeps_the_contract(name: str, options: dict[str, dict[str, Any]]) -> None:
    metric = build(name, options)
    for num_frames in (1,) if name in COSTLY else (1, 4):
        metrics.check_contract(metric, name=name, num_frames=num_frames, height=40, width=48)
    kinds = [isinstance(metric, kind) for kind in (VideoMetric, SetMetric, PairedMetric)]
    assert sum(kinds) == 1, "the kind of a metric is ambiguous"
    assert metric.unit
    if isinstance(metric, nn.Module):
        metric.train()
        assert not any(module.training for module in metric.modules())
        assert not any(parameter.requires_grad for parameter in metric.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_videos_scored_together_or_alone_give_the_same(name: str, options: dict[str, dict[str, Any]]) -> None:
    metric = build(name, options)
    shape = (2, 1) if name in COSTLY else (3, 4)
    frames = torch.rand(*shape, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, alone = (
            measured(metric, frames),
            torch.cat([measured(metric, video[None]) for video in frames]),
        )
    # other batch sizes take other kernels: float32 rounding of numbers of order 1
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together, measured(metric, frames)), "a second call must give the same"


def measured(metric: Any, frames: Tensor) -> Tensor:
    """The features of each video, or its scores, one column for each part."""
    if hasattr(metric, "features") and not isinstance(metric, VideoMetric):
        return metric.features(frames)
    scores = metric(frames, ["a"] * len(frames))
    return torch.stack(list(scores.values()), dim=1) if isinstance(scores, dict) else scores


class ConstantSet:
    """A correct set metric, the base of the wrong ones below."""

    unit = "value"
    higher_is_better = True

    def features(self, frames: Tensor) -> Any:
        return frames.mean(dim=(3, 4)).flatten(1)

    def compare(self, features: Tensor, prompts: Any) -> Any:
        return features.mean(dim=1)


class ConstantVideo:
    """A correct metric of single videos."""

    unit = "value"
    higher_is_better = True
    parts: tuple[str, ...] = ("one", "two")

    def __call__(self, frames: Tensor, prompts: Any) -> Any:
        return {"one": frames.mean(dim=(1, 2, 3, 4)), "two": frames.mean(dim=(1, 2, 3, 4))}


class ConstantPair:
    """A correct paired metric."""

    unit = "value"
    higher_is_better = False
    features = ConstantSet.features

    def compare_with_base(self, features: Tensor, base: Tensor) -> Any:
        return (features - base).abs().mean(dim=1)


@pytest.mark.parametrize(
    ("base", "behaviour", "message"),
    [
        (ConstantSet, {"unit": None}, "must declare unit"),
        (ConstantSet, {"higher_is_better": "yes"}, "must declare unit .* and higher_is_better"),
        (ConstantSet, {"features": lambda self, f: f}, "must give finite features of shape"),
        (ConstantSet, {"features": lambda self, f: f.flatten(1) / 0}, "must give finite features of shape"),
        (ConstantSet, {"features": lambda self, f: (f - f.mean()).flatten(1)}, "leaks between videos"),
        (ConstantSet, {"compare": lambda self, f, p: f}, "returned shape"),
        (ConstantSet, {"compare": lambda self, f, p: f.mean(dim=1) * float("nan")}, "returned NaN"),
        (ConstantVideo, {"parts": ()}, r"declares parts=\(\) and returned one, two"),
        (ConstantVideo, {"parts": ("one",)}, r"declares parts=\('one',\) and returned one, two"),
        (ConstantVideo, {"parts": (), "__call__": lambda self, f, p: f.mean() + f[:, 0, 0, 0, 0]}, "leaks"),
        (ConstantVideo, {"parts": (), "__call__": lambda self, f, p: f.mean()}, "returned shape"),
        (ConstantPair, {"compare_with_base": lambda self, f, b: 1 + f.mean(dim=1)}, "must give 0"),
    ],
)  # fmt: skip
def test_a_broken_metric_is_named(base: type, behaviour: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        metrics.check_contract(type("Wrong", (base,), behaviour)(), name="bad")
    assert "'bad'" in str(caught.value)
    metrics.check_contract(base())


def test_a_class_of_no_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match="metric 'bad' must declare unit and higher_is_better, and have either"
    ):
        metrics.check_contract(nn.Identity(), name="bad")


OUTSIDE = """
class RednessMetric:
    unit = "red"
    higher_is_better = False
    parts = ("mean", "peak")
    def __init__(self, gain: float = 1.0):
        self.gain = gain
    def __call__(self, frames, prompts):
        red = self.gain * frames[:, :, 0]
        return {"mean": red.mean(dim=(1, 2, 3)), "peak": red.amax(dim=(1, 2, 3))}
"""


def test_a_dotted_name_reaches_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "__init__.py").write_text("")
    (tmp_path / "my" / "redness.py").write_text(OUTSIDE)
    config = load("shapes_hps", ["eval_metrics=[{metric: my.redness, gain: 2, label: red}]"])
    names = metrics.measured_metrics(config)
    assert set(names) == {
        "eval/motion",
        "eval/diversity",
        "eval/distance_to_base",
        "eval/red/mean",
        "eval/red/peak",
    }
    assert not names["eval/red/peak"].higher_is_better
    built = metrics.build(config.eval_metrics[0], device="cpu")
    assert isinstance(built, VideoMetric)
    metrics.check_contract(built)
    for options, message in (
        ({"gian": 1}, r"redness: there is no option 'gian'; did you mean 'gain'\? it has gain"),
        ({"gain": "much"}, "redness.gain: .*number.*not 'much'"),
    ):
        with pytest.raises(UserError, match=message):
            metrics.check(MetricConfig.model_validate({"metric": "my.redness", **options}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("eval_metrics=[{metric: nothing}]", "there is no 'nothing'; give one of aesthetic_quality, "),
        ("eval_metrics=[{metric: motion}]", "two metrics are called 'motion'; give one of eval_metrics"),
        ("eval_metrics=[{metric: motion, label: reward}]", "eval/reward is logged by every evaluation"),
        ("eval_metrics=[{label: a}]", "eval_metrics.0.metric: is required"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_guard(load("shapes_hps", [settings]))
