"""ImageReward, MPS and aesthetic v2.5: parity with the libraries' own processors and forward passes,
gradients by finite differences, published layouts, and every error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import tiny_scorers
from tests.helpers.reward_inputs import PROMPTS, as_pil, checked_gradient, pictures, random_images, refused
from tests.helpers.tiny_rewards import build_reward as build
from vader_ray import rewards
from vader_ray.config import RewardConfig
from vader_ray.rewards import image_reward
from vader_ray.rewards.base import FrameReward
from vader_ray.rewards.core.linear_head import LinearHead
from vader_ray.rewards.mps import OVERALL, kept_tokens

NAMES = sorted(tiny_scorers.OPTIONS)
SHAPES = [(40, 64), (96, 54), (32, 32)]
LEVEL = 1 / 255


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("scorers")
    return {name: make(folder / name) for name, make in tiny_scorers.OPTIONS.items()}


def affine(features: Tensor, state: dict[str, Tensor], name: str, indices: tuple[int, ...]) -> Tensor:
    for index in indices:
        features = features @ state[f"{name}.{index}.weight"].T.to(features) + state[
            f"{name}.{index}.bias"
        ].to(features)
    return features[:, 0]


def stock_pixels(frames: Tensor) -> Tensor:
    """OpenAI CLIP's preprocessing of 8-bit images, which ImageReward has too."""
    transform = open_clip.image_transform(32, is_train=False, resize_mode="shortest", interpolation="bicubic")
    return torch.stack([transform(picture) for picture in as_pil(frames)])


def stock_image_reward(options: dict[str, Any], frames: Tensor, prompts: list[str]) -> Tensor:
    folder = Path(options["weights"])
    blip = transformers.BlipForImageTextRetrieval.from_pretrained(folder / "transformers").eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    text = tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        read = blip(
            input_ids=text.input_ids, attention_mask=text.attention_mask, pixel_values=stock_pixels(frames)
        ).question_embeds[:, 0]
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    return (affine(read, state, "mlp.layers", (0, 2, 4, 6, 7)) - 0.16717362830052426) / 1.0333394966054072


def stock_mps(options: dict[str, Any], frames: Tensor, prompts: list[str], threshold: float = 0.3) -> Tensor:
    """The formula of the facts, with CLIP of transformers; scores one image at a time."""
    clip = transformers.CLIPModel.from_pretrained(options["clip"]).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(options["clip"])
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    state = torch.load(options["weights"], weights_only=True)
    scores = []
    for picture, prompt in zip(as_pil(frames), prompts, strict=True):
        pixels = processor(images=picture, return_tensors="pt")["pixel_values"]
        text = tokenizer(
            [prompt, OVERALL], padding="max_length", truncation=True, max_length=40, return_tensors="pt"
        )
        with torch.no_grad():
            output = clip.text_model(text.input_ids)
            tokens, condition = clip.text_projection(output.last_hidden_state)
            end = clip.text_projection(output.pooler_output)[0]
            image = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)[0]
            similarity = torch.stack(
                [max(float(token @ word) for word in condition) * torch.ones(()) for token in tokens]
            )
            kept = similarity / similarity.max() > threshold
            for index in range(4):
                image = mps_layer(image, tokens[kept], state, f"cross_model.layers.{index}")
        scores.append(100 * functional.cosine_similarity(end, image[0], dim=0))
    return torch.stack(scores)


