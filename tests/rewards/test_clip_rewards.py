"""Clip rewards: parity with transformers' own processors and stock networks, gradients, batches, labels, and
every error."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as vision
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers.reward_inputs import PROMPTS, checked_gradient, pictures, random_images, refused
from tests.helpers.tiny_clips import LABELS, save_action, save_vjepa
from tests.helpers.tiny_rewards import build_reward as build
from vader_ray.rewards import action, check_contract, vjepa
from vader_ray.weights import load_strictly, read_state_dict

SHAPES = [(40, 64), (96, 54), (36, 36)]
# The published processors resize 8-bit frames to 8-bit frames: 0.5/255 of rounding per pixel that float
# arithmetic has not.
# 0.2 % of the score's range may differ; a short side that already fits (36 pixels for V-JEPA) needs no
# resizing, so there
# float32 rounding alone is left.


def tolerance(resized: bool, score_range: float) -> float:
    return 0.002 * score_range if resized else 1e-5


def uint8(frames: Tensor) -> list[Tensor]:
    return list((frames * 255).round().to(torch.uint8))


@pytest.fixture(scope="module")
def vjepa_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vjepa(tmp_path_factory.mktemp("vjepa"))


@pytest.fixture(scope="module")
def action_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_action(tmp_path_factory.mktemp("action"))


# ---- V-JEPA


def stock_loss(folder: Path, frames: Tensor, masks: list[list[Any]], *, whole: bool) -> Tensor:
    """The loss by transformers' own processor and forward; ``whole`` as it is, else with attention to hidden
    tokens cut off."""
    network = transformers.VJEPA2Model.from_pretrained(folder).eval()
    pixels = transformers.VJEPA2VideoProcessor.from_pretrained(folder)(uint8(frames), return_tensors="pt")
    values = []
    for video, pairs in zip(pixels["pixel_values_videos"], masks, strict=True):
        losses = []
        for visible, hidden in pairs:
            with torch.no_grad():
                target = network(video[None], skip_predictor=True).last_hidden_state
                target = functional.layer_norm(target, target.shape[-1:])
                if whole:
                    output = network(video[None], context_mask=[visible[None]], target_mask=[hidden[None]])
                    predicted = output.predictor_output.last_hidden_state
                else:
                    context = blind(network, hidden)(video[None]).last_hidden_state
                    predicted = network.predictor(context, [visible[None]], [hidden[None]]).last_hidden_state
            losses.append(functional.l1_loss(predicted, target[:, hidden]))
        values.append(torch.stack(losses).sum() / len(losses))
    return -torch.stack(values)


def blind(network: Any, hidden: Tensor) -> Any:
    """The stock encoder with hidden tokens in place, to which no token attends: visible ones come out as if
    alone."""

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **options: Any
    ) -> Any:
        weights = query @ key.transpose(-1, -2) * scaling
        weights[..., hidden] = -math.inf
        return (weights.softmax(dim=-1) @ value).transpose(1, 2), None

    def encode(pixels: Tensor) -> Any:
        ALL_ATTENTION_FUNCTIONS.register("blind", attention)
        before = network.config._attn_implementation
        network.config._attn_implementation = "blind"
        try:
            return network.encoder(pixels)
        finally:
            network.config._attn_implementation = before

    return encode


@pytest.mark.parametrize("context", ["visible", "whole"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_vjepa_is_the_published_loss(vjepa_folder: Path, height: int, width: int, context: str) -> None:
    frames, prompts = pictures(height, width, num_frames=8, batch=6), PROMPTS * 3
    reward = build("vjepa", weights=str(vjepa_folder), context=context, num_masks=2)
    masks = [reward.masks(prompt, 8) for prompt in prompts]
    expected = stock_loss(vjepa_folder, frames, masks, whole=context == "whole")
    allowed = tolerance(
        min(height, width) != 36, 0.25
    )  # scores of a random network spread by less than 0.1, of all by 0.8
    torch.testing.assert_close(reward(frames, prompts), expected, atol=allowed, rtol=0)
    if min(height, width) == 36:
        other = stock_loss(vjepa_folder, frames, masks, whole=context != "whole")
        assert (other - expected).abs().max() > 100 * allowed, "the two contexts must be told apart"
    else:
        reward.processor = dataclasses.replace(reward.processor, short=32)
        assert (reward(frames, prompts) - expected).abs().max() > 5 * allowed, (
            "preprocessings must be told apart"
        )


def test_masks_are_those_of_the_recipe() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_blocks, area, expected in ((8, 0.15, 1 - 0.85**8), (2, 0.7, None)):
        masks = torch.stack([vjepa.draw_mask(16, num_blocks, area, generator) for _ in range(300)])
        shares = masks.flatten(1).float().mean(dim=1)
        assert shares.min() >= area * 0.85  # one block, its sides rounded to whole places
        assert shares.max() < 1
        if (
            expected is not None
        ):  # blocks stay inside, so the middle is hit more often and the union is smaller than of free ones
            assert 0.5 * expected < shares.mean() < expected
        if num_blocks == 2:
            rows = masks.any(dim=2).sum(dim=1)
            assert rows.min() >= round(math.sqrt(179 * 0.75))
    single = torch.stack([vjepa.draw_mask(16, 1, 0.15, generator) for _ in range(300)])
    heights, widths = single.any(dim=2).sum(dim=1), single.any(dim=1).sum(dim=1)
    assert (single.flatten(1).sum(dim=1) == heights * widths).all(), "a block is a rectangle"
    assert 0.6 < (heights / widths).min() < 0.9  # aspect 0.75 to 1.5, sides rounded
    assert 1.3 < (heights / widths).max() < 1.8


def test_masks_are_a_function_of_seed_and_prompt(vjepa_folder: Path) -> None:
    def drawn(prompt: str, **options: Any) -> list[Any]:
        reward = build("vjepa", weights=str(vjepa_folder), **options)
        return [(visible.tolist(), hidden.tolist()) for visible, hidden in reward.masks(prompt, 8)]

    masks = drawn(PROMPTS[0])
    assert drawn(PROMPTS[0]) == masks
    assert drawn(PROMPTS[1]) != masks
    assert drawn(PROMPTS[0], seed=1) != masks
    assert len(drawn(PROMPTS[0], num_masks=3)) == 6
    for visible, hidden in masks:
        assert sorted(visible + hidden) == list(range(4 * 64))
        assert [place for place in hidden if place >= 64] == [
            place + 64 * t for t in (1, 2, 3) for place in hidden if place < 64
        ]


@pytest.mark.parametrize("context", ["visible", "whole"])
def test_vjepa_gradient_is_its_finite_difference(vjepa_folder: Path, context: str) -> None:
    options = {"weights": str(vjepa_folder), "context": context}
    frames = random_images(1, 4, 3, 40, 44, low=0.3, high=0.7, dtype=torch.float64)
    direction = torch.randn(frames.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for target_gradient in (True, False):
        reward = build("vjepa", dtype=torch.float64, target_gradient=target_gradient, **options)
        targets = reward._targets

        def score(images: Tensor, reward: Any = reward, targets: Any = targets) -> Tensor:
            return reward(images, PROMPTS[:1])

        leaf = frames.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
        if not target_gradient:  # the targets of the unmoved frames, for both sides of the difference
            with torch.no_grad():
                pixels = reward.processor(frames)
                fixed = targets(reward.network(pixels, skip_predictor=True).last_hidden_state)
            reward._targets = lambda whole, fixed=fixed: fixed
        step = 1e-6
        with torch.no_grad():
            difference = (score(frames + step * direction) - score(frames - step * direction))[0] / (2 * step)
        # |prediction − target| has kinks: some of the 10⁴ differences may change sign within the step, each
        # by 1e-6 / 1e4
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-4, atol=1e-8)


def test_vjepa_takes_any_number_of_tubelets(vjepa_folder: Path) -> None:
    reward = build("vjepa", weights=str(vjepa_folder))
    for num_frames in (2, 6, 12):
        assert reward(random_images(2, num_frames, 3, 40, 48), PROMPTS).shape == (2,)
    with pytest.raises(ValueError, match="takes 2 frames at a time and cannot divide 5; set"):
        reward(random_images(1, 5, 3, 40, 48), PROMPTS[:1])


def test_full_size_vjepa_checkpoint_fits() -> None:
    with torch.device("meta"):
        network = transformers.VJEPA2Model(transformers.VJEPA2Config())
        state = {name: torch.empty(shape) for name, shape in vjepa2_vitl().items()}
    load_strictly(network, state, Path("model.safetensors"))
    assert sum(value.numel() for value in state.values()) == 325_971_328  # the 326 M of the hub's card
    assert (network.config.crop_size, network.config.patch_size, network.config.tubelet_size) == (256, 16, 2)


def vjepa2_vitl() -> dict[str, tuple[int, ...]]:
    """The published checkpoint's names and shapes: 24 layers of 1024 in the encoder, 12 of 384 in the
    predictor."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embeddings.patch_embeddings.proj.weight": (1024, 3, 2, 16, 16),
        "encoder.embeddings.patch_embeddings.proj.bias": (1024,),
        "predictor.embeddings.mask_tokens": (10, 1, 1, 384),
        "predictor.embeddings.predictor_embeddings.weight": (384, 1024),
        "predictor.embeddings.predictor_embeddings.bias": (384,),
        "predictor.proj.weight": (1024, 384),
        "predictor.proj.bias": (1024,),
    }
    for part, width, depth in (("encoder", 1024, 24), ("predictor", 384, 12)):
        blocks = [f"{part}.layer.{index}" for index in range(depth)]
        linear = {f"attention.{kind}": (width, width) for kind in ("query", "key", "value", "proj")}
        linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for block in blocks:
            shapes |= {f"{block}.{name}.weight": shape for name, shape in linear.items()}
            shapes |= {f"{block}.{name}.bias": shape[:1] for name, shape in linear.items()}
        for norm in [f"{part}.layernorm", *(f"{block}.norm{i}" for block in blocks for i in (1, 2))]:
            shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    return shapes


