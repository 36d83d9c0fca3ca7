"""Count the memory of decoding a video and of its gradient, at the published size of each family.

    python -m benchmarks.decoders                       # all families; two minutes, any machine
    python -m benchmarks.decoders --family mochi --output decoders.json

The decoder runs on the meta device, in float32, as `vader_ray.alignment.decoding` runs it in training.
Counted are all tensors from the latents to the gradient of the latents, without the weights: of the library's
own decode of the whole clip in one autograd graph, and of the stream, for all frames and for one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import diffusers as d
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.published import cogvideox_vae
from vader_ray import models
from vader_ray.alignment.decoding import decode
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.trackers import OpCounter, PeakMemoryTracker
from vader_ray.types import VideoDecoder

GIB = 2**30
IN_HOST_MEMORY = ", cache in host memory"


@dataclass(frozen=True, slots=True)
class Published:
    """An autoencoder and the size of a video, as on the hub."""

    build: Callable[[], Any]
    latents: tuple[int, int, int, int]
    """Channels, frames, height and width."""
    ratios: dict[str, int]
    """Attributes of the pipeline that say how many frames and pixels a latent has."""


PUBLISHED = {
    "wan": Published(d.AutoencoderKLWan, (16, 21, 60, 104), {}),  # 81 frames, 480x832
    "cogvideox": Published(cogvideox_vae, (16, 13, 60, 90), {}),  # 49 frames, 480x720
    "ltx": Published(
        d.AutoencoderKLLTXVideo, (128, 21, 16, 24), {"vae_temporal_compression_ratio": 8}
    ),  # 161 frames, 512x768
    "hunyuan_video": Published(
        d.AutoencoderKLHunyuanVideo, (16, 33, 90, 160), {"vae_scale_factor_temporal": 4}
    ),  # 129 frames, 720x1280
    "mochi": Published(
        d.AutoencoderKLMochi, (12, 28, 60, 106), {"vae_temporal_scale_factor": 6}
    ),  # 163 frames, 480x848
}
"""Sizes of Wan 2.1, CogVideoX, LTX-Video 0.9, HunyuanVideo and Mochi 1."""


@dataclass(frozen=True, slots=True)
class Count:
    """Memory and work of one decode with its gradient."""

    case: str
    peak_gib: float
    host_gib: float
    tflop: float


def counts(family: str) -> list[Count]:
    """Count one decode in one graph, and the stream with and without its cache in host memory."""
    published = PUBLISHED[family]
    with torch.device("meta"):
        vae = published.build().requires_grad_(False).eval()
    found = [_count("one graph, all frames", published, lambda z: _whole(vae, z))]
    found += _streamed(family, vae, published, offload=False)
    if family != "hunyuan_video":  # its cache is four frames
        found += _streamed(family, vae, published, offload=True, note=IN_HOST_MEMORY)
        if family in ("wan", "cogvideox"):  # the others always recompute their blocks
            _decoder(family, vae, published, offload=True).recompute_blocks()
            note = f"{IN_HOST_MEMORY}, blocks recomputed"
            found += _streamed(family, vae, published, offload=True, note=note)
        return found
    vae.enable_tiling()
    stream = _decoder(family, vae, published, offload=False)
    return [*found, _count("first frame, vae.enable_tiling()", published, partial(_stream, stream, [0]))]


def _streamed(family: str, vae: Any, published: Published, *, offload: bool, note: str = "") -> list[Count]:
    """Count the stream for the first frame and for all frames."""
    decoder = _decoder(family, vae, published, offload)
    every = range(decoder.num_frames(torch.empty(1, *published.latents, device="meta")))
    cases: dict[str, Sequence[int]] = {"first frame": [0], "all frames": every}
    return [
        _count(name + note, published, partial(_stream, decoder, wanted)) for name, wanted in cases.items()
    ]


def _stream(decoder: VideoDecoder, wanted: Sequence[int], latents: Tensor) -> Tensor:
    return decode(latents, decoder, wanted)[0]


def _whole(vae: Any, latents: Tensor) -> Tensor:
    decoded: Tensor = vae.decode(latents).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def _decoder(family: str, vae: Any, published: Published, offload: bool) -> VideoDecoder:
    """The decoder that the family's file builds, without the rest of its pipeline."""
    part = SimpleNamespace(pipe=SimpleNamespace(vae=vae, **published.ratios))
    built: VideoDecoder = models.resolve(family).build_decoder(part, DecoderOptions(4, offload_cache=offload))
    return built


def _count(case: str, published: Published, run: Callable[[Tensor], Tensor]) -> Count:
    with meta_device_mode() as host, PeakMemoryTracker(META.type) as memory, OpCounter(META.type) as work:
        latents = torch.zeros(1, *published.latents, device=META, requires_grad=True)
        frames = run(latents)
        frames.backward(torch.ones_like(frames))
    flops = sum(operation.flops * times for operation, times in work.operations.items())
    return Count(case, memory.peak / GIB, host.peak / GIB, flops / 1e12)


def main(
    family: Annotated[list[str] | None, typer.Option(help="only these families")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file of all numbers")] = None,
) -> None:
    """Count the decoders at their published sizes."""
    table, rows = Table(title="counted on the meta device, float32"), dict[str, list[dict[str, Any]]]()
    for column in ("family and case", "peak GiB", "host GiB", "TFLOP"):
        table.add_column(column, justify="left" if column.startswith("family") else "right")
    for name in family or PUBLISHED:
        rows[name] = [asdict(count) for count in counts(name)]
        for row in rows[name]:
            numbers = (f"{row[key]:.3g}" for key in ("peak_gib", "host_gib", "tflop"))
            table.add_row(f"{name}: {row['case']}", *numbers)
    Console(width=110, highlight=False).print(table)
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
