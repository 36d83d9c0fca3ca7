"""VBench's dimensions: parity with the libraries' processors and forward passes, formulas by hand, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as vision

from tests.helpers import tiny_vbench
from tests.helpers.reward_inputs import pictures
from vader_ray import metrics
from vader_ray.config import MetricConfig
from vader_ray.errors import UserError
from vader_ray.metrics.core.consistency import consistency
from vader_ray.metrics.core.musiq import Musiq, cut_patches, hashed_positions, num_tokens, rescaled
from vader_ray.metrics.imaging_quality import prepared
from vader_ray.metrics.vbench_quality import RANGES, quality
from vader_ray.plugins import METRICS
from vader_ray.rewards.core.preprocess import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

SHAPES = [(40, 64), (96, 54), (32, 32)]
PROMPTS = ["a", "b"]
# VBench resizes 8-bit frames to 8-bit frames, which rounds by up to half a grey level; float arithmetic does
# not. Measured: at most 0.004 of a cosine, whose range is 1. Frames of 32 pixels are not resized: float32
# rounding.


def tolerance(height: int, width: int) -> float:
    return 0.01 if (height, width) != (32, 32) else 1e-5


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return tiny_vbench.options(tmp_path_factory.mktemp("metrics") / "tiny")


def build(name: str, **options: Any) -> Any:
    return metrics.build(MetricConfig.model_validate({"metric": name, **options}), device="cpu")


def resized(frames: Tensor, mode: InterpolationMode) -> Tensor:
    """Frames as 8-bit tensors, their short side resized to 32 pixels by torchvision without antialiasing."""
    images = (frames.flatten(0, 1) * 255).round().to(torch.uint8)
    return vision.resize(images, 32, mode, antialias=False).float() / 255


def by_loops(features: Tensor) -> Tensor:
    """VBench's consistency, frame by frame."""
    scores = []
    for video in features:
        total = 0.0
        for index in range(1, len(video)):
            before = max(0.0, float(functional.cosine_similarity(video[index - 1], video[index], dim=0)))
            first = max(0.0, float(functional.cosine_similarity(video[0], video[index], dim=0)))
            total += (before + first) / 2
        scores.append(total / (len(video) - 1))
    return torch.tensor(scores)