def mps_layer(image: Tensor, text: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """One layer of the head, head by head, with the masked tokens left out instead of masked."""
    weight = {
        key: state[f"{name}.{key}.weight"]
        for key in (
            "0.fn.norm",
            "0.fn.to_q",
            "0.fn.to_kv",
            "0.fn.to_out",
            "0.fn.ff.0",
            "0.fn.ff.2",
            "1.fn.norm",
            "1.fn.fused_attn_ff_proj",
            "1.fn.attn_out",
            "1.fn.ff_out.1",
        )
    }
    normed = functional.layer_norm(image, (128,), weight["0.fn.norm"])
    key, value = (text @ weight["0.fn.to_kv"].T).split(64, dim=1)
    query = normed @ weight["0.fn.to_q"].T
    seen = torch.cat([(head / 8 @ key.T).softmax(dim=1) @ value for head in query.split(64, dim=1)], dim=1)
    inner, gate = (normed @ weight["0.fn.ff.0"].T).split(512, dim=1)
    image = image + seen @ weight["0.fn.to_out"].T + (inner * functional.silu(gate)) @ weight["0.fn.ff.2"].T
    normed = functional.layer_norm(image, (128,), weight["1.fn.norm"])
    query, key, value, inner, gate = (normed @ weight["1.fn.fused_attn_ff_proj"].T).split(
        (128, 64, 64, 512, 512), dim=1
    )
    seen = torch.cat(
        [(rotated(head) / 8 @ rotated(key).T).softmax(dim=1) @ value for head in query.split(64, dim=1)],
        dim=1,
    )
    return (
        image + seen @ weight["1.fn.attn_out"].T + (inner * functional.silu(gate)) @ weight["1.fn.ff_out.1"].T
    )


def rotated(x: Tensor) -> Tensor:
    """Rotary positions as complex numbers: feature i + 32 is the imaginary part of feature i."""
    angles = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    turned = torch.complex(x[:, :32], x[:, 32:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=1)


def stock_aesthetic(options: dict[str, Any], frames: Tensor, prompts: list[str]) -> Tensor:
    siglip = transformers.SiglipModel.from_pretrained(options["encoder"]).eval()
    processor = transformers.SiglipImageProcessorPil.from_pretrained(options["encoder"])
    with torch.no_grad():
        features = siglip.vision_model(**processor(images=as_pil(frames), return_tensors="pt")).pooler_output
    features = features / features.norm(dim=-1, keepdim=True)
    state = torch.load(options["head"], weights_only=True)
    return affine(features, state, "scoring_head", (0, 2, 4, 6, 8))


STOCK: dict[str, Callable[..., Tensor]] = {
    "image_reward": stock_image_reward,
    "mps": stock_mps,
    "aesthetic_v2_5": stock_aesthetic,
}


# ---- scores


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_score_is_the_published_one(
    name: str, height: int, width: int, options: dict[str, dict[str, Any]]
) -> None:
    frames = pictures(height, width, batch=4, num_frames=1)
    prompts = PROMPTS * 2
    reward = build(name, **options[name])
    expected = STOCK[name](options[name], frames, prompts)
    scores = reward(frames, prompts)
    if (height, width) == (32, 32):  # nothing is resized: float32 rounding
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
    # PIL rounds after each of its two passes. One grey level of each pixel, in directions that are
    # independent of the gradient, changes the score by about `effect`.
    leaf = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf, prompts).sum(), leaf)
    effect = LEVEL * gradient.flatten(1).norm(dim=1).max()
    print(f"{name}: one grey level's effect {effect:.2e}, difference {(scores - expected).abs().max():.2e}")
    torch.testing.assert_close(scores, expected, atol=2 * float(effect) + 1e-4, rtol=0)
    assert (scores.max() - scores.min()) > 10 * effect, "pictures must be told apart"


def test_image_reward_of_another_prompt_is_another_score_and_padding_is_none(
    options: dict[str, dict[str, Any]],
) -> None:
    reward = build("image_reward", **options["image_reward"])
    frames = pictures(32, 32, batch=2, num_frames=2)
    one, other = reward(frames, PROMPTS), reward(frames, PROMPTS[::-1])
    assert (one - other).abs().min() > 0.01
    longer = "a dog is running " * 20
    tokens, mask = reward.tokenize(["a dog", longer])
    assert tokens.shape == (2, 35)
    assert (mask.sum(dim=1).tolist(), tokens[0, :5].tolist()) == ([4, 35], [2, 5, 7, 3, 0])
    assert reward.text.config.layer_norm_eps != reward.vision.config.layer_norm_eps


def test_a_folded_head_is_the_head() -> None:
    head = LinearHead((32, 16, 12, 8, 4, 1)).double()
    features = torch.randn(5, 32, dtype=torch.float64)
    with torch.no_grad():
        offset = head(torch.zeros(1, 32, dtype=torch.float64))
        slope = head(torch.eye(32, dtype=torch.float64)) - offset
        torch.testing.assert_close(head(features), features @ slope + offset, atol=1e-12, rtol=0)


