"""How far half precision and TF32 move the gradient of rewards, at their published architectures.

    python -m benchmarks.precision                     # all, random weights, some minutes on one core
    python -m benchmarks.precision --reward hps --num-videos 4
    python -m benchmarks.precision --shapes            # the embedded networks, small and trained

The published weights are not needed: networks of the published sizes get the random weights of their library,
which are written to a temporary folder (4 GB at most) and loaded as a run loads them. The error is
|g − g₃₂| / |g₃₂| of the gradient to the pixels, g₃₂ in float32; means over the videos. ``tf32`` is simulated:
the factors of every matrix product and convolution, attention's included, are rounded to 10 bits of mantissa,
and products are added in float32.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import transformers as t
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.published_rewards import write_clip_vit_l, write_pickscore, write_vjepa
from benchmarks.rewards import of_the_shapes_data_set
from vader_ray import rewards
from vader_ray.alignment.reward_gradient import score_and_gradient
from vader_ray.config import RewardConfig
from vader_ray.preflight.trackers import FLOP_FORMULAS
from vader_ray.rewards import hps
from vader_ray.rewards.aesthetic import HEAD_SIZES
from vader_ray.rewards.core.linear_head import LinearHead
from vader_ray.types import Frames, Reward

PROMPT = "a red circle moving left"
MANTISSA_BITS = 10
HALF = ("bfloat16", "float16")
STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
ATEN = torch.ops.aten
PRODUCTS = (
    ATEN.mm,
    ATEN.addmm,
    ATEN.bmm,
    ATEN.baddbmm,
    ATEN.convolution,
    ATEN.convolution_backward,
)


class SimulatedTF32(TorchDispatchMode):
    """Round the factors of products in float32 to TF32, forward and backward."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if packet in PRODUCTS:
            added = packet in (ATEN.addmm, ATEN.baddbmm)  # the first argument is added, not multiplied
            args = tuple(
                _rounded(each) if isinstance(each, Tensor) and not (added and index == 0) else each
                for index, each in enumerate(args)
            )
        else:
            assert packet not in FLOP_FORMULAS, f"{packet} is a product that is not rounded"
        return func(*args, **(kwargs or {}))


def _rounded(tensor: Tensor) -> Tensor:
    """Round float32 numbers to the nearest with 10 bits of mantissa, ties to even."""
    assert tensor.dtype == torch.float32
    dropped = 23 - MANTISSA_BITS
    bits = tensor.contiguous().view(torch.int32)
    bits = bits + (2 ** (dropped - 1) - 1) + ((bits >> dropped) & 1)
    return (bits >> dropped << dropped).view(torch.float32)


