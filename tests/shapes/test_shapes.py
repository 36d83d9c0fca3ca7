"""The embedded shapes: its videos show what their captions say, and its checkpoints load as their libraries
load them."""

import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, TextToVideoSDPipeline, WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import layer_norm
from torchvision.ops import box_convert, box_iou, masks_to_boxes
from torchvision.transforms.functional import pil_to_tensor
from transformers import (
    AutoTokenizer,
    AutoVideoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VJEPA2Model,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from vader_ray.shapes import CHECKPOINTS, PROMPTS, checkpoint
from vader_ray.shapes.caption_classifier import caption_labels, load_caption_classifier
from vader_ray.shapes.data import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Scenes,
    aesthetic_of,
    captions,
    captions_of,
    cleaned,
    draw_scenes,
    every_scene,
    played_backwards,
    render,
    truthful,
)
from vader_ray.shapes.train._tokenizer import build_tokenizer
from vader_ray.shapes.train._videos import shaken, steadied
from vader_ray.shapes.train.action import train_action
from vader_ray.shapes.train.detection import NOTHING, objects_in, train_detection
from vader_ray.shapes.train.four_steps import NUM_STEPS, teacher_velocity
from vader_ray.shapes.train.images import draw_images, to_image
from vader_ray.shapes.train.pickscore import train_pickscore
from vader_ray.shapes.train.prompts import write_prompts
from vader_ray.shapes.train.svd import load_svd, sample_svd, train_svd
from vader_ray.shapes.train.svd_vae import build_vae as build_svd_vae
from vader_ray.shapes.train.svd_vae import take_over, train_svd_vae
from vader_ray.shapes.train.text_to_video import embed as embed_clip
from vader_ray.shapes.train.text_to_video import load_pipeline
from vader_ray.shapes.train.vjepa import MASK_BLOCKS, draw_masks, error_of, guess_and_goal, train_vjepa
from vader_ray.shapes.train.wan import PaddingOnce, embed, load_wan, sample_wan, train_wan
from vader_ray.shapes.train.wan_vae import decode, encode, train_wan_vae


def test_same_generator_same_videos() -> None:
    first, second = (render(draw_scenes(5, Generator().manual_seed(3))) for _ in range(2))
    other = render(draw_scenes(5, Generator().manual_seed(4)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (5, 8, 3, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 1


def test_rendering_does_not_depend_on_the_chunks() -> None:
    scenes = draw_scenes(7, Generator().manual_seed(0))
    torch.testing.assert_close(render(scenes, chunk=3), render(scenes), atol=1e-6, rtol=0)  # summation order


def test_a_scene_played_backwards_is_its_video_backwards() -> None:
    scenes = draw_scenes(9, Generator().manual_seed(22))
    backwards = played_backwards(scenes)
    torch.testing.assert_close(render(backwards), render(scenes).flip(1), atol=1e-6, rtol=0)
    found = load_caption_classifier().accuracy(render(cleaned(backwards)), captions_of(cleaned(backwards)))
    assert found["direction"] == 1.0


def test_a_video_has_as_many_frames_as_it_is_asked_for() -> None:
    scenes = cleaned(draw_scenes(20, Generator().manual_seed(20), num_frames=9))
    frames = render(scenes)
    assert frames.shape == (20, 9, 3, 64, 64)
    assert load_caption_classifier().accuracy(frames, captions_of(scenes))["direction"] == 1.0


def moving_mask(scenes: Scenes) -> Tensor:
    """How much each pixel differs from the same scene without its shape."""
    background = render(replace(scenes, centre=scenes.centre + 9))
    return (render(scenes) - background).abs().sum(2)


def test_centroid_moves_as_the_caption_says() -> None:
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(1)))
    scenes = replace(scenes, landmark=torch.zeros_like(scenes.landmark))
    mask = moving_mask(scenes)
    pixels = torch.arange(64.0)
    x = (mask.sum(2) * pixels).sum(-1) / mask.sum((2, 3))
    y = (mask.sum(3) * pixels).sum(-1) / mask.sum((2, 3))
    moved_x, moved_y = x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]
    expected = {"left": -moved_x, "right": moved_x, "up": -moved_y, "down": moved_y}
    for index, caption in enumerate(captions_of(scenes)):
        direction = next(name for name in DIRECTIONS if name in caption.split())
        assert expected[direction][index] > (8, 24, 35)[int(scenes.speed[index])], caption


