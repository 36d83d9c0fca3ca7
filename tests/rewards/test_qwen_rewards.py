"""Rewards on Qwen vision-language networks: parity with transformers' own processors and forward, gradients,
published files, and the traps that published code is known for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.video_utils import VideoMetadata

from tests.helpers import tiny_qwen
from tests.helpers.reward_inputs import PROMPTS, as_pil, checked_gradient, pictures, random_images, refused
from tests.helpers.tiny_qwen import CRITERIA, SMALL, index, save_hpsv3, save_judge, save_video_reward
from tests.helpers.tiny_rewards import build_reward as build
from vader_ray.orchestration.reward_service.transport import spec_of
from vader_ray.rewards import hpsv3
from vader_ray.rewards.core import qwen_vision
from vader_ray.rewards.core.judge import branch_mask
from vader_ray.rewards.core.qwen_reward import sampled_frames

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
FAMILIES = ("qwen2_5_vl", "qwen3_vl")
# Published processors round the resized frame to 8 bits: half a grey level (0.5/255) per pixel, and PIL once
# more between its two passes. Measured on these random networks over three sets of videos: hpsv3 below 1e-4,
# video_reward below 0.016 of ratings that spread over 4, judges below 0.005 of logits that spread over 3.
# Frames that need no resizing leave the rounding of float32 alone.
ROUNDED = {"hpsv3": 3e-4, "video_reward": 0.02, "judge": 0.006}
EXACT = 2e-5


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def hpsv3_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, nn.Module]:
    folder = tmp_path_factory.mktemp("hpsv3")
    return folder, *save_hpsv3(folder)


@pytest.fixture(scope="module")
def video_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, nn.Linear]:
    folder = tmp_path_factory.mktemp("video_reward")
    return folder, *save_video_reward(folder)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    return {family: (folder, save_judge(folder, family)) for family, folder in folders.items()}


def processor(folder: Path, family: str, low: int, high: int, *added: str) -> Any:
    """transformers' own processor; the special tokens are added as in the published code."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.pad_token = "<|endoftext|>"
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    size = {"shortest_edge": low, "longest_edge": high}
    image = transformers.Qwen2VLImageProcessorPil(size=size)
    if family == "qwen3_vl":
        video = transformers.Qwen3VLVideoProcessor(
            size=size, do_sample_frames=False, cap_pixels_per_frame=False
        )
        return transformers.Qwen3VLProcessor(image, tokenizer, video)
    video = transformers.Qwen2VLVideoProcessor(size=size, do_sample_frames=False, cap_pixels_per_frame=False)
    kind = transformers.Qwen2_5_VLProcessor if family == "qwen2_5_vl" else transformers.Qwen2VLProcessor
    return kind(image, tokenizer, video)


def states_at(model: Any, inputs: Any, tokens: list[str], *, sequential: bool = True) -> Tensor:
    """Hidden states of transformers' own forward at special tokens."""
    ids = inputs["input_ids"]
    if sequential:
        inputs = {name: value for name, value in inputs.items() if name != "mm_token_type_ids"}
        inputs["position_ids"] = torch.arange(ids.shape[1]).expand(3, 1, -1)
    inputs = {name: value for name, value in inputs.items() if name != "video_metadata"}
    with torch.no_grad():
        hidden = model.model(**inputs).last_hidden_state[0]
    first = tiny_qwen.num_tokens()
    return torch.stack([hidden[(ids[0] == first + place).nonzero().item()] for place in range(len(tokens))])


def changed(frames: Tensor) -> Tensor:
    """The same frames with one pixel of the first frame changed."""
    other = frames.clone()
    other[:, 0, :, 20, 20] = 1 - other[:, 0, :, 20, 20]
    return other


# ---- HPSv3


