"""Decoders that look at neighbouring frames, chunk by chunk, against the library's decode in one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers as d
import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor

from vader_ray.alignment.decoding import decode
from vader_ray.models.core.decoders import StreamedDecoder
from vader_ray.models.core.hunyuan_video_decoder import HunyuanVideoStream
from vader_ray.models.ltx import DECODE_TIMESTEP, LTXStream
from vader_ray.models.mochi import MochiStream
from vader_ray.preflight.meta_device import META, meta_device_mode
from vader_ray.preflight.trackers import PeakMemoryTracker


def _ltx(**changes: Any) -> Any:
    """LTX-Video 0.9: blocks that change the number of channels, no noise level."""
    sizes = {
        "latent_channels": 4,
        "block_out_channels": (4, 4, 8, 8),
        "decoder_block_out_channels": (4, 8, 8, 8),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "patch_size": 1,
    }
    return d.AutoencoderKLLTXVideo(**sizes | changes)


def _ltx_0_9_5(**changes: Any) -> Any:
    """LTX-Video 0.9.1 and later: upsampling with residuals, and a noise level."""
    newer = {
        "block_out_channels": (4, 4, 4),
        "decoder_block_out_channels": (8, 16, 32),
        "down_block_types": ("LTXVideo095DownBlock3D",) * 3,
        "downsample_type": ("spatial", "temporal", "spatiotemporal"),
        "layers_per_block": (1,) * 4,
        "decoder_layers_per_block": (1,) * 4,
        "spatio_temporal_scaling": (True,) * 3,
        "decoder_spatio_temporal_scaling": (True,) * 3,
        "decoder_inject_noise": (False,) * 4,
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "timestep_conditioning": True,
    }
    return _ltx(**newer | changes)


def _mochi() -> Any:
    blocks = (32, 32, 32, 32)
    return d.AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=blocks,
        decoder_block_out_channels=blocks,
        layers_per_block=(1,) * 5,
    )


def _hunyuan_video() -> Any:
    return d.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


CASES: dict[str, tuple[Callable[[], Any], Callable[..., StreamedDecoder], int]] = {
    "ltx": (_ltx, lambda vae, **o: LTXStream(vae, 8, 1, **o), 4),
    "ltx, chunks of two latents": (_ltx, lambda vae, **o: LTXStream(vae, 8, 9, **o), 5),
    "ltx, causal": (lambda: _ltx(decoder_causal=True), lambda vae, **o: LTXStream(vae, 8, 1, **o), 4),
    "ltx 0.9.5": (_ltx_0_9_5, lambda vae, **o: LTXStream(vae, 8, 1, **o), 4),
    "mochi": (_mochi, lambda vae, **o: MochiStream(vae, 6, 1, **o), 3),
    "mochi, chunks of two latents": (_mochi, lambda vae, **o: MochiStream(vae, 6, 12, **o), 5),
    "hunyuan_video": (_hunyuan_video, HunyuanVideoStream, 8),
}
"""Autoencoder, its stream and a number of latent frames that makes several chunks."""


@pytest.fixture
def means_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's RMS norm takes its mean in float32, whose rounding depends on the tensor's layout."""

    def forward(norm: Any, hidden: Tensor) -> Tensor:
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + norm.eps)

    monkeypatch.setattr(RMSNorm, "forward", forward)


def _build(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any, Tensor]:
    make, stream, num_latents = CASES[name]
    torch.manual_seed(0)
    vae = make().requires_grad_(False).eval().to(dtype)
    size = 2 if name == "hunyuan_video" else 1
    latents = torch.randn(1, 4, num_latents, size, 2, dtype=dtype, requires_grad=True)
    return vae, stream(vae, **options), latents


def _whole(vae: Any, latents: Tensor) -> Tensor:
    level = []
    if vae.config.get("timestep_conditioning"):
        level = [torch.tensor([DECODE_TIMESTEP]).to(latents).expand(len(latents))]
    return (vae.decode(latents, *level).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if "," in name else name for name in CASES],
)
def test_a_stream_has_the_values_and_the_gradient_of_one_graph(name: str, means_in_float64: None) -> None:
    """float64: values within 1e-12, the gradient within 1e-10, for a weighted sum of all frames."""
    vae, decoder, latents = _build(name)
    every = range(decoder.num_frames(latents))
    assert len(decoder.chunks(latents, every)) > 1
    found, indices = decode(latents, decoder, every)
    expected = _whole(vae, latents)
    assert indices == list(every)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert expected.std() > 0.01
    weights = torch.randn(expected.shape, dtype=expected.dtype)
    (ours,) = torch.autograd.grad((found * weights).sum(), latents)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), latents)
    assert (ours - theirs).norm() < 1e-10 * theirs.norm()