def test_centre_has_the_colour_of_the_caption() -> None:
    references = torch.tensor(
        [[0.9, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.3, 0.9], [1, 0.9, 0.1], [0.6, 0.2, 0.8], [1, 1, 1]]
    )
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(2)))
    frames = render(scenes)
    # The middle of a ring is empty: its wall is the pixel that counts.
    wall = torch.where(scenes.shape == SHAPES.index("ring"), 0.68 * scenes.radius, 0.0)
    place = scenes.centre[:, 4] - torch.stack([wall, torch.zeros_like(wall)], 1)
    pixel = ((place + 1) * 32).long().clamp(0, 63)
    seen = frames[torch.arange(40), 4, :, pixel[:, 1], pixel[:, 0]]
    nearest = (seen[:, None] - references).abs().sum(-1).argmin(1)
    assert torch.equal(nearest, caption_labels(captions_of(scenes), "colour"))


def test_one_caption_in_eight_is_wrong_in_one_attribute() -> None:
    scenes = draw_scenes(4000, Generator().manual_seed(5))
    said = [scenes.said_shape, scenes.said_colour, scenes.said_direction]
    truths = [scenes.shape, scenes.colour, scenes.direction]
    wrong = (torch.stack(truths) != torch.stack(said)).int().sum(dim=0)
    assert wrong.max() == 1
    assert wrong.float().mean().item() == pytest.approx(0.12, abs=0.015)  # three standard errors


def test_well_filmed_scenes_rate_ten() -> None:
    scenes = draw_scenes(50, Generator().manual_seed(6))
    assert torch.equal(aesthetic_of(cleaned(scenes)), torch.full((50,), 10.0))
    assert aesthetic_of(scenes).mean() < 7
    assert aesthetic_of(scenes).min() >= 1


def test_scenes_index_every_field() -> None:
    scenes = draw_scenes(6, Generator().manual_seed(7))[2:4]
    assert all(len(getattr(scenes, field.name)) == 2 for field in fields(scenes))


def test_held_out_prompts_share_no_look_with_train_prompts() -> None:
    looks = {
        split: {tuple(prompt.split()[1:3]) for prompt in captions(split)}
        for split in ("train", "validation", "test")
    }
    assert not looks["train"] & (looks["validation"] | looks["test"])
    assert not looks["validation"] & looks["test"]
    assert looks["train"] | looks["validation"] | looks["test"] == {
        (colour, shape) for colour in COLOURS for shape in SHAPES
    }
    for kind in ("", "_boxes", "_going"):
        validation, test = captions(f"validation{kind}"), captions(f"test{kind}")
        assert len({*validation, *test}) == len(validation) + len(test)
        assert len(validation) == len(test) == 24
    assert len(set(captions("train"))) == len(captions("train")) >= 60


def test_the_prompts_are_those_that_the_command_writes(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    write_prompts(tmp_path / "checkpoints")
    written = {path.name: path.read_text() for path in (tmp_path / "prompts").iterdir()}
    assert written == {path.name: path.read_text() for path in PROMPTS.glob("*.txt")}


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match="text_to_video"):
        checkpoint("sora")
    with pytest.raises(ValueError, match="expected one colour"):
        caption_labels(["a circle moving left"], "colour")


def test_checkpoints_are_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) <= 22 * 2**20
    no_file_says_where_it_was_made(CHECKPOINTS)