def stock_hpsv3(files: tuple[Path, Any, nn.Module], frames: Tensor, pixels: int, **options: Any) -> Tensor:
    folder, model, head = files
    process = processor(folder, "qwen2_vl", pixels, pixels, hpsv3.SPECIAL)
    template = hpsv3.TEMPLATE.read_bytes().decode()
    scores = []
    for place, image in enumerate(as_pil(frames)):
        prompt = PROMPTS[place // frames.shape[1]]
        text = (
            f"{SYSTEM}<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{template.format(text_prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
        )
        inputs = process(text=[text], images=[image], return_tensors="pt")
        scores.append(head(states_at(model, inputs, [hpsv3.SPECIAL], **options))[0, 0])
    return torch.stack(scores).unflatten(0, frames.shape[:2]).mean(dim=1).detach()


@pytest.mark.parametrize(("height", "width", "exact"), [(80, 132, False), (84, 84, True)])
def test_hpsv3_is_the_published_score(
    hpsv3_files: tuple[Path, Any, nn.Module], height: int, width: int, exact: bool
) -> None:
    frames, pixels = pictures(height, width, num_frames=2), 9 * 28 * 28
    reward = build("hpsv3", weights=str(hpsv3_files[0]), pixels=pixels)
    scores = reward(frames, PROMPTS)
    expected = stock_hpsv3(hpsv3_files, frames, pixels)
    torch.testing.assert_close(scores, expected, atol=EXACT if exact else ROUNDED["hpsv3"], rtol=0)
    other = stock_hpsv3(hpsv3_files, frames, pixels, sequential=False)
    assert (other - expected).abs().min() > 6 * ROUNDED["hpsv3"], "positions in space must be told apart"


def test_hpsv3_text_is_the_published_one() -> None:
    import hashlib

    text = hpsv3.TEMPLATE.read_bytes().decode()
    parts = {
        text[:2523]: "0393599dad45a971903d1d62a3acf9bad3ccccdafa7f40f680523419e1f68b7a",
        text[2523:]: "2471faca094ae5bd6fe17b71dce20c3d7583625545e235889f7e74e7eeb69d0a",
    }
    for part, digest in parts.items():
        assert hashlib.sha256(part.encode()).hexdigest() == digest
    assert len(text) == 2523 + 67


def test_hpsv3_keeps_its_head_in_float32(hpsv3_files: tuple[Path, Any, nn.Module]) -> None:
    folder, _, head = hpsv3_files
    reward = build("hpsv3", weights=str(folder), pixels=4 * 28 * 28, dtype=torch.bfloat16)
    assert reward.dtype == torch.bfloat16
    for name, weight in head.state_dict().items():
        assert torch.equal(reward.head.state_dict()[name], weight)


# ---- VideoReward


def stock_ratings(
    files: tuple[Path, Any, nn.Linear], frames: Tensor, indices: list[int], pixels: tuple[int, int]
) -> Tensor:
    folder, model, head = files
    process = processor(folder, "qwen2_vl", *pixels, "<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
    ratings = []
    for video, prompt in zip(frames, PROMPTS, strict=True):
        text = (
            f"{SYSTEM}<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>"
            f"{CRITERIA.format(text_prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
        )
        clip = (video[indices] * 255).round().to(torch.uint8)
        inputs = process(text=[text], videos=[clip], return_tensors="pt")
        hidden = states_at(model, inputs, ["VQ", "MQ", "TA"])
        ratings.append(torch.stack([head.weight[place] @ hidden[place] for place in range(3)]))
    return torch.stack(ratings).detach()


@pytest.mark.parametrize(("height", "width", "exact"), [(80, 132, False), (56, 84, True)])
def test_video_reward_is_the_published_score(
    video_files: tuple[Path, Any, nn.Linear], height: int, width: int, exact: bool
) -> None:
    frames = pictures(height, width, num_frames=17)
    pixels = (6 if exact else 9) * 28 * 28
    settings: dict[str, Any] = {"weights": str(video_files[0])}
    reward = build("video_reward", **settings)
    reward.network.min_pixels = reward.network.max_pixels = pixels
    expected = stock_ratings(video_files, frames, [0, 5, 11, 16], (pixels, pixels))
    allowed = EXACT if exact else ROUNDED["video_reward"]
    normalised = (expected - torch.tensor([3.6757, 1.1646, 2.8105])) / torch.tensor([2.2476, 1.3811, 2.5121])
    torch.testing.assert_close(reward.ratings(frames, PROMPTS), normalised, atol=allowed, rtol=0)
    torch.testing.assert_close(reward(frames, PROMPTS), normalised.sum(dim=1), atol=3 * allowed, rtol=0)
    for place, name in enumerate(("VQ", "MQ", "TA")):
        raw = build("video_reward", score=name, normalised=False, **settings)
        raw.network.min_pixels = raw.network.max_pixels = pixels
        torch.testing.assert_close(raw(frames, PROMPTS), expected[:, place], atol=3 * allowed, rtol=0)


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"), [(81, 16, 10), (49, 8, 12), (16, 8, 4), (3, 8, 3), (121, 24, 10)]
)
def test_published_numbers_of_frames(num_frames: int, fps: float, expected: int) -> None:
    assert len(sampled_frames(num_frames, video_fps=float(fps), fps=2.0)) == expected


def test_ratings_see_what_they_must(video_files: tuple[Path, Any, nn.Linear]) -> None:
    reward = build("video_reward", weights=str(video_files[0]))
    frames = pictures(64, 96, num_frames=4, batch=1)
    before = reward.ratings(frames, PROMPTS[:1])
    other_prompt = reward.ratings(frames, PROMPTS[1:])
    assert torch.equal(before[:, :2], other_prompt[:, :2]), "VQ and MQ stand before the prompt"
    assert (before[:, 2] - other_prompt[:, 2]).abs() > 1e-3
    assert (before - reward.ratings(changed(frames), PROMPTS[:1])).abs().min() > 1e-4
    assert (before - reward.ratings(frames.flip(1), PROMPTS[:1])).abs().min() > 1e-3


def test_each_rating_is_its_own_row_at_its_own_token(
    video_files: tuple[Path, Any, nn.Linear], tmp_path: Path
) -> None:
    reward = build("video_reward", weights=str(video_files[0]), normalised=False)
    frames = pictures(64, 96, num_frames=4)
    before = reward.ratings(frames, PROMPTS)
    for row in range(3):
        weight = reward.head.weight.clone()
        reward.head.weight.zero_()
        reward.head.weight[row] = weight[row]
        expected = torch.zeros_like(before)
        expected[:, row] = before[:, row]
        assert torch.equal(reward.ratings(frames, PROMPTS), expected)
        reward.head.weight.copy_(weight)


def test_both_published_layouts_are_the_same_network(
    video_files: tuple[Path, Any, nn.Linear], tmp_path: Path
) -> None:
    save_video_reward(tmp_path / "split", split=True)
    frames = pictures(64, 96, num_frames=4)
    whole = build("video_reward", weights=str(video_files[0]))
    split = build("video_reward", weights=str(tmp_path / "split"))
    # the same sums of products, merged in the same order
    torch.testing.assert_close(split(frames, PROMPTS), whole(frames, PROMPTS), atol=EXACT, rtol=0)


def test_the_criteria_are_the_users_file(video_files: tuple[Path, Any, nn.Linear], tmp_path: Path) -> None:
    weights = str(video_files[0])
    python = tmp_path / "prompt_template.py"
    python.write_text(f'DETAILED_PROMPT_WITH_SPECIAL_TOKEN = """{CRITERIA}"""\n')
    message = "has no DETAILED_PROMPT_WITH_SPECIAL_TOKEN with the published words"
    refused("video_reward", message, weights=weights, template=str(python))
    python.write_text("def (")
    refused("video_reward", r"is no Python file \(line 1\)", weights=weights, template=str(python))
    swapped = tmp_path / "swapped.txt"
    swapped.write_text(CRITERIA.replace("VQ_", "XX_").replace("MQ_", "VQ_").replace("XX_", "MQ_"))
    refused("video_reward", "in this order, each once", weights=weights, template=str(swapped))
    bare = shutil.copytree(video_files[0], tmp_path / "bare")
    (bare / "template.txt").unlink()
    message = r"copy prompt_template.py of github.com/KwaiVGI/VideoAlign to .*, or give its path as template"
    refused("video_reward", message, weights=str(bare))


# ---- judges


def stock_logits(
    folder: Path, model: Any, frames: Tensor, indices: list[int], question: str, pixels: tuple[int, int]
) -> Tensor:
    family = model.config.model_type
    per_clip = len(indices) if family == "qwen3_vl" else 1
    process = processor(folder, family, pixels[0] * per_clip, pixels[1] * per_clip)
    logits = []
    for video, prompt in zip(frames, PROMPTS, strict=True):
        placeholder = "<|vision_start|><|video_pad|><|vision_end|>"
        if family == "qwen3_vl":
            placeholder, opening = "<|video_pad|>", "<|im_start|>user\n"
        else:
            opening = f"{SYSTEM}<|im_start|>user\n"
        text = f"{opening}{placeholder}{question.format(prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
        metadata = VideoMetadata(
            total_num_frames=frames.shape[1], fps=8.0, frames_indices=list(indices), duration=2.0
        )
        clip = (video[indices] * 255).round().to(torch.uint8)
        inputs = process(text=[text], videos=[clip], video_metadata=[metadata], return_tensors="pt")
        inputs = {name: value for name, value in inputs.items() if name != "video_metadata"}
        with torch.no_grad():
            logits.append(model(**inputs).logits[0, -1])
    return torch.stack(logits)


QUESTIONS = ['Is "{prompt}" what the video shows?', "Is the image good, and is it a {prompt}? Yes or No."]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("exact", [False, True])
def test_judges_are_the_stock_forward(judges: dict[str, tuple[Path, Any]], family: str, exact: bool) -> None:
    folder, model = judges[family]
    factor = 32 if family == "qwen3_vl" else 28
    frames = pictures(*((2 * factor, 3 * factor) if exact else (80, 132)), num_frames=17)
    pixels = (factor**2, 6 * factor**2)
    indices, allowed = [0, 5, 11, 16], EXACT if exact else ROUNDED["judge"]
    logits = [stock_logits(folder, model, frames, indices, question, pixels) for question in QUESTIONS]
    yes, no = index("Yes"), index("No")
    options: dict[str, Any] = {
        "weights": str(folder),
        "video_fps": 8.0,
        "min_pixels": pixels[0],
        "max_pixels": pixels[1],
    }
    for question, expected in zip(QUESTIONS, logits, strict=True):
        difference = build("vlm_judge", question=question, **options)(frames, PROMPTS)
        torch.testing.assert_close(difference, expected[:, yes] - expected[:, no], atol=allowed, rtol=0)
        probability = build("vlm_judge", question=question, score="probability", **options)(frames, PROMPTS)
        torch.testing.assert_close(probability, expected.softmax(dim=1)[:, yes], atol=allowed, rtol=0)
        marks = [index(mark) for mark in "12345"]
        mean = expected[:, marks].softmax(dim=1) @ torch.arange(1.0, 6)
        expectation = build("vlm_judge", question=question, score="expectation", **options)
        torch.testing.assert_close(expectation(frames, PROMPTS), mean, atol=allowed, rtol=0)
    both = build("vlm_judge", question=QUESTIONS, **options)(frames, PROMPTS)
    mean = torch.stack([expected[:, yes] - expected[:, no] for expected in logits]).mean(dim=0)
    torch.testing.assert_close(both, mean, atol=allowed, rtol=0)


def test_vqa_score_is_a_preset_of_the_judge(judges: dict[str, tuple[Path, Any]]) -> None:
    frames = pictures(64, 96, num_frames=8)
    options: dict[str, Any] = {"weights": str(judges["qwen2_5_vl"][0]), **SMALL}
    question = 'Does this figure show "{prompt}"? Please answer Yes or No.'
    expected = build("vlm_judge", question=question, score="probability", fps=8.0, **options)
    assert torch.equal(build("vqa_score", **options)(frames, PROMPTS), expected(frames, PROMPTS))


@pytest.mark.parametrize("family", FAMILIES)
def test_judges_see_pixels_order_and_prompt(judges: dict[str, tuple[Path, Any]], family: str) -> None:
    reward = build("vlm_judge", weights=str(judges[family][0]), min_pixels=1024, max_pixels=6 * 1024)
    frames = pictures(64, 96, num_frames=4, batch=1)
    before = reward(frames, PROMPTS[:1])
    for other in (
        reward(frames, PROMPTS[1:]),
        reward(frames.flip(1), PROMPTS[:1]),
        reward(changed(frames), PROMPTS[:1]),
    ):
        assert (other - before).abs() > 1e-4
    hand_written = reward(frames.repeat(2, 1, 1, 1, 1), PROMPTS)
    assert torch.equal(hand_written[:1], before), "a video's score must not depend on its batch"


def test_tied_and_sharded_checkpoints_load(tmp_path: Path) -> None:
    model = save_judge(tmp_path / "tied", "qwen3_vl", tied=True)
    frames = pictures(64, 96, num_frames=4)
    options: dict[str, Any] = {
        "question": "{prompt}?",
        "video_fps": 8.0,
        "min_pixels": 1024,
        "max_pixels": 6 * 1024,
    }
    score = build("vlm_judge", weights=str(tmp_path / "tied"), **options)(frames, PROMPTS)
    expected = stock_logits(tmp_path / "tied", model, frames, [0, 1, 2, 3], "{prompt}?", (1024, 6 * 1024))
    torch.testing.assert_close(
        score, expected[:, index("Yes")] - expected[:, index("No")], atol=EXACT, rtol=0
    )
    state = load_file(tmp_path / "tied" / "model.safetensors")
    names = sorted(state)
    for place, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, tmp_path / "tied" / f"part-{place}.safetensors")
    places = {name: f"part-{place}.safetensors" for place in (0, 1) for name in names[place::2]}
    (tmp_path / "tied" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "tied" / "model.safetensors").unlink()
    sharded = build("vlm_judge", weights=str(tmp_path / "tied"), **options)
    assert torch.equal(sharded(frames, PROMPTS), score)
    (tmp_path / "tied" / "part-1.safetensors").unlink()
    refused("vlm_judge", "part-1.safetensors does not exist", weights=str(tmp_path / "tied"), **options)