def test_consistency_is_vbenchs_formula() -> None:
    features = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(consistency(features), by_loops(features), atol=1e-6, rtol=0)
    assert consistency(features[:, :1]).tolist() == [1.0] * 3
    assert consistency(features[:, :1].expand(-1, 4, -1)).tolist() == pytest.approx([1.0] * 3)
    turned = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]])
    assert consistency(turned).tolist() == [0.0]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_subject_consistency_is_that_of_dino(
    height: int, width: int, options: dict[str, dict[str, Any]]
) -> None:
    frames = pictures(height, width, batch=2, num_frames=4)
    folder = options["subject_consistency"]["weights"]
    config = transformers.ViTConfig.from_pretrained(folder)
    config.layer_norm_eps = 1e-6
    network = transformers.ViTModel.from_pretrained(folder, config=config, add_pooling_layer=False).eval()
    pixels = vision.normalize(resized(frames, InterpolationMode.BILINEAR), IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        features = network(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    expected = by_loops(features.unflatten(0, (2, 4)))
    metric = build("subject_consistency", **options["subject_consistency"])
    torch.testing.assert_close(metric(frames, PROMPTS), expected, atol=tolerance(height, width), rtol=0)
    assert float(expected.max()) < 0.98, "the frames must be told apart"


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_background_consistency_and_aesthetic_quality_are_those_of_clip(
    height: int, width: int, options: dict[str, dict[str, Any]]
) -> None:
    frames = pictures(height, width, batch=2, num_frames=4)
    network = transformers.CLIPModel.from_pretrained(options["background_consistency"]["weights"]).eval()
    square = vision.center_crop(resized(frames, InterpolationMode.BICUBIC), [32, 32])
    with torch.no_grad():
        features = network.get_image_features(vision.normalize(square, CLIP_MEAN, CLIP_STD)).pooler_output
    metric = build("background_consistency", **options["background_consistency"])
    expected = by_loops(features.unflatten(0, (2, 4)))
    torch.testing.assert_close(metric(frames, PROMPTS), expected, atol=tolerance(height, width), rtol=0)
    head = torch.load(options["aesthetic_quality"]["head"], weights_only=True)
    ratings = functional.normalize(features, dim=1) @ head["weight"][0] + head["bias"]
    metric = build("aesthetic_quality", **options["aesthetic_quality"])
    expected = ratings.unflatten(0, (2, 4)).mean(dim=1) / 10
    torch.testing.assert_close(metric(frames, PROMPTS), expected, atol=tolerance(height, width), rtol=0)


def test_flickering_is_the_mean_difference() -> None:
    frames = torch.tensor([0.0, 0.5, 0.25])[None, :, None, None, None].expand(1, 3, 3, 4, 4)
    metric = build("temporal_flickering")
    assert metric(frames, ["a"]).tolist() == [1 - 0.375]
    assert metric(frames[:, :1], ["a"]).tolist() == [1.0]


# ---- MUSIQ


def test_patches_are_counted_as_vbench_counts_them() -> None:
    frame = torch.rand(1, 3, 480, 832)
    counted = [cut_patches(rescaled(frame, scale))[0].shape[1] for scale in range(3)]
    assert (counted[:2], [num_tokens(scale) for scale in range(3)]) == ([5 * 7, 7 * 12], [49, 144, None])
    small = prepared(frame)
    assert small.shape[2:] == (295, 512)
    assert cut_patches(rescaled(small, 2))[1:] == (10, 16)
    assert prepared(frame[..., :300, :512]).shape[2:] == (300, 512)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 12), (10, 16), (1, 23)])
def test_positions_are_spread_over_the_patches(rows: int, columns: int) -> None:
    grid = torch.arange(10.0)[None, None]
    down, across = (functional.interpolate(grid, count, mode="nearest")[0, 0] for count in (rows, columns))
    expected = [[int(one * 10 + other) for other in across] for one in down]
    assert hashed_positions(rows, columns).view(rows, columns).tolist() == expected


def musiq_by_hand(state: dict[str, Tensor], image: Tensor) -> float:
    """One image, patch by patch, without padding tokens; weights standardised by numpy."""
    tokens = [state["transformer_encoder.cls"][0, 0]]
    for scale, long_side in enumerate((224, 384, None)):
        pixels = 2 * image - 1
        if long_side:
            factor = long_side / max(image.shape[1:])
            size = [round(side * factor) for side in image.shape[1:]]
            pixels = functional.interpolate(pixels[None], size, mode="bicubic")[0]
        rows, columns = (-(-side // 32) for side in pixels.shape[1:])
        down, across = rows * 32 - pixels.shape[1], columns * 32 - pixels.shape[2]
        pixels = functional.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))
        for row in range(rows):
            for column in range(columns):
                patch = pixels[:, row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
                cell = (row * 10 // rows) * 10 + column * 10 // columns
                tokens.append(
                    musiq_patch(state, patch)
                    + state["transformer_encoder.posembed_input.position_emb"][0, cell]
                    + state["transformer_encoder.scaleembed_input.scale_emb"][scale]
                )
    x = torch.stack(tokens)
    for block in (
        "transformer_encoder.transformer.encoderblock_0",
        "transformer_encoder.transformer.encoderblock_1",
    ):
        normed = norm(state, f"{block}.norm1", x)
        query, key, value = (
            linear(state, f"{block}.attention.{part}", normed) for part in ("query", "key", "value")
        )
        heads = [
            (q @ k.T / 2**0.5).softmax(dim=1) @ v
            for q, k, v in zip(query.split(2, 1), key.split(2, 1), value.split(2, 1), strict=True)
        ]
        x = x + linear(state, f"{block}.attention.out", torch.cat(heads, dim=1))
        inner = functional.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x)))
        x = x + linear(state, f"{block}.mlp.fc2", inner)
    return float(linear(state, "head", norm(state, "transformer_encoder.encoder_norm", x)[:1]))


