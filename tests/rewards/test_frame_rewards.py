"""Frame rewards with a network: parity with the libraries' own PIL pipelines, finite differences, regions,
precision, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import open_clip
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import functional as vision
from transformers.models.yolos.image_processing_pil_yolos import get_size_with_aspect_ratio_yolos

from tests.helpers.reward_inputs import as_pil, checked_gradient, pictures, random_images
from tests.helpers.tiny_rewards import LABELS, build_reward, make_clip, make_detector
from vader_ray import rewards
from vader_ray.config import RewardConfig
from vader_ray.gradients import scale_gradient
from vader_ray.rewards import object_detection
from vader_ray.rewards.base import GRADIENT_SCALE
from vader_ray.rewards.core import preprocess
from vader_ray.rewards.core.resizing import centre_square

PROMPTS = ["a dog is running", "a cat eats an apple"]
SHAPES = [(40, 64), (96, 54), (37, 63), (24, 40), (32, 32), (51, 32)]
"""Frames of several aspects, enlarged and reduced, with even and odd numbers of columns and rows cut off."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny CLIP and a tiny detector in their published formats."""
    clip, detector = (make(tmp_path_factory.mktemp("tiny") / "x") for make in (make_clip, make_detector))
    return {"pickscore": clip, "clip_score": clip, "object_detection": detector}