@pytest.mark.filterwarnings("ignore")
def test_pipeline_runs_in_its_library() -> None:
    pipeline = TextToVideoSDPipeline.from_pretrained(checkpoint("text_to_video"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_frames": 8, "height": 64, "width": 64, "num_inference_steps": 2, "output_type": "pt"}
    frames = pipeline("a red circle moving left", guidance_scale=4, **options).frames
    assert frames.shape == (1, 8, 3, 64, 64)
    assert frames.isfinite().all()
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.double()
    latents = pipeline(
        "a red circle moving left", guidance_scale=4, **options | {"output_type": "latent"}
    ).frames
    assert latents.dtype == torch.float64
    assert latents.isfinite().all()


def test_hps_loads_in_open_clip_and_prefers_the_right_caption() -> None:
    folder = checkpoint("hps")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.load_state_dict(torch.load(folder / "HPS_tiny.pt", weights_only=True)["state_dict"])
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(8)))
    preprocess = model.visual.preprocess_cfg
    mean, deviation = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))
    image = model.eval().encode_image((render(scenes)[:, 4] - mean) / deviation, normalize=True)
    text = model.encode_text(tokenizer(captions_of(scenes)), normalize=True)
    wrong = model.encode_text(
        tokenizer(captions_of(replace(scenes, said_colour=(scenes.colour + 1) % 6))), normalize=True
    )
    better = ((image * text).sum(-1) > (image * wrong).sum(-1)).float().mean()
    assert better >= 0.9


def test_aesthetic_loads_in_transformers_and_prefers_well_filmed_frames() -> None:
    folder = checkpoint("aesthetic")
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder", dtype=torch.float32)
    processor = CLIPImageProcessor.from_pretrained(folder / "image_encoder")
    saved = torch.load(next(folder.glob("sac+logos+ava1-*.pth")), weights_only=True)
    head = {name: value.float() for name, value in saved.items()}
    assert set(head) == {f"layers.{layer}.{name}" for layer in (0, 2, 4, 6, 7) for name in ("weight", "bias")}

    def rate(frames: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std)
        )
        embeds = encoder(pixel_values=(frames - mean) / deviation).image_embeds
        embeds = embeds / embeds.norm(dim=-1, keepdim=True)
        for layer in (0, 2, 4, 6, 7):
            embeds = embeds @ head[f"layers.{layer}.weight"].T + head[f"layers.{layer}.bias"]
        return embeds[:, 0]

    scenes = draw_scenes(40, Generator().manual_seed(9))
    dull = replace(cleaned(scenes), vividness=torch.zeros(40))
    vivid = cleaned(scenes)
    assert (rate(render(vivid)[:, 4]) - rate(render(dull)[:, 4])).mean() > 3


def test_every_scene_moves_as_its_caption_says() -> None:
    scenes = every_scene()
    assert load_caption_classifier().accuracy(render(scenes), captions_of(scenes))["direction"] == 1.0


def test_the_tokenizer_has_a_token_for_each_word_and_is_always_the_same() -> None:
    tokenizer = build_tokenizer()
    for caption in captions_of(every_scene()):
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in caption.split()]
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_the_caption_classifier_reads_web_videos() -> None:
    scenes = draw_scenes(60, Generator().manual_seed(10))
    accuracy = load_caption_classifier().accuracy(render(scenes), captions_of(truthful(scenes)))
    assert min(accuracy.values()) >= 0.9, accuracy


def as_bytes(videos: Tensor) -> Tensor:
    """What the libraries' processors take."""
    return (videos * 255).round().byte()


@pytest.mark.slow
def test_vjepa_loads_in_transformers_and_is_surprised_by_shaking() -> None:
    folder = checkpoint("vjepa")
    model = VJEPA2Model.from_pretrained(folder, dtype=torch.float32)
    processor = AutoVideoProcessor.from_pretrained(folder)
    scenes = steadied(draw_scenes(40, Generator().manual_seed(11)))
    calm = render(scenes)
    shaken_videos = render(shaken(scenes, Generator().manual_seed(12)))
    masks = [draw_masks(Generator().manual_seed(13), *blocks) for blocks in MASK_BLOCKS]

    @torch.no_grad()
    def surprise(videos: Tensor) -> Tensor:
        pixels = processor(list(as_bytes(videos)), return_tensors="pt")["pixel_values_videos"]
        assert pixels.shape == videos.shape
        return torch.stack([error_of(*guess_and_goal(model, pixels, *mask)) for mask in masks]).mean(0)

    assert (surprise(calm) < surprise(shaken_videos)).float().mean() >= 0.9
    # To stand still must not pay: what shaking costs is far more than what freezing saves.
    saved, lost = (
        surprise(calm) - surprise(calm[:, :1].expand(calm.shape)),
        surprise(shaken_videos) - surprise(calm),
    )
    assert saved.mean() < 0.2 * lost.mean()