def musiq_patch(state: dict[str, Tensor], patch: Tensor) -> Tensor:
    def filtered(name: str, x: Tensor, **settings: Any) -> Tensor:
        weight = state[f"{name}.weight"].double().numpy()
        means = np.mean(weight, axis=(1, 2, 3), keepdims=True)
        deviations = np.std(weight, axis=(1, 2, 3), ddof=1, keepdims=True)
        return functional.conv2d(x, torch.tensor((weight - means) / (deviations + 1e-5)), **settings)

    def grouped(name: str, x: Tensor, eps: float) -> Tensor:
        scale, shift = (state[f"{name}.{kind}"].double() for kind in ("weight", "bias"))
        return functional.group_norm(x, 32, scale, shift, eps)

    x = functional.pad(patch[None].double(), (2, 3, 2, 3))
    x = grouped("gn_root", filtered("conv_root", x, stride=2), 1e-6).relu()
    x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 3, 2)
    inner = grouped("block1.gn1", filtered("block1.conv1", x), 1e-4).relu()
    inner = grouped("block1.gn2", filtered("block1.conv2", inner, padding=1), 1e-4).relu()
    inner = grouped("block1.gn3", filtered("block1.conv3", inner), 1e-4)
    x = (inner + grouped("block1.gn_proj", filtered("block1.conv_proj", x), 1e-4)).relu()
    return linear(state, "embedding", x[0].permute(1, 2, 0).reshape(1, -1).float())[0]


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def test_musiq_is_the_published_network(options: dict[str, dict[str, Any]]) -> None:
    frames = pictures(40, 72, batch=2, num_frames=1)
    state = torch.load(options["imaging_quality"]["weights"], weights_only=True)
    expected = torch.tensor([musiq_by_hand(state, image) for image in frames[:, 0]]) / 100
    metric = build("imaging_quality", **options["imaging_quality"])
    # padding has a logit of −1000 against none at all: a weight of 0 in float32
    torch.testing.assert_close(metric(frames, PROMPTS), expected, atol=1e-6, rtol=1e-4)
    assert float((expected[0] - expected[1]).abs()) > 2e-5


def test_musiq_of_full_size_has_the_published_shapes() -> None:
    with torch.device("meta"):
        network = Musiq()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(27e6, rel=0.02)
    assert shapes["embedding.weight"] == (384, 16384)
    assert shapes["transformer_encoder.transformer.encoderblock_13.mlp.fc1.weight"] == (1152, 384)
    assert shapes["transformer_encoder.posembed_input.position_emb"] == (1, 100, 384)
    assert shapes["block1.conv_proj.weight"] == (256, 64, 1, 1)


# ---- the whole


def test_quality_is_vbenchs_weighted_mean(options: dict[str, dict[str, Any]]) -> None:
    best = {name: torch.tensor([largest]) for name, (_, largest) in RANGES.items()}
    worst = {name: torch.tensor([least]) for name, (least, _) in RANGES.items()}
    assert quality(best).tolist() == pytest.approx([1.0])
    assert quality(worst).tolist() == pytest.approx([0.0])
    assert quality({**worst, "dynamic_degree": torch.ones(1)}).tolist() == pytest.approx([0.5 / 5.5])
    assert quality({**worst, "subject_consistency": torch.ones(1)}).tolist() == pytest.approx([1 / 5.5])
    frames = pictures(40, 64, batch=2, num_frames=2)
    scores = build("vbench_quality", **options["vbench_quality"])(frames, PROMPTS)
    for name in set(RANGES) - {"dynamic_degree"}:
        alone = build(name, **options.get(name, {}))(frames, PROMPTS)
        assert torch.equal(scores[name], alone), name