# ---- action


def stock_log_probabilities(folder: Path, frames: Tensor, indices: list[int], processor: Any) -> Tensor:
    """By transformers' own processor on 8-bit frames and its stock forward."""
    network = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
    videos = [list(video) for video in uint8(frames[:, indices])]
    with torch.no_grad():
        logits = torch.cat(
            [
                network(**processor.from_pretrained(folder)(video, return_tensors="pt")).logits
                for video in videos
            ]
        )
    return logits - logits.logsumexp(dim=-1, keepdim=True)


PROCESSORS = [transformers.VideoMAEImageProcessor, transformers.VideoMAEImageProcessorPil]


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(("height", "width"), [(40, 64), (96, 54), (32, 32)])
def test_action_is_the_published_score(action_folder: Path, height: int, width: int, processor: Any) -> None:
    frames = pictures(height, width, num_frames=12, batch=6)
    indices = [0, 2, 3, 5, 6, 8, 9, 11]  # 8 of 12: steps of 11/7
    expected = stock_log_probabilities(action_folder, frames, indices, processor)
    assert expected.max(dim=0).values.sub(expected.min(dim=0).values).min() > 0.05, "videos must differ"
    allowed = tolerance((height, width) != (32, 32), float(expected.max() - expected.min()))
    for place, label in enumerate(LABELS):
        reward = build("action", weights=str(action_folder), action=label)
        scores = reward(frames, PROMPTS * 3)
        torch.testing.assert_close(scores, expected[:, place], atol=allowed, rtol=0)
        probability = build("action", weights=str(action_folder), action=label, score="probability")
        torch.testing.assert_close(probability(frames, PROMPTS * 3), scores.exp())
    if height != width:
        reward.preprocessing = "vader"
        assert (reward(frames, PROMPTS * 3) - expected[:, -1]).abs().max() > 5 * allowed, (
            "preprocessings must be told apart"
        )