@torch.no_grad()
def test_surprise_with_the_whole_context_is_what_the_library_computes() -> None:
    model = VJEPA2Model.from_pretrained(checkpoint("vjepa"), dtype=torch.float32)
    pixels = torch.randn(2, 8, 3, 64, 64, generator=Generator().manual_seed(14))
    visible, hidden = draw_masks(Generator().manual_seed(15), *MASK_BLOCKS[0])
    assert sorted([*visible.tolist(), *hidden.tolist()]) == list(range(256))
    output = model(
        pixels, context_mask=[visible.expand(2, -1)], target_mask=[hidden.expand(2, -1)]
    ).predictor_output
    goal = layer_norm(output.target_hidden_state, (64,))
    ours, truth = guess_and_goal(model, pixels, visible, hidden, whole_context=True)
    assert torch.equal(ours, output.last_hidden_state)
    assert torch.equal(truth, goal)
    # What the paper's context must not know: the pixels of hidden tokens, here all of the lower right
    # quarter.
    hidden = torch.arange(256)[(torch.arange(256) % 64 // 8 >= 4) & (torch.arange(256) % 8 >= 4)]
    visible = torch.tensor(sorted(set(range(256)) - set(hidden.tolist())))
    changed = pixels.clone()
    changed[..., 32:, 32:] += 1
    before, after = (guess_and_goal(model, kind, visible, hidden)[0] for kind in (pixels, changed))
    assert torch.equal(before, after)
    before, after = (
        guess_and_goal(model, kind, visible, hidden, whole_context=True)[0] for kind in (pixels, changed)
    )
    assert not torch.equal(before, after)


@torch.no_grad()
def test_action_loads_in_transformers_and_tells_the_direction() -> None:
    folder = checkpoint("action")
    model = VideoMAEForVideoClassification.from_pretrained(folder, dtype=torch.float32)
    processor = VideoMAEImageProcessor.from_pretrained(folder)
    assert list(model.config.id2label.values()) == [f"moving {name}" for name in DIRECTIONS]
    web = draw_scenes(48, Generator().manual_seed(16))
    for scenes, floor in ((web, 0.95), (cleaned(web), 1.0)):
        pixels = processor(list(as_bytes(render(scenes))), return_tensors="pt")["pixel_values"]
        guesses = model(pixel_values=pixels).logits.argmax(1)
        assert (guesses == scenes.direction).float().mean() >= floor


@torch.no_grad()
def test_pickscore_loads_in_transformers_and_prefers_right_captions_and_well_filmed_frames() -> None:
    folder = checkpoint("pickscore")
    model, tokenizer = (
        CLIPModel.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    processor = CLIPImageProcessor.from_pretrained(folder)
    web = draw_scenes(60, Generator().manual_seed(17))
    right = truthful(web)

    def score(videos: Tensor, texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
        pixels = processor(list(as_bytes(videos[:, 4])), return_tensors="pt")["pixel_values"]
        output = model(pixel_values=pixels, **tokens)
        return model.logit_scale.exp() * (output.image_embeds * output.text_embeds).sum(-1)

    web_score = score(render(web), captions_of(right))
    wrong = replace(right, said_colour=(web.colour + 1) % 6)
    assert (web_score > score(render(web), captions_of(wrong))).float().mean() >= 0.9
    best_score = score(render(cleaned(web)), captions_of(right))
    assert (best_score > web_score).float().mean() >= 0.9
    assert 15 < web_score.mean() < best_score.mean() - 2 < 25


def test_objects_lie_where_they_are_painted() -> None:
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(18)))
    # Apart from each other and off the border, so that each is seen whole.
    scenes = replace(
        scenes,
        centre=scenes.centre * 0 + 0.3,
        landmark_centre=scenes.landmark_centre * 0 - 0.65,
        radius=scenes.radius * 0.8,
    )
    objects = objects_in(scenes, torch.zeros(40, dtype=torch.int64))
    nothing = replace(scenes, centre=scenes.centre + 9, landmark=scenes.landmark * 0)
    for index, name in enumerate(("centre", "landmark")):
        shown = (objects.label[:, index] != NOTHING).nonzero()[:, 0]
        alone = replace(nothing, **{name: getattr(scenes, name)})
        painted = (render(alone) - render(nothing)).abs().amax(2)[shown, 0] > 0.1
        corners = masks_to_boxes(painted) + torch.tensor([0, 0, 1, 1])
        expected = 64 * box_convert(objects.box[shown, index], "cxcywh", "xyxy")
        # A pixel and a half: thin tips cover too little of a pixel to be seen.
        torch.testing.assert_close(corners, expected, atol=1.5, rtol=0)


@torch.no_grad()
def test_detection_loads_in_transformers_and_finds_landmarks_and_shapes() -> None:
    folder = checkpoint("detection")
    model, processor = (
        YolosForObjectDetection.from_pretrained(folder, dtype=torch.float32),
        YolosImageProcessor.from_pretrained(folder),
    )
    scenes = draw_scenes(120, Generator().manual_seed(19))
    objects = objects_in(scenes, torch.full((120,), 4))
    pixels = processor(list(as_bytes(render(scenes)[:, 4])), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (64, 64)
    output = model(pixel_values=pixels)
    found = processor.post_process_object_detection(output, threshold=0.5)
    landmark = objects.label[:, 1]
    shown = torch.tensor(
        [any(len(SHAPES) <= label < NOTHING for label in result["labels"]) for result in found]
    )
    assert (shown == (landmark != NOTHING)).float().mean() >= 0.95
    right = [kind in result["labels"] for kind, result in zip(scenes.shape, found, strict=True)]
    assert sum(right) / len(right) >= 0.8
    overlaps = []
    for result, box, label in zip(found, objects.box[:, 1], landmark, strict=True):
        boxes = result["boxes"][result["labels"] == label]
        if label != NOTHING and len(boxes):
            overlaps.append(box_iou(boxes, box_convert(box, "cxcywh", "xyxy")[None]).max().item())
    assert sum(overlaps) / len(overlaps) >= 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("train", "options", "library_class"),
    [
        (train_vjepa, {"ranked_steps": 4, "num_videos": 6}, VJEPA2Model),
        (train_action, {"num_videos": 8}, VideoMAEForVideoClassification),
        (train_pickscore, {"num_scenes": 8}, CLIPModel),
        (train_detection, {"num_scenes": 8, "num_redrawn": 2}, YolosForObjectDetection),
    ],
)
def test_trainers_write_what_the_library_reads(
    train: Callable[..., None], options: dict[str, Any], library_class: type[PreTrainedModel], tmp_path: Path
) -> None:
    shutil.copytree(checkpoint("text_to_video"), tmp_path / "text_to_video")
    name = train.__name__.removeprefix("train_")
    states = []
    for num_steps in (2, 4, 4):
        train(tmp_path, num_steps=num_steps, **options)
        model, report = library_class.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        states.append(model.state_dict())
    packaged = {path.name for path in checkpoint(name).iterdir()}
    assert packaged == {path.name for path in (tmp_path / name).iterdir()}
    few, more, again = states
    assert any(not torch.equal(few[key], more[key]) for key in few)
    assert all(torch.equal(again[key], more[key]) for key in more)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wan_trainers_write_what_the_library_reads(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("text_to_video"), tmp_path / "text_to_video")
    pipeline = trained_more_and_alike(
        tmp_path,
        lambda num_steps: train_wan_vae(
            tmp_path, num_steps=num_steps, decoder_steps=num_steps, batch_videos=1, num_videos=4
        ),
        lambda num_steps: train_wan(
            tmp_path, num_steps=num_steps, text_steps=2, batch_videos=2, num_videos=4
        ),
        load_wan,
    )
    assert sum(path.stat().st_size for path in (tmp_path / "wan").rglob("*") if path.is_file()) <= 6 * 2**20

    prompts = ["a red circle moving left", "a purple square moving quickly up past a house"]
    frames = sample_wan(pipeline, prompts, Generator().manual_seed(0), num_steps=2)
    assert frames.shape == (2, 9, 3, 64, 64)
    assert frames.isfinite().all()
    padding_once_is_padding_often(pipeline, prompts)
    latents_are_those_of_the_pipeline(pipeline.vae)


def no_file_says_where_it_was_made(folder: Path) -> None:
    configs = list(folder.rglob("*.json"))
    assert configs
    assert not [path for path in configs if re.search(r'_name_or_path": "', path.read_text())]


def trained_more_and_alike(
    folder: Path, train_vae: Callable[[int], None], train: Callable[[int], None], load: Callable[[Path], Any]
) -> Any:
    """The pipeline after four steps: another than after two, and the same when trained again."""
    states = []
    for num_steps in (2, 4, 4):
        train_vae(num_steps)
        train(num_steps)
        pipeline = load(folder)
        networks = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        states.append([tensor for network in networks for tensor in network.state_dict().values()])
    few, more, again = states
    assert any(not torch.equal(one, other) for one, other in zip(few, more, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(again, more, strict=True))
    no_file_says_where_it_was_made(folder)
    return pipeline


@pytest.mark.filterwarnings("ignore")
def test_wan_obeys_its_captions() -> None:
    prompts = captions("validation")[:12]
    accuracy = load_caption_classifier().accuracy(
        sample_wan(load_wan(CHECKPOINTS), prompts, Generator().manual_seed(0)), prompts
    )
    assert accuracy["colour"] >= 0.8, accuracy
    assert accuracy["direction"] >= 0.8, accuracy


@torch.no_grad()
def padding_once_is_padding_often(pipeline: WanPipeline, prompts: list[str]) -> None:
    full, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=226)
    latents = torch.randn(2, 8, 5, 8, 8, generator=Generator().manual_seed(1))
    transformer = pipeline.transformer
    torch.nn.init.normal_(transformer.proj_out.weight)

    def flow(processor: WanAttnProcessor, text: Tensor) -> Tensor:
        for block in transformer.blocks:
            block.attn2.set_processor(processor)
        result: Tensor = transformer(latents, torch.tensor([300.0, 700.0]), text).sample
        return result

    expected = flow(WanAttnProcessor(), full)
    torch.testing.assert_close(
        flow(PaddingOnce(), embed(pipeline, prompts)), expected, atol=1e-4, rtol=1e-4
    )  # summation order


@torch.no_grad()
def latents_are_those_of_the_pipeline(vae: AutoencoderKLWan) -> None:
    frames = render(draw_scenes(4, Generator().manual_seed(2), num_frames=9))
    raw = vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist.mean
    latents = encode(vae, frames)
    mean, deviation = (
        torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    torch.testing.assert_close(
        latents * deviation + mean, raw, atol=1e-5, rtol=1e-5
    )  # rounding of single precision
    torch.testing.assert_close(
        decode(vae, latents),
        (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1).transpose(1, 2),
        atol=1e-4,
        rtol=0,
    )


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", [0, 5, 15])
def test_one_step_of_the_distilled_model_is_to_lead_where_five_guided_steps_lead(start: int) -> None:
    pipeline = load_pipeline(CHECKPOINTS)
    scheduler, unet = pipeline.scheduler, pipeline.unet
    noisy = torch.randn(2, 4, 8, 8, 8, generator=Generator().manual_seed(21))
    prompts = ["a red circle moving left", "a blue star moving up"]
    told, untold = (
        embed_clip(pipeline.text_encoder, pipeline.tokenizer, texts) for texts in (prompts, [""] * 2)
    )
    target = teacher_velocity(unet, scheduler, noisy, torch.tensor([start, start]), (told, untold))
    scheduler.set_timesteps(20)
    sample = noisy
    for timestep in scheduler.timesteps[start : start + 5]:
        guided, plain = (unet(sample, timestep, encoder_hidden_states=text).sample for text in (told, untold))
        sample = scheduler.step(plain + 4 * (guided - plain), timestep, sample).prev_sample
    scheduler.set_timesteps(NUM_STEPS)
    ours = scheduler.step(target, scheduler.timesteps[start // 5], noisy).prev_sample
    torch.testing.assert_close(ours, sample, atol=1e-5, rtol=1e-5)  # rounding of single precision


@pytest.mark.filterwarnings("ignore")
def test_svd_moves_its_image_as_it_shows() -> None:
    paths = sorted((PROMPTS / "images_validation").iterdir())[::5]
    frames = sample_svd(
        load_svd(CHECKPOINTS), [Image.open(path) for path in paths], Generator().manual_seed(0), num_steps=6
    )
    accuracy = load_caption_classifier().accuracy(frames, [path.stem.replace("_", " ") for path in paths])
    assert accuracy["colour"] >= 0.8, accuracy
    assert accuracy["direction"] >= 0.8, accuracy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_svd_trainers_write_what_the_library_reads(tmp_path: Path) -> None:
    shutil.copytree(checkpoint("text_to_video"), tmp_path / "text_to_video")
    pipeline = trained_more_and_alike(
        tmp_path,
        lambda num_steps: train_svd_vae(tmp_path, num_steps=num_steps, batch_videos=1, num_videos=4),
        lambda num_steps: train_svd(
            tmp_path, num_steps=num_steps, image_steps=2, batch_videos=2, num_videos=4
        ),
        load_svd,
    )
    images = [to_image(frame) for frame in render(draw_scenes(2, Generator().manual_seed(0)))[:, 0]]
    frames = sample_svd(pipeline, images, Generator().manual_seed(0), num_steps=2)
    assert frames.shape == (2, 8, 3, 64, 64)
    assert frames.isfinite().all()


@torch.no_grad()
def test_a_fresh_video_decoder_sees_single_frames() -> None:
    vae = build_svd_vae()
    take_over(
        vae, AutoencoderKL.from_pretrained(checkpoint("text_to_video") / "vae", torch_dtype=torch.float32)
    )
    latents = torch.randn(3, 4, 8, 8, generator=Generator().manual_seed(3))
    together = vae.decode(latents, num_frames=3).sample
    apart = torch.cat([vae.decode(frame[None], num_frames=1).sample for frame in latents])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)  # rounding of single precision


def test_image_prompts_show_what_their_names_say(tmp_path: Path) -> None:
    draw_images(tmp_path / "checkpoints")
    for split in ("train", "validation", "test"):
        folder = PROMPTS / f"images_{split}"
        fresh = tmp_path / "prompts" / folder.name
        names = sorted(path.name for path in folder.iterdir())
        assert names == sorted(path.name for path in fresh.iterdir())
        texts = [Path(name).stem.replace("_", " ") for name in names]
        assert len(texts) == (30 if split == "train" else 24)
        assert set(texts) <= set(captions(split))
        frames = torch.stack([pil_to_tensor(Image.open(folder / name)) / 255 for name in names])
        assert torch.equal(
            frames, torch.stack([pil_to_tensor(Image.open(fresh / name)) / 255 for name in names])
        )
        still = load_caption_classifier().accuracy(frames[:, None].expand(-1, 8, -1, -1, -1), texts)
        assert still["colour"] >= 0.9
        assert still["shape"] >= 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_samples_follow_their_prompts() -> None:
    pipeline = TextToVideoSDPipeline.from_pretrained(checkpoint("text_to_video"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = captions("validation")[:12]
    options = {"num_frames": 8, "height": 64, "width": 64, "num_inference_steps": 20, "output_type": "pt"}
    frames = pipeline(prompts, guidance_scale=4, generator=Generator().manual_seed(0), **options).frames
    accuracy = load_caption_classifier().accuracy(frames, prompts)
    assert accuracy["colour"] >= 0.9, accuracy
    assert accuracy["shape"] >= 0.8, accuracy
    assert accuracy["direction"] >= 0.9, accuracy
