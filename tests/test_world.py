"""The embedded world: its videos show what their captions say, and its checkpoints load as their libraries load them."""

from dataclasses import fields, replace

import open_clip
import pytest
import torch
from diffusers import TextToVideoSDPipeline
from torch import Generator, Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from vader_ray.world import CHECKPOINTS, checkpoint
from vader_ray.world.data import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    aesthetic_of,
    captions,
    captions_of,
    cleaned,
    draw_scenes,
    render,
)
from vader_ray.world.judge import Judge, said_in


def test_same_generator_same_videos() -> None:
    first, second = (render(draw_scenes(5, Generator().manual_seed(3))) for _ in range(2))
    other = render(draw_scenes(5, Generator().manual_seed(4)))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (5, 8, 3, 32, 32)
    assert first.min() >= 0
    assert first.max() <= 1


def test_rendering_does_not_depend_on_the_chunks() -> None:
    scenes = draw_scenes(7, Generator().manual_seed(0))
    torch.testing.assert_close(render(scenes, chunk=3), render(scenes), atol=1e-6, rtol=0)  # summation order


def moving_mask(frames: Tensor) -> Tensor:
    """Where each frame differs from the background, which the median over time shows."""
    background = frames.median(dim=1, keepdim=True).values
    return (frames - background).abs().sum(2)


def test_centroid_moves_as_the_caption_says() -> None:
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(1)))
    scenes = replace(scenes, box=torch.zeros_like(scenes.box))
    mask = moving_mask(render(scenes))
    pixels = torch.arange(32.0)
    x = (mask.sum(2) * pixels).sum(-1) / mask.sum((2, 3))
    y = (mask.sum(3) * pixels).sum(-1) / mask.sum((2, 3))
    moved_x, moved_y = x[:, -1] - x[:, 0], y[:, -1] - y[:, 0]
    expected = {"left": -moved_x, "right": moved_x, "up": -moved_y, "down": moved_y}
    for index, caption in enumerate(captions_of(scenes)):
        direction = next(name for name in DIRECTIONS if name in caption.split())
        assert expected[direction][index] > 5, caption


def test_centre_has_the_colour_of_the_caption() -> None:
    references = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.3, 0.9], [1, 0.9, 0.1], [0.6, 0.2, 0.8], [1, 1, 1]])
    scenes = cleaned(draw_scenes(40, Generator().manual_seed(2)))
    frames = render(scenes)
    pixel = ((scenes.centre[:, 4] + 1) * 16).long()
    seen = frames[torch.arange(40), 4, :, pixel[:, 1], pixel[:, 0]]
    nearest = (seen[:, None] - references).abs().sum(-1).argmin(1)
    assert torch.equal(nearest, said_in(captions_of(scenes), "colour"))


def test_one_caption_in_eight_is_wrong_in_one_attribute() -> None:
    scenes = draw_scenes(4000, Generator().manual_seed(5))
    said = [scenes.said_shape, scenes.said_colour, scenes.said_direction]
    wrong = sum(
        (truth != claim).int() for truth, claim in zip([scenes.shape, scenes.colour, scenes.direction], said, strict=True)
    )
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
    looks = {split: {tuple(prompt.split()[1:3]) for prompt in captions(split)} for split in ("train", "heldout")}
    assert not looks["train"] & looks["heldout"]
    assert looks["train"] | looks["heldout"] == {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert len(set(captions("heldout"))) == len(captions("heldout")) >= 24
    assert len(set(captions("train"))) == len(captions("train")) >= 60


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(ValueError, match="text_to_video"):
        checkpoint("sora")
    with pytest.raises(ValueError, match="expected one colour"):
        said_in(["a circle moving left"], "colour")


def test_checkpoints_are_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()) <= 12 * 2**20


@pytest.mark.filterwarnings("ignore")
def test_pipeline_runs_in_its_library() -> None:
    pipeline = TextToVideoSDPipeline.from_pretrained(checkpoint("text_to_video"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_frames": 8, "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    frames = pipeline("a red circle moving left", guidance_scale=4, **options).frames
    assert frames.shape == (1, 8, 3, 32, 32)
    assert frames.isfinite().all()
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.double()
    latents = pipeline("a red circle moving left", guidance_scale=4, **options | {"output_type": "latent"}).frames
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
    wrong = model.encode_text(tokenizer(captions_of(replace(scenes, said_colour=(scenes.colour + 1) % 6))), normalize=True)
    better = ((image * text).sum(-1) > (image * wrong).sum(-1)).float().mean()
    assert better >= 0.9


def test_aesthetic_loads_in_transformers_and_prefers_well_filmed_frames() -> None:
    folder = checkpoint("aesthetic")
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder")
    processor = CLIPImageProcessor.from_pretrained(folder / "image_encoder")
    head = torch.load(next(folder.glob("sac+logos+ava1-*.pth")), weights_only=True)
    assert set(head) == {f"layers.{layer}.{name}" for layer in (0, 2, 4, 6, 7) for name in ("weight", "bias")}

    def rate(frames: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
        embeds = encoder(pixel_values=(frames - mean) / deviation).image_embeds
        embeds = embeds / embeds.norm(dim=-1, keepdim=True)
        for layer in (0, 2, 4, 6, 7):
            embeds = embeds @ head[f"layers.{layer}.weight"].T + head[f"layers.{layer}.bias"]
        return embeds[:, 0]

    scenes = draw_scenes(40, Generator().manual_seed(9))
    dull = replace(cleaned(scenes), vividness=torch.zeros(40))
    vivid = cleaned(scenes)
    assert (rate(render(vivid)[:, 4]) - rate(render(dull)[:, 4])).mean() > 3


def test_judge_reads_web_videos() -> None:
    scenes = draw_scenes(60, Generator().manual_seed(10))
    truth = replace(scenes, said_shape=scenes.shape, said_colour=scenes.colour, said_direction=scenes.direction)
    accuracy = Judge.load().accuracy(render(scenes), captions_of(truth))
    assert min(accuracy.values()) >= 0.9, accuracy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_samples_follow_their_prompts() -> None:
    pipeline = TextToVideoSDPipeline.from_pretrained(checkpoint("text_to_video"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = captions("heldout")[:12]
    options = {"num_frames": 8, "height": 32, "width": 32, "num_inference_steps": 20, "output_type": "pt"}
    frames = pipeline(prompts, guidance_scale=4, generator=Generator().manual_seed(0), **options).frames
    accuracy = Judge.load().accuracy(frames, prompts)
    assert accuracy["colour"] >= 0.9, accuracy
    assert accuracy["shape"] >= 0.8, accuracy
    assert accuracy["direction"] >= 0.9, accuracy