def test_vader_action_preprocessing_is_its_formula(action_folder: Path) -> None:
    reward = build("action", weights=str(action_folder), preprocessing="vader")
    frames = random_images(2, 12, 3, 40, 64)
    every_second = frames[:, [0, 2, 4, 6, 8, 10]][:, [0, 1, 1, 2, 3, 4, 4, 5]]  # 8 of 6: steps of 5/7
    squashed = functional.interpolate(every_second.flatten(0, 1), (32, 32), mode="bilinear", antialias=True)
    expected = vision.normalize(squashed, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).unflatten(0, (2, 8))
    torch.testing.assert_close(reward.prepare(frames), expected, atol=1e-5, rtol=0)


def test_frames_are_taken_evenly() -> None:
    assert action.evenly(16, 16) == list(range(16))
    assert action.evenly(31, 16) == list(range(0, 31, 2))
    assert action.evenly(8, 16) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    assert action.evenly(1, 4) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("playing guitar", "playing guitar"),
        ("Playing Guitar!", "playing guitar"),
        ("a bear plays the guitar on a beach", "playing guitar"),
        ("a bear at the piano", "playing piano"),
        ("a dog that rides bikes", "riding a bike"),
        ("a cat is walking its dog", "walking the dog"),
        ("a blue square moving left", "moving left"),
        ("a blue square moves right", "moving right"),
        ("an archer practises archery", "archery"),
        ("guitars", "playing guitar"),
    ],
)
def test_the_nearest_label_is_found(text: str, label: str) -> None:
    assert action.nearest_labels(text, LABELS)[0][0] == label
    assert action.find_label(text, LABELS) == label