# ---- the mask of MPS


def test_tokens_like_the_condition_are_kept() -> None:
    text = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0], [0.05, 0.05]]])
    condition = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]])
    # largest inner products: 1, 6, −1, 0.15; shares of 6
    assert kept_tokens(text, condition, 0.3).tolist() == [[False, True, False, False]]
    assert kept_tokens(text, condition, 0.1).tolist() == [[True, True, False, False]]
    assert kept_tokens(text, condition, 0.01).tolist() == [[True, True, False, True]]
    both = kept_tokens(torch.cat([text, 0.1 * text]), condition.expand(2, -1, -1), 0.1)
    assert both[0].equal(both[1]), "a prompt's mask must not depend on the others of the batch"


def test_masked_tokens_and_the_condition_matter_as_they_must(options: dict[str, dict[str, Any]]) -> None:
    frames = pictures(32, 32, batch=2, num_frames=1)
    expected = {at: stock_mps(options["mps"], frames, PROMPTS, at) for at in (0.0, 0.3, 0.9)}
    for threshold, scores in expected.items():
        reward = build("mps", **options["mps"], threshold=threshold)
        torch.testing.assert_close(reward(frames, PROMPTS), scores, atol=1e-3, rtol=0)
    assert (expected[0.0] - expected[0.9]).abs().max() > 0.05
    reward = build("mps", **options["mps"], threshold=0.9, condition="a cat")
    assert (reward(frames, PROMPTS) - expected[0.9]).abs().max() > 0.05
    tokens, _, kept = reward._encoded(PROMPTS[0])
    moved = tokens + (~kept)[..., None] * torch.randn(
        tokens.shape, generator=torch.Generator().manual_seed(0)
    )
    pixels = reward.prepare(frames[:1, 0])
    torch.testing.assert_close(
        reward.network.encode_images(pixels, moved, kept), reward.network.encode_images(pixels, tokens, kept)
    )


def test_videox_fun_squashes(options: dict[str, dict[str, Any]]) -> None:
    images = random_images(2, 3, 40, 64)
    expected = functional.interpolate(images, (32, 32), mode="bicubic", antialias=True)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    pixels = build("mps", **options["mps"], preprocessing="videox_fun").prepare(images)
    torch.testing.assert_close(pixels, (expected - mean) / std, atol=1e-5, rtol=0)


# ---- gradients


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_finite_difference(name: str, options: dict[str, dict[str, Any]]) -> None:
    reward = build(name, dtype=torch.float64, **options[name])
    frames = random_images(1, 2, 3, 40, 64, low=0.3, high=0.7, dtype=torch.float64)
    assert reward(frames, PROMPTS[:1]).dtype == torch.float64
    gradient = checked_gradient(reward, frames)
    assert isinstance(reward, FrameReward)
    rows, columns = reward.resizing(40, 64).region(40, 64)
    outside = gradient.clone()
    outside[..., rows, columns] = 0
    assert not outside.any()
    assert gradient[..., rows, columns].flatten(0, 2).any(dim=0).all(), "every pixel inside must matter"


# ---- files


