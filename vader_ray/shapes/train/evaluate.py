"""Measures the packaged checkpoints, loaded as a user loads them, on scenes and noise that no training
saw."""

from pathlib import Path

import open_clip
import torch
from diffusers import TextToVideoSDPipeline
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor
from transformers import CLIPVisionModelWithProjection

from vader_ray.shapes import PROMPTS
from vader_ray.shapes.caption_classifier import load_caption_classifier
from vader_ray.shapes.data import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZE,
    captions,
    captions_of,
    draw_scenes,
    render,
    truthful,
)
from vader_ray.shapes.train import svd_vae, wan_vae
from vader_ray.shapes.train._pictures import Pictures, draw_pictures
from vader_ray.shapes.train._quality import (
    action_quality,
    detection_quality,
    pickscore_quality,
    samples_quality,
    vjepa_quality,
)
from vader_ray.shapes.train._qwen_quality import judge_quality, video_reward_quality
from vader_ray.shapes.train.aesthetic import HEAD_FILE, Rater
from vader_ray.shapes.train.hps import normalised
from vader_ray.shapes.train.svd import load_svd, sample_svd
from vader_ray.shapes.train.text_to_video import load_pipeline
from vader_ray.shapes.train.vae import decode, encode
from vader_ray.shapes.train.wan import load_wan, sample_wan


def evaluate(out: Path, sheet: Path | None = None) -> dict[str, float]:
    """Quality of every part under `out`; with `sheet`, also a contact sheet of the sampled held-out
    videos."""
    generator = Generator().manual_seed(1000)
    pipeline = load_pipeline(out)
    pictures = draw_pictures(pipeline.vae, 400, generator)
    videos = render(draw_scenes(100, generator))
    quality = {
        "vae/psnr_db": psnr_db(decode(pipeline.vae, encode(pipeline.vae, videos)), videos),
        **caption_classifier_quality(generator),
    }
    quality |= hps_quality(out, pictures) | aesthetic_quality(out, pictures)
    quality |= pickscore_quality(out, pictures) | detection_quality(out, pictures)
    quality |= action_quality(out, pipeline.vae, generator) | vjepa_quality(out, pipeline.vae, generator)
    for split in ("train", "validation"):
        prompts = captions(split)
        frames = sample(pipeline, prompts, generator)
        accuracy = load_caption_classifier().accuracy(frames, prompts)
        accuracy |= samples_quality(out, frames, prompts)
        quality |= {f"text_to_video/{split}/{name}": value for name, value in accuracy.items()}
    if sheet is not None:
        save_sheet(frames[:, ::2], sheet)
    quality |= svd_quality(out, generator) | wan_quality(out, generator)
    quality |= judge_quality(out, Generator().manual_seed(1000))
    return quality | video_reward_quality(out, Generator().manual_seed(1001))


def sample(
    pipeline: TextToVideoSDPipeline, prompts: list[str], generator: Generator, *, guidance_scale: float = 4.0
) -> Float[Tensor, "videos frames 3 height width"]:
    """One video per prompt, 20 DDIM steps."""
    shape = {"num_frames": 8, "height": SIZE, "width": SIZE}
    options = {
        "num_inference_steps": 20,
        "guidance_scale": guidance_scale,
        "output_type": "pt",
        "generator": generator,
    }
    parts = [prompts[start : start + 12] for start in range(0, len(prompts), 12)]
    return torch.cat([pipeline(part, **shape, **options).frames for part in parts])


def psnr_db(decoded: Tensor, videos: Float[Tensor, "videos frames 3 height width"]) -> float:
    """Mean PSNR in decibels over the videos."""
    error = (decoded - videos).square().mean((1, 2, 3, 4))
    return -10 * error.log10().mean().item()


def caption_classifier_quality(generator: Generator) -> dict[str, float]:
    """Accuracy of the packaged caption classifier on 400 uncurated videos."""
    scenes = truthful(draw_scenes(400, generator))
    accuracy = load_caption_classifier().accuracy(render(scenes), captions_of(scenes))
    return {f"caption_classifier/{name}": value for name, value in accuracy.items()}