def test_labels_come_from_prompts_or_from_the_option(action_folder: Path) -> None:
    frames = pictures(32, 32, num_frames=8, batch=3)
    prompts = ["a bear plays guitar", "a red circle moving left", "a frog riding a bike"]
    scores = build("action", weights=str(action_folder))(frames, prompts)
    for place, label in enumerate(("playing guitar", "moving left", "riding a bike")):
        fixed = build("action", weights=str(action_folder), action=label)
        torch.testing.assert_close(fixed(frames, [""] * 3)[place], scores[place], rtol=1e-5, atol=1e-5)
    message = "no label of the 7 is close to action='swimming'; the nearest are '.*', '.*', '.*'"
    refused("action", message, weights=str(action_folder), action="swimming")


@pytest.mark.parametrize("preprocessing", ["published", "vader"])
@pytest.mark.parametrize("score", ["log_probability", "probability"])
def test_action_gradient_is_its_finite_difference(
    action_folder: Path, preprocessing: str, score: str
) -> None:
    reward = build(
        "action",
        weights=str(action_folder),
        preprocessing=preprocessing,
        score=score,
        action="archery",
        dtype=torch.float64,
    )
    frames = random_images(1, 10, 3, 40, 64, low=0.3, high=0.7, dtype=torch.float64)
    checked_gradient(reward, frames, atol=1e-9)


def videomae_base() -> dict[str, tuple[int, ...]]:
    """The published checkpoint's names and shapes: 12 layers of 768, biases of queries and values by
    themselves, 400 labels."""
    shapes: dict[str, tuple[int, ...]] = {
        "videomae.embeddings.patch_embeddings.projection.weight": (768, 3, 2, 16, 16),
        "videomae.embeddings.patch_embeddings.projection.bias": (768,),
        "fc_norm.weight": (768,),
        "fc_norm.bias": (768,),
        "classifier.weight": (400, 768),
        "classifier.bias": (400,),
    }
    linear = {
        "attention.output.dense": (768, 768),
        "intermediate.dense": (3072, 768),
        "output.dense": (768, 3072),
    }
    for index in range(12):
        layer = f"videomae.encoder.layer.{index}"
        shapes |= {
            f"{layer}.attention.attention.{kind}.weight": (768, 768) for kind in ("query", "key", "value")
        }
        shapes |= {f"{layer}.attention.attention.{kind}_bias": (768,) for kind in ("q", "v")}
        shapes |= {f"{layer}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{layer}.{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {
            f"{layer}.layernorm_{place}.{kind}": (768,)
            for place in ("before", "after")
            for kind in ("weight", "bias")
        }
    return shapes