def test_questions_do_not_attend_to_each_other() -> None:
    mask = branch_mask(2, [2, 1], torch.device("cpu"))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert mask.int().tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": ["Yes", "No", "Maybe"]}, "with score=difference; give two answers"),
        ({"answers": ["good", "bad"], "score": "expectation"}, "give numbers, such as '1' to '5'"),
        ({"answers": ["Yes, it is", "No"]}, r"'Yes, it is' is \d+ tokens of .* and must be one"),
        ({"min_pixels": 99999}, "min_pixels=99999 is larger than max_pixels=4704"),
    ],
)
def test_unusable_answers_are_explained(
    judges: dict[str, tuple[Path, Any]], options: dict[str, Any], message: str
) -> None:
    refused("vlm_judge", message, weights=str(judges["qwen2_5_vl"][0]), **{**SMALL, **options})


# ---- gradients


@pytest.fixture
def _double_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes norms and rotations in float32 also in a float64 network; here in float64."""

    def normalised(self: Any, hidden: Tensor) -> Tensor:
        variance = hidden.square().mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)

    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as second
    from transformers.models.qwen2_vl import modeling_qwen2_vl as first
    from transformers.models.qwen3_vl import modeling_qwen3_vl as third

    monkeypatch.setattr(first.Qwen2VLRMSNorm, "forward", normalised)
    monkeypatch.setattr(second.Qwen2_5_VLRMSNorm, "forward", normalised)
    monkeypatch.setattr(third.Qwen3VLTextRMSNorm, "forward", normalised)
    monkeypatch.setattr(Tensor, "float", lambda self, **_: self.double())


@pytest.mark.usefixtures("_double_arithmetic")
@pytest.mark.parametrize("name", ["hpsv3", "video_reward", *FAMILIES])
def test_gradient_is_its_finite_difference(
    name: str,
    hpsv3_files: tuple[Path, Any, nn.Module],
    video_files: tuple[Path, Any, nn.Linear],
    judges: dict[str, tuple[Path, Any]],
) -> None:
    frames = random_images(1, 4, 3, 40, 64, low=0.3, high=0.7, dtype=torch.float64)
    small: dict[str, Any] = {"min_pixels": 1024, "max_pixels": 6 * 1024, "question": QUESTIONS}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "hpsv3": ("hpsv3", {"weights": str(hpsv3_files[0]), "pixels": 4 * 28 * 28}),
        "video_reward": ("video_reward", {"weights": str(video_files[0])}),
        **{family: ("vlm_judge", {"weights": str(judges[family][0]), **small}) for family in FAMILIES},
    }
    kind, options = cases[name]
    gradients = []
    for checkpointing in (True, False):
        reward = build(kind, dtype=torch.float64, checkpointing=checkpointing, **options)
        gradients.append(checked_gradient(reward, frames, step=1e-6))
    assert torch.equal(gradients[0], gradients[1]), "recomputing layers must not change the gradient"


def test_layers_are_recomputed(hpsv3_files: tuple[Path, Any, nn.Module]) -> None:
    frames = pictures(64, 96, num_frames=1, batch=1).requires_grad_()
    saved = {}
    for checkpointing in (True, False):
        reward = build("hpsv3", weights=str(hpsv3_files[0]), pixels=4 * 28 * 28, checkpointing=checkpointing)
        sizes = list[int]()

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            reward(frames, PROMPTS[:1])
        saved[checkpointing] = sum(sizes)
    assert saved[True] < 0.4 * saved[False]


HALF = {
    "hpsv3": {torch.bfloat16: (0.01, 0.97), torch.float16: (0.001, 0.99)},
    "video_reward": {torch.bfloat16: (0.06, 0.99), torch.float16: (0.01, 0.999)},
    "vlm_judge": {torch.bfloat16: (0.04, 0.99), torch.float16: (0.008, 0.999)},
}
"""Allowed deviation of the score, as docstrings of the rewards state, and least cosine of the gradients."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HALF)
def test_half_precision_deviates_little(name: str, tmp_path: Path) -> None:
    options = tiny_qwen.OPTIONS[name](tmp_path / "weights")
    frames, prompts = pictures(40, 64, num_frames=4, batch=2).requires_grad_(), PROMPTS
    exact = build(name, **options)(frames, prompts)
    (gradient,) = torch.autograd.grad(exact.sum(), frames)
    for dtype, (deviation, cosine) in HALF[name].items():
        scores = build(name, dtype=dtype, **options)(frames, prompts)
        assert scores.dtype == torch.float32
        (rounded,) = torch.autograd.grad(scores.sum(), frames)
        torch.testing.assert_close(scores, exact, atol=deviation, rtol=0)
        assert functional.cosine_similarity(rounded.flatten(1), gradient.flatten(1)).min() > cosine


