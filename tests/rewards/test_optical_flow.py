"""Optical flow by RAFT: torchvision's own forward, VBench's rule in closed form, gradients, warping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.optical_flow import raft_small

from tests.helpers.reward_inputs import checked_gradient, random_images
from tests.helpers.tiny_rewards import build_reward
from tests.helpers.tiny_vbench import save_raft
from vader_ray import metrics
from vader_ray.config import MetricConfig
from vader_ray.errors import UserError
from vader_ray.metrics.warp_error import is_visible, warped
from vader_ray.rewards.core.raft import Raft, relative_speeds, sized

SMALL: dict[str, Any] = {"architecture": "small"}


def build_metric(name: str, **options: Any) -> Any:
    return metrics.build(MetricConfig.model_validate({"metric": name, **options}), device="cpu")


def constant_flow(folder: Path, flow: float) -> dict[str, Any]:
    return {"weights": str(save_raft(folder, flow=flow, num_updates=2)), "num_updates": 2, **SMALL}


def test_the_flow_is_torchvisions_on_padded_frames(tmp_path: Path) -> None:
    raft = Raft(str(save_raft(tmp_path)), "small", 3).eval()
    frames = random_images(6, 3, 130, 141)
    network = raft_small().eval()
    network.load_state_dict(torch.load(tmp_path / "raft_small.pth", weights_only=True))
    # 130 needs 6 more rows and 141 needs 3 more columns, the larger half behind
    padded = functional.pad(2 * frames - 1, (1, 2, 3, 3), mode="replicate")
    with torch.no_grad():
        expected = network(padded[:-1], padded[1:], num_flow_updates=3)[-1]
        found = raft.of_neighbours(frames)
    # float32 rounding of flows of several pixels; pairs are computed in groups of 4
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert float(expected.abs().max()) > 0.5
    assert raft.network.corr_block.corr_pyramid == []


def test_the_speed_is_vbenchs_rule_by_sorting() -> None:
    flow = torch.randn(3, 2, 16, 24, generator=torch.Generator().manual_seed(0))
    lengths = flow.square().sum(dim=1).sqrt().flatten(1).sort(dim=1, descending=True).values
    expected = lengths[:, : int(16 * 24 * 0.05)].mean(dim=1) / (6 * 13 / 256)
    torch.testing.assert_close(relative_speeds(flow, 13, 20), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flow", [0.0, 2.0, 2.9, 3.1, 50.0])
def test_scores_of_a_known_flow(flow: float, tmp_path: Path) -> None:
    frames = torch.rand(1, 5, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    options = constant_flow(tmp_path, flow)
    ratio = flow / 3  # the threshold of a short side of 128 is 3 pixels
    scores = build_metric("dynamic_degree", **options)(frames, ["a"])
    assert scores["speed"].tolist() == pytest.approx([ratio], abs=2e-3)
    assert scores["moving"].tolist() == [float(ratio > 1)]
    soft = build_reward("optical_flow", **options)(frames, ["a"])
    assert soft.tolist() == pytest.approx([float(torch.tensor((ratio - 1) / 0.25).sigmoid())], abs=2e-3)
    assert float(soft) <= 1.0, "no motion scores more than 1"


def test_frames_are_compared_at_eight_per_second_and_threshold_follows_the_size(tmp_path: Path) -> None:
    frames = torch.rand(1, 4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    options = constant_flow(tmp_path, 4.0)
    metric = build_metric("dynamic_degree", **options, frames_per_second=30)
    assert metric.every == 4
    assert metric(frames, ["a"]) == {"moving": torch.zeros(1), "speed": torch.zeros(1)}, "one frame is left"
    # 4 pixels of a short side of 256 are below the threshold of 6, of 128 above that of 3
    large = functional.interpolate(frames[0], (256, 256))[None]
    assert build_metric("dynamic_degree", **options)(large, ["a"])["moving"].tolist() == [0.0]
    assert build_metric("dynamic_degree", **options, short_side=128)(large, ["a"])["moving"].tolist() == [1.0]
    assert sized(torch.rand(1, 2, 3, 40, 60), 256).shape[-2:] == (128, 192)
    assert sized(torch.rand(1, 2, 3, 300, 400), None).shape[-2:] == (300, 400)


def test_the_gradient_after_one_update_is_the_finite_difference(tmp_path: Path) -> None:
    # of more updates it is the paper's gradient, which does not flow through positions
    options = {"weights": str(save_raft(tmp_path)), "num_updates": 1, **SMALL}
    reward = build_reward("optical_flow", dtype=torch.float64, softness=1.0, **options)
    frames = random_images(1, 2, 3, 128, 128, low=0.3, high=0.7, dtype=torch.float64)
    # in a larger step ReLUs change sign and other pixels become the largest 5 %
    gradient = checked_gradient(reward, frames, step=1e-8, rtol=1e-5, atol=1e-9)
    assert (gradient != 0).float().mean() > 0.9


def test_what_raft_cannot_do_is_refused(tmp_path: Path) -> None:
    options = {"weights": str(save_raft(tmp_path)), "num_updates": 1, **SMALL}
    frames = torch.rand(1, 2, 3, 128, 128)
    with pytest.raises(UserError, match="set precision: float32"):
        build_reward("optical_flow", dtype=torch.bfloat16, **options)(frames, ["a"])
    with pytest.raises(UserError, match="optical_flow compares neighbouring frames and got 1"):
        build_reward("optical_flow", **options, every=2)(frames, ["a"])
    with pytest.raises(
        ValueError, match=r"raft_small.pth belongs to another network, with weights \d+ missing"
    ):
        build_reward("optical_flow", weights=options["weights"])


# ---- warp error


def shifted(image: Tensor, pixels: int) -> Tensor:
    return image.roll(pixels, dims=-1)


def test_warping_undoes_a_known_motion() -> None:
    first = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    forth = torch.zeros(1, 2, 20, 30)
    forth[:, 0] = 4.0
    back = warped(shifted(first, 4), forth)
    torch.testing.assert_close(back[..., :26], first[..., :26], atol=1e-5, rtol=0)
    visible = is_visible(forth, -forth)
    assert visible[0, :, :26].all()
    assert not visible[0, :, 26:].any(), "pixels that leave the frame are not visible"
    assert not is_visible(forth, torch.zeros_like(forth)).any(), "flows that disagree mean a hidden pixel"


def test_the_warp_error_without_flow_is_the_difference(tmp_path: Path) -> None:
    frames = torch.rand(2, 3, 3, 128, 136, generator=torch.Generator().manual_seed(0))
    metric = build_metric("warp_error", **constant_flow(tmp_path, 0.0))
    expected = frames.diff(dim=1).abs().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(metric(frames, ["a", "b"]), expected, atol=1e-5, rtol=0)
    still = frames[:, :1].expand(-1, 3, -1, -1, -1)
    assert metric(still, ["a", "b"]).max() < 1e-6
    assert metric(frames[:, :1], ["a", "b"]).tolist() == [0.0, 0.0]


PUBLISHED = Path(torch.hub.get_dir()) / "checkpoints" / "raft_large_C_T_V1-22a6c225.pth"


@pytest.mark.weights
@pytest.mark.skipif(not PUBLISHED.is_file(), reason="torchvision's weights of RAFT are not downloaded")
def test_the_flow_of_a_shifted_pair_is_the_shift() -> None:
    texture = functional.interpolate(random_images(1, 3, 24, 30), (192, 240), mode="bicubic").clamp(0, 1)
    frames = torch.cat([texture, shifted(texture, 6)])[None]
    scores = build_metric("dynamic_degree", weights=str(PUBLISHED))(frames, ["a"])
    assert scores["speed"].tolist() == pytest.approx([6 / (6 * 192 / 256)], rel=0.1)
    assert float(build_metric("warp_error", weights=str(PUBLISHED))(frames, ["a"])) < 0.02