def copied(source: Path, target: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    state = torch.load(source, weights_only=True)
    change(state)
    torch.save(state, target)
    return target


MAIN_FILE = {"image_reward": "weights", "mps": "weights", "aesthetic_v2_5": "head"}
"""The option that names the scorer's own file."""


@pytest.mark.parametrize("name", NAMES)
def test_foreign_and_truncated_files_are_refused(
    name: str, options: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    option = MAIN_FILE[name]
    source = Path(options[name][option])
    source = source / "ImageReward.pt" if source.is_dir() else source

    def given(path: Path) -> dict[str, Any]:
        if name != "image_reward":
            return options[name] | {option: str(path)}
        folder = tmp_path / path.stem
        folder.mkdir(exist_ok=True)
        for file in source.parent.glob("*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "ImageReward.pt").write_bytes(path.read_bytes())
        return {"weights": str(folder)}

    cut = tmp_path / "cut.pth"
    cut.write_bytes(source.read_bytes()[:5000])
    refused(name, r"\(5000 bytes\) cannot be read as a checkpoint", **given(cut))
    pickled = tmp_path / "pickled.pth"
    torch.save(nn.Linear(1, 1), pickled)
    refused(name, "cannot be read as a checkpoint of plain tensors", **given(pickled))
    foreign = tmp_path / "foreign.pth"
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, foreign)
    refused(name, "belongs to another network", **given(foreign))
    lost = copied(source, tmp_path / "lost.pth", lambda state: state.pop(sorted(state)[-1]))
    refused(name, r"belongs to another network, with weights 1 missing \(", **given(lost))
    more = copied(
        source, tmp_path / "more.pth", lambda state: state.update({f"{sorted(state)[-1]}x": torch.zeros(1)})
    )
    refused(name, r"belongs to another network, with weights 1 unexpected \(", **given(more))


def test_a_med_config_without_a_size_is_refused(options: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for file in Path(options["image_reward"]["weights"]).iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "med_config.json").write_text('{"hidden_size": 32}')
    refused("image_reward", "med_config.json has no intermediate_size; copy it from", weights=str(tmp_path))


def test_missing_files_name_the_command_that_gets_them(
    options: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    command = "hf download THUDM/ImageReward ImageReward.pt med_config.json"
    refused("image_reward", f"out of reach.*`{command}`")
    refused("mps", "`hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K config.json tokenizer.json ")
    message = "cannot get https://.*/MPS_overall.pth .*run `curl -L -o .*/MPS_overall.pth https:.* weights$"
    refused("mps", message, clip=options["mps"]["clip"])
    refused("aesthetic_v2_5", "`hf download google/siglip-so400m-patch14-384 config.json")
    encoder = options["aesthetic_v2_5"]["encoder"]
    refused(
        "aesthetic_v2_5", r"not part of this package \(AGPL-3.0\); get .* as the option head", encoder=encoder
    )


@pytest.mark.parametrize("name", NAMES)
def test_preflight_can_count_it_without_weights(name: str, options: dict[str, dict[str, Any]]) -> None:
    reward = rewards.build(RewardConfig.model_validate({"reward": name, **options[name]}), device="meta")
    frames = torch.rand(2, 2, 3, 40, 64, device="meta", requires_grad=True)
    reward(frames, PROMPTS).sum().backward()
    assert frames.grad is not None
    assert frames.grad.shape == frames.shape


def test_full_size_image_reward_has_the_published_names() -> None:
    with torch.device("meta"):
        blocks = {
            f"blip.visual_encoder.blocks.{i}.{name}": torch.empty(shape)
            for i in range(24)
            for name, shape in (
                ("norm1.weight", (1024,)),
                ("norm1.bias", (1024,)),
                ("norm2.weight", (1024,)),
                ("norm2.bias", (1024,)),
                ("attn.qkv.weight", (3072, 1024)),
                ("attn.qkv.bias", (3072,)),
                ("attn.proj.weight", (1024, 1024)),
                ("attn.proj.bias", (1024,)),
                ("mlp.fc1.weight", (4096, 1024)),
                ("mlp.fc1.bias", (4096,)),
                ("mlp.fc2.weight", (1024, 4096)),
                ("mlp.fc2.bias", (1024,)),
            )
        }
        state = blocks | {
            f"blip.visual_encoder.{name}": torch.empty(shape)
            for name, shape in (
                ("cls_token", (1, 1, 1024)),
                ("pos_embed", (1, 197, 1024)),
                ("norm.weight", (1024,)),
                ("norm.bias", (1024,)),
                ("patch_embed.proj.weight", (1024, 3, 16, 16)),
                ("patch_embed.proj.bias", (1024,)),
            )
        }
        part = {
            image_reward._renamed(name): value
            for name, value in image_reward._part(state, image_reward.VISION).items()
        }
        config = image_reward._vision_config(part)
        network = transformers.BlipVisionModel(config)
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in part.items()
    }
    assert (config.image_size, config.num_attention_heads, config.layer_norm_eps) == (224, 16, 1e-6)
    assert math.isclose(sum(value.numel() for value in part.values()), 303e6, rel_tol=0.01)  # ViT-L