@pytest.mark.parametrize("name", ["ltx", "mochi"])
def test_float32_deviates_by_rounding(name: str) -> None:
    """With the library's own norms: a few units in the last place of a pixel."""
    vae, decoder, latents = _build(name, torch.float32)
    with torch.no_grad():
        found, _ = decode(latents, decoder, range(decoder.num_frames(latents)))
        torch.testing.assert_close(found, _whole(vae, latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ltx", "mochi"])
def test_the_first_frame_needs_one_chunk(name: str, means_in_float64: None) -> None:
    vae, decoder, latents = _build(name)
    with torch.no_grad():
        frames, indices = decode(latents, decoder, [0])
        assert indices == [0]
        torch.testing.assert_close(frames, _whole(vae, latents)[:, :1], rtol=0, atol=1e-12)


def test_hunyuan_video_decodes_the_tiles_of_wanted_frames() -> None:
    cases: dict[int, list[int]] = {
        3: [*range(13)],
        20: [*range(17, 25)],  # not blended: its own tile alone, without the blended frames
        14: [*range(25)],  # blended with the end of the tile before
        26: [*range(17, 25), *range(25, 29)],
    }
    vae, decoder, latents = _build("hunyuan_video")
    with torch.no_grad():
        whole = _whole(vae, latents)
        for wanted, expected in cases.items():
            frames, indices = decode(latents, decoder, [wanted])
            assert indices == expected
            torch.testing.assert_close(frames, whole[:, indices], rtol=0, atol=1e-12)
    assert decoder.chunks(latents, [0, 26]) == [
        tuple(range(13)),
        tuple(range(17, 25)),
        tuple(range(25, 29)),
    ]


def test_a_clip_of_one_tile_is_one_chunk() -> None:
    _, decoder, latents = _build("hunyuan_video")
    assert decoder.chunks(latents[:, :, :4], [0]) == [tuple(range(13))]
    decoder.vae.use_framewise_decoding = False
    assert decoder.chunks(latents, [0]) == [tuple(range(29))]


def test_tiles_in_space_are_those_of_the_library() -> None:
    """``enable_tiling`` changes the pixels; the stream decodes the same tiles, and has their gradient."""
    vae, decoder, latents = _build("hunyuan_video")
    plain = _whole(vae, latents)
    vae.enable_tiling(tile_sample_min_height=8, tile_sample_min_width=8)
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 8
    expected = _whole(vae, latents)
    assert (expected - plain).abs().max() > 1e-3
    found, _ = decode(latents, decoder, range(29))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad(found.square().sum(), latents)
    (theirs,) = torch.autograd.grad(expected.square().sum(), latents)
    assert (ours - theirs).norm() < 1e-10 * theirs.norm()


def test_injected_noise_is_the_same_in_every_decode() -> None:
    """Of LTX-Video 0.9.1, whose decoder adds noise; the library draws it anew in every call."""
    torch.manual_seed(0)
    vae = _ltx_0_9_5(decoder_inject_noise=(True,) * 4).requires_grad_(False).eval()
    latents = torch.randn(1, 4, 4, 2, 2)
    with torch.no_grad():
        silent = decode(latents, LTXStream(vae, 8, 1), range(25))[0]
        for name, parameter in vae.decoder.named_parameters():
            if "per_channel_scale" in name:
                parameter.fill_(0.1)
        first, second = (decode(latents, LTXStream(vae, 8, size), range(25))[0] for size in (1, 1000))
    assert (first - silent).abs().max() > 1e-3
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltx", "mochi"])
def test_memory_does_not_grow_with_the_clip(name: str) -> None:
    """Counted on the meta device, with the cache in host memory: beyond the frames, twice as long a clip
    takes no more."""
    make, stream, _ = CASES[name]

    def peak(num_latents: int, run: Callable[[Any, Tensor], Tensor]) -> float:
        with meta_device_mode(), PeakMemoryTracker(META.type) as memory:
            with torch.device("meta"):
                vae = make().requires_grad_(False).eval()
            latents = torch.zeros(1, 4, num_latents, 8, 8, device=META, requires_grad=True)
            weights = memory.now
            frames = run(vae, latents)
            frames.backward(torch.ones_like(frames))
        return memory.peak - weights - 2 * frames.nbytes

    def streamed(vae: Any, latents: Tensor) -> Tensor:
        decoder = stream(vae, offload_cache=True)
        return decode(latents, decoder, range(decoder.num_frames(latents)))[0]

    short, long = peak(6, streamed), peak(12, streamed)
    assert long < 1.05 * short
    assert long < 0.3 * peak(12, lambda vae, latents: vae.decode(latents).sample)