def test_every_metric_with_networks_names_its_weights_and_their_licence() -> None:
    for name in METRICS.names():
        found = METRICS.read(name).attributes
        assert bool(found.get("default_weights")) == bool(found.get("licence")), name
        has_networks = name not in ("motion", "diversity", "distance_to_base", "temporal_flickering")
        assert bool(found.get("default_weights")) == has_networks, name


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("subject_consistency", "weights"),
        ("background_consistency", "weights"),
        ("aesthetic_quality", "head"),
        ("imaging_quality", "weights"),
        ("dynamic_degree", "weights"),
        ("warp_error", "weights"),
    ],
)
def test_foreign_and_truncated_weights_are_refused(
    name: str, option: str, options: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    source = Path(options[name][option])
    target = tmp_path / "other"
    if source.is_dir():
        target.mkdir()
        for file in source.glob("*.json"):
            (target / file.name).write_bytes(file.read_bytes())
    for content, message in (
        (b"PK\x03\x04" + bytes(900), "cannot be read as a checkpoint of plain tensors"),
        (None, "belongs to another network, with weights .* missing"),
    ):
        path = target / "pytorch_model.bin" if source.is_dir() else target.with_suffix(".pth")
        torch.save({"layers.9.weight": torch.zeros(2)}, path)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message) as caught:
            build(name, **options[name] | {option: str(target if source.is_dir() else path)})
        assert "\n" not in str(caught.value)


def test_unreachable_files_are_explained(
    options: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = options["aesthetic_quality"]["encoder"]
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("subject_consistency", {}, "`hf download facebook/dino-vitb16 config.json pytorch_model.bin`"),
        ("background_consistency", {}, "`hf download openai/clip-vit-base-patch32 config.json"),
        (
            "aesthetic_quality",
            {"encoder": encoder},
            "curl -L -o .*sa_0_4_vit_l_14_linear.pth https:.* as head$",
        ),
        ("imaging_quality", {}, "curl -L -o .*musiq_spaq_ckpt-358bb6af.pth https:.* as weights$"),
        ("dynamic_degree", {}, "curl -L -o .*raft_large_C_T_V1-22a6c225.pth https:.* as weights$"),
    )
    for name, given, message in cases:
        with pytest.raises(UserError, match=message):
            build(name, **given)


def test_the_wrong_kind_of_network_is_refused(options: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a network of the type 'clip', not vit"):
        build("subject_consistency", weights=options["clip_diversity"]["weights"])
    torch.save({"weight": torch.zeros(1, 7), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"takes 7 features but the encoder .* gives 24"):
        build("aesthetic_quality", **options["aesthetic_quality"] | {"head": str(tmp_path / "head.pth")})
    assert (
        json.loads(Path(options["subject_consistency"]["weights"], "config.json").read_text())[
            "layer_norm_eps"
        ]
        == 1e-12
    )


@pytest.mark.parametrize(
    "name", ["subject_consistency", "aesthetic_quality", "imaging_quality", "warp_error"]
)
def test_preflight_can_count_it_without_weights(name: str, options: dict[str, dict[str, Any]]) -> None:
    spec = MetricConfig.model_validate({"metric": name, **options[name]})
    metric: Any = metrics.build(spec, device="meta")
    assert metric(torch.rand(2, 3, 3, 40, 64, device="meta"), PROMPTS).shape == (2,)


def test_the_published_musiq_is_made_without_weights() -> None:
    full = metrics.build(MetricConfig(metric="imaging_quality"), device="meta")
    assert isinstance(full, torch.nn.Module)
    assert sum(value.numel() for value in full.parameters()) == pytest.approx(27e6, rel=0.02)
