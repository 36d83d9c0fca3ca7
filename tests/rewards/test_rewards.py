"""Rewards: parity with the libraries' own PIL pipelines, gradients by finite differences, the contract, and
every error."""

from __future__ import annotations

import inspect
import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import huggingface_hub.constants
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import functional as vision

from tests.helpers import tiny_rewards
from tests.helpers.reward_inputs import PROMPTS, as_pil, checked_gradient, pictures, random_images, refused
from tests.helpers.tiny_rewards import build_reward as build
from tests.helpers.tiny_rewards import liven
from vader_ray import rewards
from vader_ray.config import RewardConfig
from vader_ray.paths import PACKAGE
from vader_ray.rewards import aesthetic, hps
from vader_ray.rewards.base import FrameReward, frozen
from vader_ray.rewards.core import preprocess
from vader_ray.rewards.core.linear_head import LinearHead
from vader_ray.rewards.core.resizing import resize_matrix
from vader_ray.types import Granularity
from vader_ray.weights import load_strictly, read_state_dict

TINY_CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}
HEAD_SIZES = (24, 16, 12, 8, 4, 1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    """Small networks on shared cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HPS in the published format: half precision under ``state_dict``, and open_clip's config."""
    folder = tmp_path_factory.mktemp("hps")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    network, _ = hps.create(str(folder))
    liven(network)
    torch.save(
        {"state_dict": {name: value.half() for name, value in network.state_dict().items()}},
        folder / "HPS_tiny.pt",
    )
    return folder


@pytest.fixture(scope="module")
def aesthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny aesthetic pair: a whole CLIPModel with its processor, and a head with the published names."""
    folder = tmp_path_factory.mktemp("aesthetic")
    torch.manual_seed(1)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 24,
    }
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={**tower, "image_size": 32, "patch_size": 8},
            text_config={**tower, "vocab_size": 99, "bos_token_id": 97, "eos_token_id": 98},
            projection_dim=24,
        )
    )
    liven(clip)
    clip.save_pretrained(folder / "image_encoder")
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(
        folder / "image_encoder"
    )
    head = LinearHead(HEAD_SIZES)
    for layer in head.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=1.5 / math.sqrt(layer.in_features))
    torch.save(head.state_dict(), folder / "sac+logos+ava1-tiny-linearMSE.pth")
    return folder


# ---- scores: the library's own preprocessing on 8-bit images, then the formula

SHAPES = [(40, 64), (96, 54), (24, 40), (32, 32)]
# PIL rounds to 8 bits between and after its two passes, float arithmetic does not: about 0.3/255 per pixel,
# several at
# edges. The score may move by 0.2 % of its range, which over all embeddings is 2 for a cosine and 2 |w| for
# the head, a
# linear map w of a unit vector. Images that need no resizing leave float32 rounding alone.


def tolerance(height: int, width: int, score_range: float) -> float:
    return 0.002 * score_range if (height, width) != (32, 32) else 1e-5


def hps_by_hand(folder: Path, frames: Tensor, mode: str) -> Tensor:
    network, _ = hps.create(str(folder))
    network.load_state_dict(torch.load(folder / "HPS_tiny.pt", weights_only=True)["state_dict"])
    network.eval()
    transform = open_clip.image_transform(32, is_train=False, resize_mode=mode, interpolation="bicubic")
    tokens = open_clip.SimpleTokenizer(context_length=16)(PROMPTS)
    with torch.no_grad():
        image = network.encode_image(torch.stack([transform(picture) for picture in as_pil(frames)]))
        text = network.encode_text(tokens)
    cosine = functional.cosine_similarity(image.unflatten(0, frames.shape[:2]), text[:, None], dim=-1)
    return cosine.mean(dim=1)


def clip_pixels(folder: Path, frames: Tensor) -> Tensor:
    """OpenAI CLIP's preprocessing, which the published head was trained and is used with; open_clip has the
    same."""
    transform = open_clip.image_transform(32, is_train=False, resize_mode="shortest", interpolation="bicubic")
    return torch.stack([transform(picture) for picture in as_pil(frames)])


def transformers_pixels(folder: Path, frames: Tensor) -> Tensor:
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder / "image_encoder")
    pixels: Tensor = processor(images=as_pil(frames), return_tensors="pt")["pixel_values"]
    return pixels


def aesthetic_by_hand(folder: Path, frames: Tensor, pixels: Tensor) -> tuple[Tensor, float]:
    """The scores, and the range of scores over all embeddings."""
    encoder = transformers.CLIPModel.from_pretrained(folder / "image_encoder")
    with torch.no_grad():
        rating = encoder.visual_projection(encoder.vision_model(pixel_values=pixels).pooler_output)
    rating = rating / rating.norm(dim=-1, keepdim=True)
    state = torch.load(folder / "sac+logos+ava1-tiny-linearMSE.pth", weights_only=True)
    slope = torch.eye(HEAD_SIZES[0])
    for index in (0, 2, 4, 6, 7):
        rating = rating @ state[f"layers.{index}.weight"].T + state[f"layers.{index}.bias"]
        slope = slope @ state[f"layers.{index}.weight"].T
    return rating.unflatten(0, frames.shape[:2]).mean(dim=(1, 2)), 2 * float(slope.norm())


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_hps_is_the_published_score(hps_folder: Path, height: int, width: int) -> None:
    frames = pictures(height, width)
    allowed = tolerance(height, width, 2)
    scores = build("hps", weights=str(hps_folder))(frames, PROMPTS)
    torch.testing.assert_close(scores, hps_by_hand(hps_folder, frames, "longest"), atol=allowed, rtol=0)
    if height != width:
        other = hps_by_hand(hps_folder, frames, "shortest")
        assert (scores - other).abs().max() > 5 * allowed, "the tolerance must tell preprocessings apart"


@pytest.mark.parametrize("library", [clip_pixels, transformers_pixels])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_aesthetic_is_the_published_score(
    aesthetic_folder: Path, height: int, width: int, library: Any
) -> None:
    if library is transformers_pixels and (height, width) == (40, 64):
        height, width = (
            40,
            60,
        )  # where 19 columns are cut off, transformers drops 9 on the left, torchvision (and CLIP) 10
    frames = pictures(height, width, batch=6, num_frames=1)
    reward = build("aesthetic", weights=str(aesthetic_folder))
    expected, score_range = aesthetic_by_hand(aesthetic_folder, frames, library(aesthetic_folder, frames))
    allowed = tolerance(height, width, score_range)
    torch.testing.assert_close(reward(frames, PROMPTS * 3), expected, atol=allowed, rtol=0)
    if height != width:
        reward.preprocessing = "vader"
        other = reward(frames, PROMPTS * 3)
        assert (other - expected).abs().max() > 5 * allowed, "the tolerance must tell preprocessings apart"


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_published_pixels_are_the_librarys_within_one_8_bit_level(
    hps_folder: Path, aesthetic_folder: Path, height: int, width: int
) -> None:
    frames = pictures(height, width)
    level = 1 / 255 / min(preprocess.CLIP_STD)
    longest = open_clip.image_transform(32, is_train=False, resize_mode="longest", interpolation="bicubic")
    for reward, expected in (
        (
            build("hps", weights=str(hps_folder)),
            torch.stack([longest(picture) for picture in as_pil(frames)]),
        ),
        (build("aesthetic", weights=str(aesthetic_folder)), clip_pixels(aesthetic_folder, frames)),
    ):
        assert (reward.prepare(frames.flatten(0, 1)) - expected).square().mean().sqrt() < level


@pytest.mark.parametrize("name", ["hps", "aesthetic"])
def test_vader_preprocessing_is_its_formula(name: str, hps_folder: Path, aesthetic_folder: Path) -> None:
    reward = build(
        name, weights=str(hps_folder if name == "hps" else aesthetic_folder), preprocessing="vader"
    )
    images = random_images(2, 3, 40, 64)
    squashed = functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    torch.testing.assert_close(
        reward.prepare(images), vision.normalize(squashed, mean, std), atol=1e-5, rtol=0
    )


def test_hps_as_videox_fun_squashes_without_a_clamp(hps_folder: Path) -> None:
    reward = build("hps", weights=str(hps_folder), preprocessing="videox_fun")
    images = random_images(2, 3, 24, 20)
    squashed = vision.resize(images, [32, 32], vision.InterpolationMode.BICUBIC, antialias=True)
    assert float(squashed.max()) > 1
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    torch.testing.assert_close(
        reward.prepare(images), vision.normalize(squashed, mean, std), atol=1e-5, rtol=0
    )


# ---- preprocessing


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("target", [(7, 9), (40, 21), (13, 30), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resize_is_antialiased_interpolation(mode: Any, target: tuple[int, int], dtype: torch.dtype) -> None:
    images = random_images(2, 3, 20, 30, dtype=dtype)
    expected = functional.interpolate(images, target, mode=mode, antialias=True)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13  # a few roundings of numbers near 1
    torch.testing.assert_close(
        preprocess.resize(images, *target, mode), expected.clamp(0, 1), atol=tolerance, rtol=0
    )


@pytest.mark.parametrize(("height", "width"), [(40, 64), (37, 64), (64, 41), (20, 33), (45, 32)])
def test_crop_is_torchvisions(height: int, width: int) -> None:
    images = random_images(2, 3, height, width, dtype=torch.float64)
    expected = vision.center_crop(
        vision.resize(images, 32, vision.InterpolationMode.BICUBIC, antialias=True), 32
    ).clamp(0, 1)
    torch.testing.assert_close(preprocess.crop(images, 32, "bicubic"), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (37, 64), (64, 41), (20, 33), (32, 32)])
def test_letterbox_is_open_clips(height: int, width: int) -> None:
    keep, pad = open_clip.image_transform(32, is_train=False, resize_mode="longest").transforms[:2]
    images = random_images(1, 3, height, width, dtype=torch.float64)
    size = keep.get_params(Image.new("RGB", (width, height)), (32, 32), 1.0)
    expected = pad(vision.resize(images, size, vision.InterpolationMode.BICUBIC, antialias=True))
    torch.testing.assert_close(preprocess.letterbox(images, 32, "bicubic"), expected, atol=1e-12, rtol=0)


ROUNDED = [(105, 192), (170, 640)]
"""Sizes at which a side times 224 / long side is rounded otherwise than the side times 224, divided by it."""


@pytest.mark.parametrize(("height", "width"), [(480, 832), (320, 512), *ROUNDED])
def test_letterbox_is_that_of_hpsv2_on_tensors(height: int, width: int) -> None:
    # hpsv2 1.2.0: scale = size / max(h, w), then torchvision's resize of a float tensor, which keeps
    # overshoot
    blocks = (random_images(1, 3, height // 15, width // 16) > 0.5).float()
    images = functional.interpolate(blocks, (height, width))
    size = [round(side * (224 / float(max(height, width)))) for side in (height, width)]
    inner = vision.resize(images, size, vision.InterpolationMode.BICUBIC, antialias=True)
    assert float(inner.max()) > 1, "there must be overshoot to keep"
    across, down = (224 - side for side in size[::-1])
    borders = [across // 2, down // 2, across - across // 2, down - down // 2]
    # torchvision computes the positions of the weights in float32: 1e-5 at column 800
    torch.testing.assert_close(
        preprocess.letterbox(images, 224, "bicubic"), vision.pad(inner, borders, fill=0), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("prepare", [preprocess.squash, preprocess.crop, preprocess.letterbox])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_preprocessing_gradient_is_its_finite_difference(prepare: Any, mode: str) -> None:
    images = random_images(
        1, 3, 6, 9, low=0.4, high=0.6, dtype=torch.float64
    ).requires_grad_()  # away from the clamp's kinks
    assert torch.autograd.gradcheck(
        lambda x: preprocess.normalise(prepare(x, 4, mode), (0.5,) * 3, (0.2,) * 3), (images,)
    )


def test_brightness_gradient_is_its_finite_difference() -> None:
    frames = random_images(2, 2, 3, 3, 4, dtype=torch.float64).requires_grad_()
    reward = build("brightness")
    assert torch.autograd.gradcheck(lambda x: reward(x, PROMPTS), (frames,))
    white = torch.ones(1, 2, 3, 4, 4)
    torch.testing.assert_close(reward(white, PROMPTS[:1]), torch.ones(1))


@pytest.mark.parametrize("name", ["hps", "aesthetic"])
@pytest.mark.parametrize("preprocessing", ["published", "vader"])
def test_network_gradient_is_its_finite_difference(
    name: str, preprocessing: str, hps_folder: Path, aesthetic_folder: Path
) -> None:
    folder = hps_folder if name == "hps" else aesthetic_folder
    reward = build(name, weights=str(folder), preprocessing=preprocessing, dtype=torch.float64)
    frames = random_images(1, 2, 3, 40, 64, low=0.3, high=0.7, dtype=torch.float64)
    assert reward(frames, PROMPTS[:1]).dtype == torch.float64
    checked_gradient(reward, frames, atol=1e-9)


# ---- the contract, for every file of the folder


def contract_cases() -> list[tuple[str, dict[str, Any]]]:
    """Every reward with the shapes weights where it needs some, under each preprocessing it has."""
    cases = []
    for name in rewards.names():
        options = (
            {"weights": f"shapes:{name}"} if (PACKAGE / "shapes" / "checkpoints" / name).is_dir() else {}
        )
        option = inspect.signature(rewards.resolve(name), eval_str=True).parameters.get("preprocessing")
        kinds = [{"preprocessing": kind} for kind in get_args(option.annotation)] if option else [{}]
        cases += [(name, {**options, **kind}) for kind in kinds]
    return cases


@pytest.mark.parametrize(("name", "options"), contract_cases())
def test_every_reward_keeps_the_contract(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    tiny = tiny_rewards.OPTIONS[name](tmp_path / "tiny") if name in tiny_rewards.OPTIONS else {}
    reward = build(name, **{**options, **tiny})
    rewards.check_contract(reward, name=name, num_frames=4, height=40, width=48)
    frames = random_images(2, 4, 3, 40, 48)
    with torch.no_grad():
        both = reward(frames, PROMPTS)
        one_by_one = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
        # other batch sizes take other kernels: float32 rounding, relative to scores of order 1
        torch.testing.assert_close(both, one_by_one, rtol=1e-5, atol=1e-5)
        assert torch.equal(both, reward(frames, PROMPTS)), "a second call must give the same score"
        if reward.granularity == "frame":
            singles = torch.stack([reward(frames[:, i : i + 1], PROMPTS) for i in range(4)]).mean(dim=0)
            torch.testing.assert_close(both, singles, rtol=1e-5, atol=1e-5)
    if isinstance(reward, nn.Module):
        reward.train()
        assert not any(module.training for module in reward.modules())
        assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_scores_are_wide_whatever_the_weights(hps_folder: Path) -> None:
    frames = pictures(40, 64)
    exact = build("hps", weights=str(hps_folder), dtype=torch.float64)(frames.double(), PROMPTS)
    single = build("hps", weights=str(hps_folder))(frames.double(), PROMPTS)
    half = build("hps", weights=str(hps_folder), dtype=torch.bfloat16)(frames, PROMPTS)
    assert (exact.dtype, single.dtype, half.dtype) == (torch.float64, torch.float32, torch.float32)
    torch.testing.assert_close(single.double(), exact, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        half.double(), exact, atol=0.05, rtol=0
    )  # bfloat16 has 8 bits: 0.4 % per operation


def test_scoring_under_inference_mode_does_not_spoil_the_next_gradient(hps_folder: Path) -> None:
    resize_matrix.cache_clear()
    reward = build("hps", weights=str(hps_folder))
    frames = pictures(40, 64)
    with torch.inference_mode():
        before = reward(frames, PROMPTS)
    scores = reward(frames.requires_grad_(), PROMPTS)
    scores.sum().backward()
    assert frames.grad is not None
    assert frames.grad.any()
    torch.testing.assert_close(
        before.clone(), scores.detach(), atol=1e-6, rtol=0
    )  # attention takes another kernel without grad


def test_cached_text_follows_the_weights(hps_folder: Path) -> None:
    reward = build("hps", weights=str(hps_folder))
    frames = pictures(32, 32).double()
    reward(frames, PROMPTS)
    fresh = build("hps", weights=str(hps_folder), dtype=torch.float64)
    assert torch.equal(reward.double()(frames, PROMPTS), fresh(frames, PROMPTS))


def test_loading_is_quiet(
    hps_folder: Path,
    aesthetic_folder: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    build("hps", weights=str(hps_folder))
    build("aesthetic", weights=str(aesthetic_folder))
    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# ---- formats


def test_weights_come_in_every_published_form(
    hps_folder: Path, aesthetic_folder: Path, tmp_path: Path
) -> None:
    frames = pictures(32, 32)
    state = read_state_dict(hps_folder / "HPS_tiny.pt")
    save_file(state, tmp_path / "hps.safetensors")
    expected = build("hps", weights=str(hps_folder))(frames, PROMPTS)
    for file in (hps_folder / "HPS_tiny.pt", tmp_path / "hps.safetensors"):
        assert torch.equal(
            build("hps", weights=str(file), architecture=str(hps_folder))(frames, PROMPTS), expected
        )
    tower = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig.from_pretrained(aesthetic_folder / "image_encoder")
    )
    whole = read_state_dict(aesthetic_folder / "image_encoder" / "model.safetensors")
    tower.load_state_dict({name: value for name, value in whole.items() if name in tower.state_dict()})
    tower.save_pretrained(tmp_path / "tower")
    processor = (aesthetic_folder / "image_encoder" / "preprocessor_config.json").read_text()
    (tmp_path / "tower" / "preprocessor_config.json").write_text(processor)
    expected = build("aesthetic", weights=str(aesthetic_folder))(frames, PROMPTS)
    scores = build("aesthetic", weights=str(aesthetic_folder), encoder=str(tmp_path / "tower"))(
        frames, PROMPTS
    )
    assert torch.equal(scores, expected)


def block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one residual block of open_clip."""
    shapes: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
    }
    shapes |= {f"ln_{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")}
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def vit_h_14() -> dict[str, tuple[int, ...]]:
    """The published checkpoint's names and shapes, from the architecture: 32 layers of 1280 and 24 of
    1024."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (77, 1024),
        "token_embedding.weight": (49408, 1024),
        "text_projection": (1024, 1024),
        "logit_scale": (),
        "visual.class_embedding": (1280,),
        "visual.positional_embedding": (257, 1280),
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.proj": (1280, 1024),
        **{f"ln_final.{kind}": (1024,) for kind in ("weight", "bias")},
        **{f"visual.ln_{place}.{kind}": (1280,) for place in ("pre", "post") for kind in ("weight", "bias")},
    }
    for index in range(32):
        shapes |= block(f"visual.transformer.resblocks.{index}", 1280)
    for index in range(24):
        shapes |= block(f"transformer.resblocks.{index}", 1024)
    return shapes


def test_full_size_hps_checkpoint_fits() -> None:
    with torch.device("meta"):
        network, tokenize = hps.create("ViT-H-14", device="meta")
        state = {name: torch.empty(shape) for name, shape in vit_h_14().items()}
    load_strictly(network, state, Path("HPS_v2.1_compressed.pt"))
    assert sum(value.numel() for value in state.values()) == 986_109_441  # the 986 M of the paper
    assert tuple(network.visual.image_size) == (224, 224)
    assert (tuple(network.visual.image_mean), tuple(network.visual.image_std)) == (
        preprocess.CLIP_MEAN,
        preprocess.CLIP_STD,
    )
    with pytest.raises(
        ValueError,
        match=r"1 missing \(logit_scale\), 1 of another shape \(visual.proj \(4, 4\) instead of \(1280, ",
    ):
        load_strictly(
            network,
            {
                **{name: value for name, value in state.items() if name != "logit_scale"},
                "visual.proj": torch.empty(4, 4),
            },
            Path("x.pt"),
        )
    assert tokenize(PROMPTS[:1])[0, :6].tolist() == [49406, 320, 1929, 533, 2761, 49407]  # CLIP's vocabulary


def test_full_size_aesthetic_checkpoint_fits(tmp_path: Path) -> None:
    sizes = (768, 1024, 128, 64, 16, 1)
    state = dict[str, Tensor]()
    for index, wide, narrow in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        state |= {
            f"layers.{index}.weight": torch.zeros(narrow, wide),
            f"layers.{index}.bias": torch.full((narrow,), 4.5),
        }
    torch.save(state, tmp_path / aesthetic.HEAD_FILE)
    head = aesthetic.load_head(tmp_path / aesthetic.HEAD_FILE)
    assert head.num_features == 768
    assert head(torch.randn(3, 768)).tolist() == [[4.5]] * 3


# ---- names and options

OUTSIDE = '''
class RedReward:
    """Redness."""
    granularity = "frame"
    unit = "red"
    def __init__(self, gain: float = 1.0):
        self.gain = gain
    def __call__(self, frames, prompts):
        return self.gain * frames[:, :, 0].mean(dim=(1, 2, 3))

class Green(RedReward):
    """Greenness."""
    def __call__(self, frames, prompts):
        return self.gain * frames[:, :, 1].mean(dim=(1, 2, 3))

class Clash(RedReward):
    def __init__(self, target: int = 1): ...

def blue(frames, prompts):
    """Blueness."""
    return frames[:, :, 2].mean(dim=(1, 2, 3))

def blind(frames):
    return frames.mean(dim=(1, 2, 3, 4))
'''


def test_a_dotted_name_reaches_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards").mkdir()
    (tmp_path / "my_rewards" / "__init__.py").write_text("")
    (tmp_path / "my_rewards" / "colour.py").write_text(OUTSIDE)
    (tmp_path / "my_rewards" / "two.py").write_text("class AReward: ...\nclass BReward: ...\n")
    (tmp_path / "my_rewards" / "broken.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    frames = random_images(2, 2, 3, 8, 8)
    red = build("my_rewards.colour", gain=2)
    rewards.check_contract(red)
    torch.testing.assert_close(red(frames, PROMPTS), 2 * frames[:, :, 0].mean(dim=(1, 2, 3)))
    torch.testing.assert_close(
        build("my_rewards.colour.Green")(frames, PROMPTS), frames[:, :, 1].mean(dim=(1, 2, 3))
    )
    blue = build("my_rewards.colour.blue")
    rewards.check_contract(blue)
    assert (blue.granularity, type(blue).__doc__) == ("clip", "Blueness.")
    assert torch.equal(blue(frames, PROMPTS), frames[:, :, 2].mean(dim=(1, 2, 3)))
    for reward, options, message in (
        ("my_rewards.colour.blue", {"gain": 2}, "blue: there is no option 'gain'; it has no options"),
        ("my_rewards.colour.blind", {}, r"the function blind is no reward .*must be f\(frames, prompts\)"),
        ("my_rewards.two", {}, r"whose name ends in Reward and defines AReward, BReward; .*two\.ClassName"),
        ("my_rewards.colour.__name__", {}, "is a str; name a class or a function"),
        ("my_rewards.colour", {"gain": "much"}, r"colour\.gain: .*number.*not 'much'"),
        ("my_rewards.colour", {"gian": 1}, r"no option 'gian'; did you mean 'gain'\? it has gain"),
        ("my_rewards.colour.Blue", {}, "my_rewards.colour defines no 'Blue'"),
        ("my_rewards.shape", {}, "my_rewards defines no 'shape'"),
        ("my_rewards", {}, "reward: there is no 'my_rewards'; .*give one of action, aesthetic, "),
        ("my_rewards.colour.Clash", {}, "'target' is a setting of every reward; rename it"),
        ("nowhere.at.all", {}, "there is no module 'nowhere.at.all' or 'nowhere.at'.*PYTHONPATH"),
    ):
        with pytest.raises(ValueError, match=message):
            rewards.check(RewardConfig(reward=reward, **options))
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        rewards.resolve("my_rewards.broken")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hsp", {}, r"reward: there is no 'hsp'; did you mean 'hps'\? give one of .*hps"),
        ("_network", {}, "reward: there is no '_network'"),
        (".hps", {}, "reward: there is no '.hps'"),
        (
            "hps",
            {"wieghts": "a"},
            r"hps: there is no option 'wieghts'; did you mean 'weights'\? it has architecture, preprocessing",
        ),
        ("brightness", {"gain": 1}, "brightness: there is no option 'gain'; it has no options"),
        (
            "hps",
            {"preprocessing": "mine"},
            "hps.preprocessing: .*'published', 'vader' or 'videox_fun', not 'mine'",
        ),
        ("hps", {"weights": 3}, "hps.weights: .*string, not 3"),
        (
            "hps",
            {"weights": "hps/missing.pt"},
            "hps.weights: hps/missing.pt does not exist; give an existing file",
        ),
        ("hps", {"weights": "/nowhere/hps"}, "hps.weights: /nowhere/hps does not exist"),
        (
            "aesthetic",
            {"weights": "shapes:nothing"},
            "aesthetic.weights: 'shapes:nothing' names no packaged checkpoint",
        ),
        ("aesthetic", {"head": "missing.pth"}, "aesthetic.head: missing.pth does not exist"),
        ("hps", {"label": "v2", "weights": "missing.pt"}, "v2.weights: missing.pt does not exist"),
    ],
)
def test_wrong_settings_are_refused_without_weights(name: str, options: dict[str, Any], message: str) -> None:
    for action in (rewards.check, lambda spec: rewards.build(spec, device="cpu")):
        with pytest.raises(ValueError, match=message) as caught:
            action(RewardConfig(reward=name, **options))
        assert "\n" not in str(caught.value)


def test_check_makes_paths_absolute(hps_folder: Path) -> None:
    spec = RewardConfig(reward="hps", weight=2.0, weights=f"./{hps_folder.name}", version="v2.0")
    checked = rewards.check(spec, folder=hps_folder.parent)
    assert checked.options == {"weights": str(hps_folder.resolve()), "version": "v2.0"}
    assert checked.weight == 2.0
    assert rewards.check(checked) == checked == RewardConfig.model_validate(checked.model_dump())


# ---- weights that cannot be used


def test_unusable_weights_are_explained(hps_folder: Path, aesthetic_folder: Path, tmp_path: Path) -> None:
    architecture = str(hps_folder)
    whole = (hps_folder / "HPS_tiny.pt").read_bytes()
    save_file(read_state_dict(hps_folder / "HPS_tiny.pt"), tmp_path / "whole.safetensors")
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:5000])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "page.pt").write_text("<html>404</html>")
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "numbers.pt")
    torch.save({"network": nn.Linear(1, 1)}, tmp_path / "objects.pt")
    for file in ("cut.pt", "cut.safetensors", "empty.pt", "page.pt", "objects.pt"):
        refused(
            "hps",
            f"hps: .*{file} .* cannot be read as a checkpoint",
            weights=str(tmp_path / file),
            architecture=architecture,
        )
    refused(
        "hps",
        "numbers.pt holds no table of tensors",
        weights=str(tmp_path / "numbers.pt"),
        architecture=architecture,
    )
    head = next(aesthetic_folder.glob("*.pth"))
    foreign = r"with weights \d+ missing \(ln_final.bias, .*, …\), 10 unexpected \(layers.0.bias, "
    refused("hps", foreign, weights=str(head), architecture=architecture)
    foreign = r"10 missing \(layers.0.bias, .*\), \d+ unexpected"
    refused("aesthetic", foreign, weights=str(aesthetic_folder), head=str(hps_folder / "HPS_tiny.pt"))
    refused(
        "hps",
        "cannot build the architecture 'ViT-Z'",
        weights=str(hps_folder / "HPS_tiny.pt"),
        architecture="ViT-Z",
    )


def test_incomplete_folders_are_explained(hps_folder: Path, aesthetic_folder: Path, tmp_path: Path) -> None:
    config = (hps_folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    refused("hps", r"must hold exactly one \*.pt file, not none", weights=str(tmp_path))
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"")
    refused("hps", r"must hold exactly one \*.pt file, not a.pt, b.pt", weights=str(tmp_path))
    (tmp_path / "encoder").mkdir()
    refused(
        "aesthetic",
        "config.json cannot be read",
        weights=str(aesthetic_folder),
        encoder=str(tmp_path / "encoder"),
    )
    wide = LinearHead((9, 8, 6, 4, 2, 1))
    torch.save(wide.state_dict(), tmp_path / "wide.pth")
    message = "wide.pth takes 9 features but the encoder .* gives 24"
    refused("aesthetic", message, weights=str(aesthetic_folder), head=str(tmp_path / "wide.pth"))


def test_an_unreachable_hub_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    command = "`hf download xswu/HPSv2 HPS_v2.1_compressed.pt`"
    refused(
        "hps",
        f"cannot get HPS_v2.1_compressed.pt from the hub repository xswu/HPSv2 .*out of reach.*{command}",
    )
    refused("hps", "HPS_v2_compressed.pt", version="v2.0")
    refused(
        "aesthetic",
        "`hf download openai/clip-vit-large-patch14 config.json preprocessor_config.json model.safetensors`",
    )


# ---- rewards that break the contract


class Mean:
    """Mean of all values, the base of the wrong ones below."""

    granularity: Granularity = "frame"
    unit = "value"

    def __call__(self, frames: Tensor, prompts: Sequence[str]) -> Any:
        return frames.mean(dim=(1, 2, 3, 4))


def wrong(**behaviour: Any) -> Any:
    return type("Wrong", (Mean,), behaviour)()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (wrong(granularity="pixel"), "must declare granularity"),
        (wrong(unit=None), "must declare granularity .* and unit"),
        (wrong(__call__=lambda self, f, p: [0.5, 0.5]), "returned list"),
        (
            wrong(__call__=lambda self, f, p: f.mean()),
            r"'bad' returned shape \(\) for 2 videos; expected \(batch,\)",
        ),
        (wrong(__call__=lambda self, f, p: f.mean(dim=(2, 3, 4))), r"returned shape \(2, 2\)"),
        (wrong(__call__=lambda self, f, p: f.mean(dim=(1, 2, 3, 4)).half()), "returned torch.float16"),
        (wrong(__call__=lambda self, f, p: f.mean(dim=(1, 2, 3, 4)) * math.nan), "returned NaN"),
        (wrong(__call__=lambda self, f, p: f.mean(dim=(1, 2, 3, 4)) / 0), "returned infinity"),
        (
            wrong(__call__=lambda self, f, p: f.detach().mean(dim=(1, 2, 3, 4))),
            "has no gradient with respect to frames",
        ),
        (
            wrong(__call__=lambda self, f, p: f.round().mean(dim=(1, 2, 3, 4))),
            "has no gradient .* or it is zero everywhere",
        ),
        (
            wrong(__call__=lambda self, f, p: (f - f.detach()).mean(dim=(1, 2, 3, 4)).abs().sqrt()),
            "gradient .* not finite",
        ),
        (wrong(__call__=lambda self, f, p: f.mean(dim=(1, 2, 3, 4)) - f.mean()), "leaks between videos"),
        (
            wrong(__call__=lambda self, f, p: f.mean(dim=(1, 2, 3, 4)) + len(p[0])),
            "leaks between videos: video 1 scores",
        ),
        (
            wrong(__call__=lambda self, f, p: f.mean(dim=(1, 2, 3, 4)) + f.shape[1]),
            "its single frames .*; declare 'clip'",
        ),
    ],
)
def test_a_broken_reward_is_named(reward: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rewards.check_contract(reward, name="bad")
    assert "'bad'" in str(caught.value)
    rewards.check_contract(Mean())


class Blend(FrameReward):
    """A network that changes in training mode."""

    unit = "value"

    def __init__(self) -> None:
        super().__init__()
        self.network = frozen(nn.Sequential(nn.Flatten(), nn.Linear(48, 1), nn.Dropout(0.9)))

    def score_images(self, images: Tensor, prompts: Sequence[str], /) -> Tensor:
        return self.network(images)[:, 0]


def test_a_network_reward_stays_frozen_and_in_eval_mode() -> None:
    reward = Blend()
    nn.ModuleList([reward]).train()
    assert not any(module.training for module in reward.modules())
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    rewards.check_contract(reward, height=4, width=4)


def test_the_precision_is_that_of_the_recipe(hps_folder: Path) -> None:
    spec = RewardConfig(reward="hps", weights=str(hps_folder), precision="bfloat16")
    reward: Any = rewards.build(spec, device="cpu")
    assert reward.dtype == torch.bfloat16
    scores = reward(pictures(24, 40), PROMPTS)
    assert scores.dtype == torch.float32