@pytest.mark.slow
def test_full_size_action_checkpoint_loads(tmp_path: Path) -> None:
    """The 86 M weights of the hub's card under their published names, through the reward's own loader."""
    state = {
        name: torch.full(shape, 0.01 * (1 + place))
        for place, (name, shape) in enumerate(videomae_base().items())
    }
    assert sum(value.numel() for value in state.values()) == 86_534_800
    save_file(state, tmp_path / "model.safetensors")
    labels = {str(index): f"label {index}" for index in range(400)}
    config = {"model_type": "videomae", "qkv_bias": True, "use_mean_pooling": True, "id2label": labels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    transformers.VideoMAEImageProcessor().save_pretrained(tmp_path)
    reward = build("action", weights=str(tmp_path), action="label 10")
    attention = reward.network.videomae.encoder.layer[11].attention.attention
    for kind in ("query", "value"):
        expected = state[f"videomae.encoder.layer.11.attention.attention.{kind[0]}_bias"]
        assert torch.equal(getattr(attention, kind).bias, expected)
    assert reward.labels[10] == "label 10"
    assert reward.prepare(torch.zeros(1, 12, 3, 64, 96)).shape == (1, 16, 3, 224, 224)


# ---- all networks


@pytest.mark.parametrize("name", ["vjepa", "action"])
def test_half_precision_deviates_little(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{name}_folder")
    frames = pictures(40, 64, num_frames=8, batch=4)
    prompts = PROMPTS * 2
    exact = build(name, weights=str(folder))
    leaf = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(exact(leaf, prompts).sum(), leaf)
    for dtype in HALF[name]:
        half = build(name, weights=str(folder), dtype=dtype)
        scores = half(leaf, prompts)
        assert scores.dtype == torch.float32
        (rounded,) = torch.autograd.grad(scores.sum(), leaf)
        cosine = functional.cosine_similarity(rounded.flatten(1), gradient.flatten(1))
        torch.testing.assert_close(scores, exact(frames, prompts), atol=HALF[name][dtype][0], rtol=0)
        assert cosine.min() > HALF[name][dtype][1]
        check_contract(half, name=name, num_frames=8, height=40, width=48)


HALF = {
    "vjepa": {torch.bfloat16: (0.002, 0.99), torch.float16: (0.0005, 0.999)},
    "action": {torch.bfloat16: (0.02, 0.99), torch.float16: (0.003, 0.999)},
}
"""Allowed deviation of the score and least cosine of the gradients: what the docstrings state, measured on
tiny networks."""


def test_unusable_clip_weights_are_explained(vjepa_folder: Path, tmp_path: Path) -> None:
    def folder(name: str, source: Path, *without: str) -> Path:
        (tmp_path / name).mkdir()
        for file in source.iterdir():
            if file.name not in without:
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
        return tmp_path / name

    refused("vjepa", "config.json cannot be read", weights=str(folder("a", vjepa_folder, "config.json")))
    message = "video_preprocessor_config.json cannot be read"
    refused("vjepa", message, weights=str(folder("b", vjepa_folder, "video_preprocessor_config.json")))
    message = "model.safetensors does not exist; give the path of a checkpoint"
    refused("vjepa", message, weights=str(folder("c", vjepa_folder, "model.safetensors")))
    refused("vjepa", "is a file; give the folder", weights=str(vjepa_folder / "model.safetensors"))
    other = folder("d", vjepa_folder)
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"hidden_size": 32', '"hidden_size": 64')
    )
    refused("vjepa", "belongs to another network, with weights .* of another shape", weights=str(other))
    other = folder("e", vjepa_folder)
    transformers.VJEPA2VideoProcessor(crop_size=48).save_pretrained(other)
    refused("vjepa", "frames of 48 pixels do not fit a network for 32", weights=str(other))
    refused("action", "has a network of the type 'vjepa2', not videomae", weights=str(vjepa_folder))
    other = folder("f", vjepa_folder)
    (other / "model.safetensors").unlink()
    torch.save(read_state_dict(vjepa_folder / "model.safetensors"), other / "pytorch_model.bin")
    frames = random_images(1, 4, 3, 40, 40)
    again = build("vjepa", weights=str(other))(frames, PROMPTS[:1])
    assert torch.equal(again, build("vjepa", weights=str(vjepa_folder))(frames, PROMPTS[:1]))