def build(name: str, folders: dict[str, Path], *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A reward on a tiny checkpoint of this file, or on that of the embedded shapes data set."""
    weights = str(folders[name]) if name in folders else f"shapes:{name}"
    if name == "object_detection":
        options = {"object": "cat", **options}
    return build_reward(name, dtype=dtype, weights=weights, **options)


CASES = [
    ("pickscore", {}),
    ("clip_score", {}),
    *(
        ("object_detection", {"mode": mode, "score": score, "preprocessing": preprocessing})
        for mode, score, preprocessing in (
            ("remove", "soft", "published"),
            ("add", "soft", "vader"),
            ("add", "hard", "published"),
            ("remove", "hard", "vader"),
        )
    ),
]


# ---- scores: the library's own preprocessing on 8-bit images, then the published formula
# PIL rounds to 8 bits between and after its two passes, float arithmetic does not: about 0.3/255 per pixel,
# several at edges.
# The score may move by 0.5 % of its range: 200 for ±100 · cosine, 1 for a probability.


def clip_by_hand(folder: Path, frames: Tensor) -> Tensor:
    """Cosines as the model card of PickScore computes them: a padded batch of prompts with its mask."""
    clip = transformers.CLIPModel.from_pretrained(folder).eval()
    images = transformers.CLIPImageProcessorPil.from_pretrained(folder)(
        images=as_pil(frames), return_tensors="pt"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer(PROMPTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        image_features = clip.get_image_features(**images).pooler_output.unflatten(0, frames.shape[:2])
        text_features = clip.get_text_features(**text).pooler_output[:, None]
    return functional.cosine_similarity(image_features, text_features, dim=-1).mean(dim=1)


@pytest.mark.parametrize("name", ["pickscore", "clip_score"])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_clip_rewards_are_the_published_score(
    name: str, height: int, width: int, folders: dict[str, Path]
) -> None:
    frames = pictures(height, width)
    scores = build(name, folders)(frames, PROMPTS)
    expected = 100 * clip_by_hand(
        folders[name], frames
    )  # the checkpoint's logit scale is log 100, as the published one's
    torch.testing.assert_close(scores, expected, atol=0.005 * 200, rtol=0)
    if (height, width) == (32, 32):
        torch.testing.assert_close(
            scores, expected, atol=1e-3, rtol=0
        )  # nothing is resized: float32 rounding, of 100
    assert (scores - 100 * clip_by_hand(folders[name], frames.flip(-1))).abs().max() > 1, (
        "other pictures must be told apart"
    )


@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_old_configs_find_the_end_of_the_prompt(
    eos_token_id: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    # the published PickScore and CLIP state 2, which was wrong when they were written and means "the highest
    # token" since
    folder = make_clip(tmp_path / "old", eos_token_id=eos_token_id)
    frames = pictures(32, 32)
    torch.testing.assert_close(
        build("pickscore", {"pickscore": folder})(frames, PROMPTS),
        build("pickscore", folders)(frames, PROMPTS),
        atol=0,
        rtol=0,
    )


@pytest.mark.parametrize("prompt", [*PROMPTS, "An ASTRONAUT's 23 cats,   eat—naïve café!!", "very " * 50, ""])
def test_tokens_are_clips(prompt: str, folders: dict[str, Path]) -> None:
    tokens = build("pickscore", folders).tokenize(prompt)[0]
    expected = open_clip.SimpleTokenizer(context_length=12)([prompt])[0]
    assert tokens.tolist() == expected[: len(tokens)].tolist()
    assert not expected[len(tokens) :].any()


def detector_logits(folder: Path, frames: Tensor) -> Any:
    processor = transformers.YolosImageProcessorPil.from_pretrained(folder)
    detector = transformers.YolosForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        return processor, detector(
            **{"pixel_values": processor(images=as_pil(frames), return_tensors="pt")["pixel_values"]}
        )


@pytest.mark.parametrize("name", ["cat", "bicycle"])
@pytest.mark.parametrize(("height", "width"), [*SHAPES, (48, 80)])
def test_soft_detection_is_the_published_probability(
    height: int, width: int, name: str, folders: dict[str, Path]
) -> None:
    frames = pictures(height, width, batch=6, num_frames=1)
    _, outputs = detector_logits(folders["object_detection"], frames)
    absent = (1 - outputs.logits.double().softmax(dim=-1)[..., LABELS.index(name)]).prod(dim=-1)
    for mode, expected in (("remove", absent), ("add", 1 - absent)):
        scores = build("object_detection", folders, object=name, mode=mode)(frames, PROMPTS * 3)
        torch.testing.assert_close(scores.double().exp(), expected, atol=0.005, rtol=0)
        assert (scores <= 0).all()
    assert expected.max() - expected.min() > 0.02, "the pictures must differ in what is seen"


@pytest.mark.parametrize("name", ["cat", "bicycle", "person"])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (37, 63), (48, 80)])
def test_hard_detection_is_the_mean_of_published_boxes(
    height: int, width: int, name: str, folders: dict[str, Path]
) -> None:
    frames = pictures(height, width, batch=6, num_frames=1)
    processor, outputs = detector_logits(folders["object_detection"], frames)
    threshold = clear_of_ties(outputs.logits)
    found = processor.post_process_object_detection(outputs, threshold=threshold)
    boxes = [image["scores"][image["labels"] == LABELS.index(name)] for image in found]
    expected = torch.stack([scores.mean() if len(scores) else torch.zeros(()) for scores in boxes])
    for mode, wanted in (("add", expected), ("remove", 1 - expected)):
        reward = build("object_detection", folders, object=name, mode=mode, score="hard", threshold=threshold)
        torch.testing.assert_close(reward(frames, PROMPTS * 3), wanted, atol=0.005, rtol=0)


def clear_of_ties(logits: Tensor) -> float:
    """A threshold near the authors' that no box is within 0.01 of: rounding of pixels must not decide what is
    kept."""
    scores = logits.softmax(dim=-1)[..., :-1].amax(dim=-1)
    candidates = [0.2 + step / 200 for step in range(40)]
    return max(candidates, key=lambda threshold: float((scores - threshold).abs().min()))


def test_hard_detection_finds_boxes(folders: dict[str, Path]) -> None:
    frames = pictures(40, 64)
    scores = {
        name: build("object_detection", folders, object=name, mode="add", score="hard")(frames, PROMPTS)
        for name in LABELS[1:5]
    }
    assert max(float(score.max()) for score in scores.values()) > 0.2
    assert any(not score.any() for score in scores.values()), "a class without boxes scores 0"


# ---- preprocessing


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_published_pixels_are_the_processors_within_one_8_bit_level(
    height: int, width: int, folders: dict[str, Path]
) -> None:
    frames = pictures(height, width)
    for name, processor_class in (
        ("pickscore", transformers.CLIPImageProcessorPil),
        ("object_detection", transformers.YolosImageProcessorPil),
    ):
        processor = processor_class.from_pretrained(folders[name])
        expected = processor(images=as_pil(frames), return_tensors="pt")["pixel_values"]
        pixels = build(name, folders).prepare(frames.flatten(0, 1))
        assert pixels.shape == expected.shape
        assert (pixels - expected).square().mean().sqrt() < 1 / 255 / min(processor.image_std)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (51, 32), (33, 35), (20, 33), (37, 64)])
def test_each_crop_is_its_librarys(height: int, width: int) -> None:
    images = random_images(1, 3, height, width, dtype=torch.float64)
    resized = vision.resize(images, 32, vision.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    processor = transformers.CLIPImageProcessorPil(
        crop_size={"height": 32, "width": 32}, do_resize=False, do_rescale=False, do_normalize=False
    )
    expected = torch.from_numpy(
        processor.center_crop(resized[0].numpy(), transformers.image_utils.SizeDict(height=32, width=32))
    )
    found = preprocess.crop(images, 32, "bicubic", "transformers")[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    found = preprocess.crop(images, 32, "bicubic", "torchvision")[0]
    torch.testing.assert_close(found, vision.center_crop(resized, 32)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("edges", [(800, 1333), (48, 80), (512, 864), (32, 64)])
def test_detector_sizes_are_the_processors(edges: tuple[int, int]) -> None:
    sides = [16, 31, 32, 33, 47, 48, 49, 64, 80, 97, 320, 333, 480, 512, 800, 801, 832, 1080, 1333, 1920]
    for height in sides:
        for width in sides:
            expected = get_size_with_aspect_ratio_yolos((height, width), *edges)
            assert object_detection.fitted(height, width, *edges) == expected, (height, width)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 37), (320, 512)])
def test_vader_detection_preprocessing_is_its_formula(
    height: int, width: int, folders: dict[str, Path]
) -> None:
    images = random_images(1, 3, height, width)
    size = (512, int(512 * width / height))
    # in float64: the library rounds where a pixel comes from to float32, which alone is 1e-4 at column 800
    expected = functional.interpolate(
        images.double(), size, mode="bilinear", antialias=False, align_corners=False
    )
    expected = vision.normalize(expected, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = build("object_detection", folders, preprocessing="vader").prepare(images)
    torch.testing.assert_close(pixels.double(), expected, atol=1e-5, rtol=0)


def test_both_ways_to_write_a_size_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    for settings in ({"size": 48, "max_size": 80}, {"size": {"shortest_edge": 48, "longest_edge": 80}}):
        path.write_text(json.dumps(settings))
        assert object_detection._edges(path) == (48, 80)
    path.write_text(json.dumps({"size": 800}))
    assert object_detection._edges(path) == (800, 1333)
    path.write_text(json.dumps({"size": {"height": 48, "width": 80}}))
    with pytest.raises(ValueError, match=r"must have size\.shortest_edge and has size=\{'height': 48"):
        object_detection._edges(path)


# ---- gradients and separation


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(16, 32), (5, 3)])
def test_resize_gradient_is_its_finite_difference(antialias: bool, size: tuple[int, int]) -> None:
    images = random_images(1, 3, 6, 9, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: preprocess.resize(x, *size, "bilinear", antialias=antialias), (images,)
    )


@pytest.mark.parametrize("name", ["pickscore", "object_detection"])
def test_prepare_gradient_is_its_finite_difference(name: str, folders: dict[str, Path]) -> None:
    reward = build(name, folders, dtype=torch.float64)
    images = random_images(
        1, 3, 6, 9, low=0.4, high=0.6, dtype=torch.float64
    ).requires_grad_()  # away from the clamp's kinks
    assert torch.autograd.gradcheck(lambda x: functional.avg_pool2d(reward.prepare(x), 8), (images,))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize(("height", "width"), [(40, 64), (53, 33)])
def test_gradient_is_its_finite_difference(
    name: str, options: dict[str, Any], height: int, width: int, folders: dict[str, Path]
) -> None:
    if options.get("score") == "hard":
        options = {**options, "object": most_seen(folders, options)}
    reward = build(name, folders, dtype=torch.float64, **options)
    frames = random_images(1, 2, 3, height, width, low=0.3, high=0.7, dtype=torch.float64)
    # scores of order 100 are rounded to 1e-14, against slopes of order 1
    checked_gradient(reward, frames, step=1e-6, rtol=1e-5, atol=1e-7)


def most_seen(folders: dict[str, Path], options: dict[str, Any]) -> str:
    frames = random_images(1, 2, 3, 40, 64, low=0.3, high=0.7)
    seen = {
        name: build("object_detection", folders, **{**options, "object": name, "mode": "add"})
        for name in ("person", "bicycle", "car", "cat")
    }
    return max(seen, key=lambda name: float(seen[name](frames, PROMPTS[:1])))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_two_videos_are_two_times_one(name: str, options: dict[str, Any], folders: dict[str, Path]) -> None:
    reward = build(name, folders, **options)
    if options.get("score") != "hard":  # an image without a box has no gradient there
        rewards.check_contract(reward, name=name, num_frames=4, height=40, width=48)
    frames = pictures(40, 64)
    both = reward(frames, PROMPTS)
    one_by_one = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    # other batch sizes take other kernels: float32 rounding, relative to scores of up to 100
    torch.testing.assert_close(both, one_by_one, rtol=1e-5, atol=1e-4)
    assert torch.equal(both, reward(frames, PROMPTS)), "a second call must give the same score"
    assert not any(parameter.requires_grad for parameter in reward.parameters())


def test_the_backward_is_deterministic(folders: dict[str, Path]) -> None:
    reward = build("object_detection", folders)
    frames = pictures(40, 64).requires_grad_()
    first, second = (torch.autograd.grad(reward(frames, PROMPTS).sum(), frames)[0] for _ in range(2))
    assert torch.equal(first, second), "the backward must be deterministic"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_of_complement_keeps_its_digits(dtype: torch.dtype) -> None:
    exact = [-1e-30, -1e-12, -1e-5, -0.3, -math.log(2), -0.7, -5.0, -40.0]
    x = torch.tensor(exact, dtype=dtype, requires_grad=True)
    near_one = [
        math.log1p(-math.exp(value)) if value < -1 else math.log(-math.expm1(value)) for value in exact
    ]
    expected = torch.tensor(near_one, dtype=dtype)
    # a few units in the last place of float32
    torch.testing.assert_close(object_detection.log_of_complement(x), expected, rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(object_detection.log_of_complement(x).sum(), x)
    torch.testing.assert_close(
        slope, torch.tensor([-1 / math.expm1(-value) for value in exact], dtype=dtype), rtol=1e-5, atol=0
    )
    edge = torch.zeros(1, dtype=dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(object_detection.log_of_complement(edge).sum(), edge)
    assert slope.isfinite().all()


# ---- region


@pytest.mark.parametrize("name", ["pickscore", "clip_score", "aesthetic", "hps", "object_detection"])
@pytest.mark.parametrize(
    ("height", "width"), [(40, 64), (96, 54), (37, 63), (24, 40), (32, 32), (320, 512), (33, 51)]
)
def test_pixels_outside_the_region_have_no_influence(
    name: str, height: int, width: int, folders: dict[str, Path]
) -> None:
    reward = build(name, folders)
    rows, columns = reward.resizing(height, width).region(height, width)
    frames = pictures(height, width, num_frames=1).requires_grad_()
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[rows, columns] = True
    scores = reward(frames, PROMPTS)
    assert torch.equal(scores, reward(frames * inside, PROMPTS))
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    assert not gradient[..., ~inside].any()
    if name in ("pickscore", "clip_score", "aesthetic"):
        assert inside.sum() < height * width or abs(height - width) < 2, (
            "what is cropped away need not travel"
        )


@pytest.mark.parametrize("preprocessing", ["published", "vader"])
@pytest.mark.parametrize("name", ["pickscore", "clip_score", "aesthetic", "hps", "object_detection"])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (96, 54), (37, 63), (320, 512)])
def test_frames_may_be_resized_before_they_are_sent(
    name: str, preprocessing: str, height: int, width: int, folders: dict[str, Path]
) -> None:
    """Score and gradient of resized frames are those of the frames, and no pixel that counts is left out."""
    options: dict[str, Any] = {} if name in ("pickscore", "clip_score") else {"preprocessing": preprocessing}
    reward = build(name, folders, **options).double()
    sent = reward.resizing(height, width)
    assert reward.resizing(sent.height, sent.width) == sent, "what was resized must stay as it is"
    frames = pictures(height, width, num_frames=1).double().requires_grad_()
    scores = reward(frames, PROMPTS)
    (gradient,) = torch.autograd.grad(scores.sum(), frames)
    inside = torch.zeros(sent.height, sent.width, dtype=torch.bool)
    inside[sent.rows, sent.columns] = True
    resized = (sent.apply(frames.detach()) * inside).requires_grad_()
    scores_of_resized = reward(resized, PROMPTS)
    (resized_gradient,) = torch.autograd.grad(scores_of_resized.sum(), resized)
    torch.testing.assert_close(scores_of_resized, scores, rtol=0, atol=1e-12)
    whole_gradient = sent.gradient(resized_gradient * inside, height, width)
    torch.testing.assert_close(whole_gradient, gradient, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("rounding", ["torchvision", "transformers"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(40, 64), (96, 54), (37, 63), (24, 40), (32, 32), (33, 51)])
def test_region_is_as_small_as_can_be(height: int, width: int, mode: Any, rounding: Any) -> None:
    rows, columns = centre_square(height, width, 32, mode, rounding).region(height, width)
    images = random_images(1, 3, height, width, low=0.4, high=0.6, dtype=torch.float64).requires_grad_()
    weights = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((weights * preprocess.crop(images, 32, mode, rounding)).sum(), images)
    seen = gradient[0].any(dim=0)
    for axis, part in ((1, rows), (0, columns)):
        used = seen.any(dim=axis).nonzero()
        assert (int(used[0]), int(used[-1]) + 1) == (part.start, part.stop)


# ---- precision

DEVIATION = {
    # share of the score's range and of the gradient's norm
    torch.bfloat16: (
        0.005,
        0.1,
    ),  # 8 bits: 0.4 % per operation, through two layers; kinks of the detector's head double it
    torch.float16: (0.0005, 0.03),  # 11 bits: 0.05 %
}


@pytest.mark.parametrize("name", ["pickscore", "clip_score", "object_detection", "aesthetic", "hps"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_deviates_little(name: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    frames = pictures(40, 64).requires_grad_()
    exact, half = build(name, folders), build(name, folders, dtype=dtype)
    scores = [reward(frames, PROMPTS) for reward in (exact, half)]
    gradients = [torch.autograd.grad(score.sum(), frames)[0] for score in scores]
    assert scores[1].dtype == torch.float32
    score_range = {"object_detection": 1.0, "hps": 2.0, "aesthetic": 9.0}.get(name, 200.0)
    wide, narrow = (
        score.detach().exp() if name == "object_detection" else score.detach() for score in scores
    )
    deviation = float((narrow - wide).abs().max()) / score_range
    error = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    print(f"{name} {dtype}: score {100 * deviation:.3f} % of its range, gradient {100 * error:.2f} %")
    assert deviation < DEVIATION[dtype][0]
    assert error < DEVIATION[dtype][1]


@pytest.mark.parametrize(
    ("name", "weight"), [("hps", 2.0**-12), ("aesthetic", 2.0**-12), ("clip_score", 2.0**-18)]
)
def test_float16_keeps_gradients_below_its_smallest_number(
    name: str, weight: float, folders: dict[str, Path]
) -> None:
    # 2⁻¹² is a pixel's share in 81 frames of 480×832 over that in 3 frames of 40×64; clip_score's scale is
    # nearly 2⁷
    frames = pictures(40, 64).requires_grad_()
    exact, half = build(name, folders), build(name, folders, dtype=torch.float16)
    wanted, scaled = (
        torch.autograd.grad(weight * reward(frames, PROMPTS).sum(), frames)[0] for reward in (exact, half)
    )
    (bare,) = torch.autograd.grad(weight * half.score(half.widened(frames), PROMPTS).sum(), frames)
    error, bare_error = (float((found - wanted).norm() / wanted.norm()) for found in (scaled, bare))
    print(f"{name}: gradient off by {100 * error:.2f} % scaled, {100 * bare_error:.1f} % bare")
    assert error < 0.05
    assert bare_error > 3 * error


def test_scaling_a_gradient_is_exact() -> None:
    x = random_images(50).requires_grad_()

    def scaled(y: Tensor) -> Tensor:
        return scale_gradient((scale_gradient(y, 1 / GRADIENT_SCALE) ** 3).sin(), GRADIENT_SCALE)

    assert torch.equal(scaled(x), (x**3).sin())
    assert torch.equal(
        torch.autograd.grad(scaled(x).sum(), x)[0], torch.autograd.grad((x**3).sin().sum(), x)[0]
    )


# ---- errors


def refused(name: str, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rewards.build(RewardConfig(reward=name, **options), device="cpu")
    assert "\n" not in str(caught.value)


def test_every_reward_names_its_weights_and_their_licence() -> None:
    for name in rewards.names():
        found: Any = rewards.resolve(name)
        assert isinstance(found.default_weights, str)
        assert bool(found.default_weights) == bool(found.licence), name
        assert all("/" in repository for repository in found.default_weights.split(",") if repository), name


def test_an_unknown_object_is_explained(folders: dict[str, Path]) -> None:
    weights = str(folders["object_detection"])
    refused(
        "object_detection", r"no class 'cats'; the nearest of its 5 are cat", weights=weights, object="cats"
    )
    refused(
        "object_detection",
        r"no class 'Fire Hydrent'; .* are fire hydrant",
        weights=weights,
        object="Fire Hydrent",
    )
    refused(
        "object_detection", r"are bicycle, car, cat, fire hydrant, person", weights=weights, object="qqqq"
    )
    refused("object_detection", r"no class 'N/A'", weights=weights, object="N/A")
    refused("object_detection", r"object_detection.object: is required", weights=weights)
    refused(
        "object_detection", r"threshold: .*less than 1, not 2", weights=weights, object="cat", threshold=2
    )
    refused(
        "object_detection",
        r"mode: .*'remove' or 'add', not 'hide'",
        weights=weights,
        object="cat",
        mode="hide",
    )


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize("name", ["pickscore", "clip_score", "object_detection"])
def test_unusable_weights_are_explained(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    extra = {"object": "cat"} if name == "object_detection" else {}
    other = folders["object_detection" if name != "object_detection" else "pickscore"]
    refused(name, r"has a network of the type '(yolos|clip)', not (clip|yolos)", weights=str(other), **extra)
    cut = copied(folders[name], tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:5000])
    refused(name, "model.safetensors .5000 bytes. cannot be read as a checkpoint", weights=str(cut), **extra)
    (cut / "model.safetensors").unlink()
    refused(name, "model.safetensors does not exist", weights=str(cut), **extra)
    foreign = copied(folders[name], tmp_path / "foreign")
    (foreign / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    refused(
        name,
        r"belongs to another network, with weights \d+ missing .*, \d+ unexpected",
        weights=str(foreign),
        **extra,
    )
    (foreign / "preprocessor_config.json").write_text("{}")
    (foreign / "model.safetensors").write_bytes((folders[name] / "model.safetensors").read_bytes())
    refused(name, "preprocessor_config.json has no image_mean", weights=str(foreign), **extra)
    (foreign / "config.json").unlink()
    refused(name, "config.json cannot be read", weights=str(foreign), **extra)
    refused(
        name,
        "nowhere.pt does not exist; give an existing path",
        weights=str(tmp_path / "nowhere.pt"),
        **extra,
    )


def test_a_missing_or_foreign_tokenizer_is_explained(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["clip_score"], tmp_path / "clip")
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{")
    refused("clip_score", "tokenizer.json cannot be read", weights=str(folder))
    (folder / "tokenizer.json").unlink()
    refused(
        "clip_score",
        "has no tokenizer.json; copy tokenizer.json and tokenizer_config.json",
        weights=str(folder),
    )
    (folder / "tokenizer.json").write_text(tokenizer)
    reward = rewards.resolve("pickscore")(weights=str(folders["pickscore"]), tokenizer=str(folder))
    assert reward.tokenize("a dog").tolist() == [[49406, 320, 1929, 49407]]


def test_an_unreachable_hub_is_explained(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    files = "config.json preprocessor_config.json model.safetensors"
    for name, command, options in (
        ("pickscore", f"`hf download yuvalkirstain/PickScore_v1 {files}`", {}),
        (
            "clip_score",
            f"`hf download openai/clip-vit-large-patch14 {files} tokenizer.json tokenizer_config.json`",
            {},
        ),
        ("object_detection", f"`hf download hustvl/yolos-base {files}`", {"object": "cat"}),
    ):
        refused(name, f"{name}: cannot get .* from the hub repository .*out of reach.*{command}", **options)
    bare = copied(folders["pickscore"], tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    command = "`hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K tokenizer.json tokenizer_config.json`"
    refused("pickscore", command, weights=str(bare))