# ---- the shared front


@pytest.mark.parametrize("limits", [(100_352, 200_704), (200_704, 200_704), (3136, 9 * 784)])
def test_sizes_are_the_published_ones(limits: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    sides = {"factor": 28, "min_pixels": limits[0], "max_pixels": limits[1]}
    for height in range(28, 1100, 53):
        for width in (32, 64, 333, 480, 512, 832, 1280):
            assert qwen_vision.smart_size(height, width, **sides) == smart_resize(height, width, **sides)
    assert qwen_vision.smart_size(480, 832, factor=28, min_pixels=200_704, max_pixels=200_704) == (336, 588)


@pytest.mark.parametrize("name", ["hpsv3", "video_reward", "vlm_judge"])
@pytest.mark.parametrize(("height", "width"), [(80, 132), (56, 84), (150, 70)])
def test_frames_may_be_resized_before_they_are_sent(
    name: str, height: int, width: int, tmp_path: Path
) -> None:
    reward = build(name, **tiny_qwen.OPTIONS[name](tmp_path / "weights"))
    frames = pictures(height, width, num_frames=4, batch=1)
    sent = spec_of(reward, height, width).resized
    resized = sent.apply(frames)[..., sent.rows, sent.columns]
    # the same matrix products on frames of float32
    torch.testing.assert_close(reward(resized, PROMPTS[:1]), reward(frames, PROMPTS[:1]), atol=EXACT, rtol=0)


def test_video_reward_is_sent_a_quarter_of_720p(video_files: tuple[Path, Any, nn.Linear]) -> None:
    reward = build("video_reward", weights=str(video_files[0]))
    reward.network.min_pixels, reward.network.max_pixels = 100_352, 200_704
    sent = spec_of(reward, 720, 1280).resized
    assert (sent.height, sent.width) == (336, 588)


@pytest.mark.parametrize("num_frames", [1, 3, 4])
def test_patches_are_those_of_the_processor(num_frames: int) -> None:
    frames = torch.rand(num_frames, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    style = qwen_vision.VisionFormat(14, 2, 2, (0.0,) * 3, (1.0,) * 3)
    patches, grid = qwen_vision.patchify(frames, style)
    stock = transformers.Qwen2VLVideoProcessor(cap_pixels_per_frame=False)
    expected, *stock_grid = stock.patchify(frames[None], patch_size=14, merge_size=2, temporal_patch_size=2)
    assert torch.equal(patches, expected[0])
    assert list(grid) == stock_grid


# ---- files


def test_foreign_and_truncated_files_are_refused(
    hpsv3_files: tuple[Path, Any, nn.Module],
    judges: dict[str, tuple[Path, Any]],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(hpsv3_files[0], tmp_path / "hpsv3")
    file = folder / "HPSv3.safetensors"
    state = load_file(file)
    renamed = {name.replace("model.layers.1.", "model.strata.1."): value for name, value in state.items()}
    save_file(renamed, file)
    message = r"with weights \d+ missing \(language_model.layers.1.* unexpected \(language_model.strata.1"
    refused("hpsv3", message, weights=str(folder))
    save_file({name: value for name, value in state.items() if not name.startswith("rm_head")}, file)
    refused("hpsv3", "has no rm_head, so it is no reward model", weights=str(folder))
    save_file({**state, "rm_head.5.weight": torch.zeros(3, 16)}, file)
    refused("hpsv3", r"of another shape \(5.weight \(3, 16\) instead of \(2, 16\)\)", weights=str(folder))
    small = {**state, "model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1].clone()}
    save_file(small, file)
    refused("hpsv3", r"has \d+ embeddings and the tokenizer \d+ tokens", weights=str(folder))
    file.write_bytes(hpsv3_files[0].joinpath("HPSv3.safetensors").read_bytes()[:9999])
    refused("hpsv3", "cannot be read as a checkpoint", weights=str(folder))
    file.unlink()
    refused("hpsv3", "HPSv3.safetensors does not exist", weights=str(folder))
    refused("hpsv3", "has a network of the type 'qwen3_vl', not qwen2_vl", weights=_as_hpsv3(judges, folder))
    refused(
        "vlm_judge",
        "has a network of the type 'qwen2_vl', not qwen2_5_vl or qwen3_vl",
        weights=_with_model(hpsv3_files[0], tmp_path / "judge"),
    )
    for text, message in (("{", "tokenizer.json cannot be read"), (None, "has no tokenizer.json")):
        path = folder / "tokenizer.json"
        path.write_text(text) if text else path.unlink()
        refused("hpsv3", message, weights=str(hpsv3_files[0]), base=str(folder))


def _as_hpsv3(judges: dict[str, tuple[Path, Any]], folder: Path) -> str:
    shutil.copy(judges["qwen3_vl"][0] / "config.json", folder / "config.json")
    shutil.copy(judges["qwen3_vl"][0] / "model.safetensors", folder / "HPSv3.safetensors")
    return str(folder)


def _with_model(source: Path, folder: Path) -> str:
    shutil.copytree(source, folder)
    (folder / "HPSv3.safetensors").rename(folder / "model.safetensors")
    return str(folder)


def test_damaged_checkpoints_of_video_reward_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    save_video_reward(folder)
    last = folder / "checkpoint-11352"
    state = torch.load(last / "model.pth", weights_only=True)
    some = next(name for name in state if name.endswith("lora_B.default.weight"))
    torch.save({name: value for name, value in state.items() if name != some}, last / "model.pth")
    message = "has no whole low-rank update of language_model.layers.0"
    refused("video_reward", message, weights=str(folder))
    other = some.replace("lora_B", "lora_A")
    torch.save({name: value for name, value in state.items() if name != other}, last / "model.pth")
    refused("video_reward", message.replace(" of language", " with language"), weights=str(folder))
    settings = json.loads((folder / "model_config.json").read_text())
    del settings["inference_config"]
    (folder / "model_config.json").write_text(json.dumps(settings))
    refused("video_reward", "model_config.json has no inference_config", weights=str(folder))
    settings["inference_config"] = {}
    (folder / "model_config.json").write_text(json.dumps(settings))
    for path in list(folder.glob("checkpoint-*")):
        shutil.rmtree(path)
    refused("video_reward", "has no folder checkpoint-N", weights=str(folder))


def test_an_unreachable_hub_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("hpsv3", "`hf download MizzenAI/HPSv3 HPSv3.safetensors`")
    command = "`hf download KwaiVGI/VideoReward model_config.json checkpoint-11352/model.pth`"
    refused("video_reward", command)
    refused("vlm_judge", "out of reach.*`hf download Qwen/Qwen2.5-VL-7B-Instruct`")
    refused("vqa_score", "`hf download Qwen/Qwen2.5-VL-7B-Instruct`")


def test_a_prompt_with_a_special_token_is_explained(hpsv3_files: tuple[Path, Any, nn.Module]) -> None:
    reward = build("hpsv3", weights=str(hpsv3_files[0]), pixels=4 * 28 * 28)
    with pytest.raises(
        ValueError, match=re.escape("must have each of <|Reward|> once; remove such tokens from the")
    ):
        reward(pictures(56, 56, num_frames=1, batch=1), ["a cat <|Reward|>"])