@torch.no_grad()
def hps_quality(out: Path, pictures: Pictures) -> dict[str, float]:
    """How often HPS picks the right shape and colour of 36 for an intact picture, and the better of two."""
    folder = f"local-dir:{out / 'hps'}"
    model, _, _ = open_clip.create_model_and_transforms(folder)
    model.load_state_dict(torch.load(out / "hps" / "HPS_tiny.pt", weights_only=True)["state_dict"])
    tokenizer = open_clip.get_tokenizer(folder)
    scenes = pictures.scenes
    image = model.eval().encode_image(normalised(pictures.frames.float() / 255), normalize=True)
    score = (image * model.encode_text(tokenizer(captions_of(scenes)), normalize=True)).sum(-1)
    looks = [f"a {colour} {shape} moving " for shape in SHAPES for colour in COLOURS]
    text = torch.stack(
        [model.encode_text(tokenizer([f"{look}{way}" for way in DIRECTIONS])).mean(0) for look in looks]
    )
    right = (image @ text.T).argmax(1) == scenes.shape * len(COLOURS) + scenes.colour
    clear = (pictures.rating[:, None] - pictures.rating[None]) > 1
    spoiled = pictures.spoiled > 0.5
    return {
        "hps/retrieval": right[pictures.spoiled == 0].float().mean().item(),
        "hps/preference": (score[:, None] > score[None])[clear].float().mean().item(),
        "hps/score_intact": score[pictures.spoiled == 0].mean().item(),
        "hps/score_spoiled": score[spoiled].mean().item(),
    }


@torch.no_grad()
def aesthetic_quality(out: Path, pictures: Pictures) -> dict[str, float]:
    """Mean absolute error of the rating and mean rating, on intact and on spoiled pictures."""
    rater = Rater().eval()
    rater.image_encoder = CLIPVisionModelWithProjection.from_pretrained(
        out / "aesthetic" / "image_encoder", dtype=torch.float32
    )
    head = torch.load(out / "aesthetic" / HEAD_FILE, weights_only=True)
    rater.layers.load_state_dict({name.removeprefix("layers."): value for name, value in head.items()})
    rating = rater(normalised(pictures.frames.float() / 255))
    error = (rating - pictures.rating).abs()
    intact = pictures.spoiled == 0
    return {
        "aesthetic/mae_intact": error[intact].mean().item(),
        "aesthetic/mae_spoiled": error[~intact].mean().item(),
        "aesthetic/rating_intact": rating[intact].mean().item(),
        "aesthetic/rating_spoiled": rating[pictures.spoiled > 0.5].mean().item(),
    }


@torch.no_grad()
def svd_quality(out: Path, generator: Generator) -> dict[str, float]:
    """PSNR of the autoencoder, and how often a video goes on as its held-out image shows, in 6 steps without
    guidance."""
    pipeline, videos = load_svd(out), render(draw_scenes(16, generator))
    paths = sorted((PROMPTS / "images_validation").iterdir())
    frames = sample_svd(pipeline, [Image.open(path) for path in paths], generator, num_steps=6)
    accuracy = load_caption_classifier().accuracy(frames, [path.stem.replace("_", " ") for path in paths])
    decoded = svd_vae.decode(pipeline.vae, svd_vae.encode(pipeline.vae, videos))
    return {
        "svd/psnr_db": psnr_db(decoded, videos),
        **{f"svd/validation/{name}": value for name, value in accuracy.items()},
    }


@torch.no_grad()
def wan_quality(out: Path, generator: Generator) -> dict[str, float]:
    """PSNR of the autoencoder, and how often the held-out captions are followed, in 8 steps at guidance 4."""
    pipeline, videos = load_wan(out), render(draw_scenes(16, generator, num_frames=wan_vae.NUM_FRAMES))
    prompts = captions("validation")
    accuracy = load_caption_classifier().accuracy(sample_wan(pipeline, prompts, generator), prompts)
    decoded = wan_vae.decode(pipeline.vae, wan_vae.encode(pipeline.vae, videos))
    return {
        "wan/psnr_db": psnr_db(decoded, videos),
        **{f"wan/validation/{name}": value for name, value in accuracy.items()},
    }


def save_sheet(frames: Float[Tensor, "videos frames 3 height width"], path: Path) -> None:
    """Writes a PNG with one video per row, every pixel four wide."""
    rows = frames.clamp(0, 1).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    image = Image.fromarray((rows * 255).round().byte().cpu().numpy())
    image.resize((image.width * 4, image.height * 4), Image.Resampling.NEAREST).save(path)