@contextmanager
def simulated_tf32() -> Iterator[None]:
    """Simulate TF32 inside a ``with`` block, with attention as two matrix products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), SimulatedTF32():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _hps(folder: Path) -> RewardConfig:
    """The published file has 16 bits per weight."""
    network, _ = hps.create("ViT-H-14")
    file = folder / "weights.pt"
    torch.save({"state_dict": {name: each.half() for name, each in network.state_dict().items()}}, file)
    return RewardConfig(reward="hps", weights=str(file), preprocessing="vader")


def _pickscore(folder: Path) -> RewardConfig:
    _save_random(t.CLIPModel(t.CLIPConfig.from_pretrained(write_pickscore(folder))), folder)
    return RewardConfig(reward="pickscore", weights=str(folder))


def _aesthetic(folder: Path) -> RewardConfig:
    config = t.CLIPConfig.from_pretrained(write_clip_vit_l(folder)).vision_config
    processor = (folder / "preprocessor_config.json").read_text(encoding="utf-8")
    _save_random(t.CLIPVisionModelWithProjection(config), folder, processor)
    torch.save(LinearHead(HEAD_SIZES).state_dict(), folder / "head.pth")
    return RewardConfig(
        reward="aesthetic", encoder=str(folder), head=str(folder / "head.pth"), preprocessing="vader"
    )


def _vjepa(folder: Path) -> RewardConfig:
    _save_random(t.VJEPA2Model(t.VJEPA2Config.from_pretrained(write_vjepa(folder))), folder)
    return RewardConfig(reward="vjepa", weights=str(folder))


def _action(folder: Path) -> RewardConfig:
    """``MCG-NJU/videomae-base-finetuned-kinetics``."""
    network = t.VideoMAEForVideoClassification(t.VideoMAEConfig(num_labels=400))
    size = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    _save_random(network, folder, json.dumps(STATISTICS | size))
    return RewardConfig(reward="action", weights=str(folder), action="LABEL_7")


def _object_detection(folder: Path) -> RewardConfig:
    """``hustvl/yolos-base``, on frames of 320 pixels instead of 800."""
    config = t.YolosConfig(image_size=[800, 1344], use_mid_position_embeddings=True, num_labels=91)
    size = {"size": {"shortest_edge": 320, "longest_edge": 512}}
    _save_random(t.YolosForObjectDetection(config), folder, json.dumps(STATISTICS | size))
    return RewardConfig(reward="object_detection", weights=str(folder), object="LABEL_7", mode="add")


def _save_random(network: Any, folder: Path, processor: str | None = None) -> None:
    network.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(processor, encoding="utf-8")


PUBLISHED: dict[str, Callable[[Path], RewardConfig]] = {
    "hps": _hps,
    "pickscore": _pickscore,
    "aesthetic": _aesthetic,
    "vjepa": _vjepa,
    "action": _action,
    "object_detection": _object_detection,
}
NUM_FRAMES = {"vjepa": 8, "action": 16}
"""Frames of clip rewards; of others one."""


def random_video(num_frames: int, height: int, width: int, seed: int) -> Frames:
    """Return a video with coarse shapes that move, and fine noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 8, 8, generator=generator)
    video = functional.interpolate(coarse, (num_frames, height, width), mode="trilinear")
    noise = torch.randn(video.shape, generator=generator)
    return (video + 0.03 * noise).clamp(0, 1).transpose(1, 2)


def gradients(reward: Reward, videos: Sequence[Frames]) -> list[Tensor]:
    """Return the gradient of each video's score to its pixels."""
    return [score_and_gradient(reward, video, [PROMPT], video.shape[1])[1] for video in videos]


def deviations(spec: RewardConfig, videos: Sequence[Frames]) -> dict[str, tuple[float, float]]:
    """Return relative error and cosine of the gradient in each precision."""
    reward: Any = rewards.build(spec, device="cpu")
    exact = gradients(reward, videos)
    with simulated_tf32():
        found = {"tf32": gradients(reward, videos)}
    for name in HALF:
        found[name] = gradients(copy.deepcopy(reward).to(getattr(torch, name)), videos)
    return {name: _compare(each, exact) for name, each in found.items()}


def _compare(found: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    pairs = [
        (each.double().flatten(), other.double().flatten()) for each, other in zip(found, exact, strict=True)
    ]
    errors = [float((each - other).norm() / other.norm()) for each, other in pairs]
    cosines = [float(torch.cosine_similarity(each, other, dim=0)) for each, other in pairs]
    return fmean(errors), fmean(cosines)


def main(
    reward: Annotated[list[str] | None, typer.Option(help="Only these; several times.")] = None,
    num_videos: Annotated[int, typer.Option(min=1)] = 3,
    shapes: Annotated[
        bool, typer.Option(help="The embedded networks in place of the published sizes.")
    ] = False,
) -> None:
    """Print one row per reward."""
    torch.set_num_threads(1)
    table = Table("reward", "tf32 (simulated)", *HALF, title="error of the gradient (cosine)")
    for name in reward or PUBLISHED:
        torch.manual_seed(0)
        num_frames = NUM_FRAMES.get(name, 1)
        videos = [
            random_video(num_frames, *((64, 64) if shapes else (320, 512)), seed)
            for seed in range(num_videos)
        ]
        with tempfile.TemporaryDirectory(prefix="vader_ray_precision_") as folder:
            spec = of_the_shapes_data_set(name) if shapes else PUBLISHED[name](Path(folder))
            assert spec is not None
            found = deviations(spec, videos)
        cells = [f"{100 * error:.2g} % ({cosine:.6f})" for error, cosine in found.values()]
        print(name, *cells, sep="  ", flush=True)
        table.add_row(name, *cells)
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
