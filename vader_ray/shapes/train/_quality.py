"""Quality of the rewards that transformers loads: `vjepa`, `action`, `pickscore`, `detection`."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Generator, Tensor
from torchvision.ops import box_convert, box_iou
from transformers import (
    AutoTokenizer,
    CLIPModel,
    VideoMAEForVideoClassification,
    VJEPA2Model,
    YolosForObjectDetection,
)

from vader_ray.shapes.data import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    captions_of,
    cleaned,
    draw_scenes,
    render,
)
from vader_ray.shapes.train._pictures import Pictures
from vader_ray.shapes.train._videos import draw_videos, normalised, redecoded, shaken, steadied
from vader_ray.shapes.train.detection import NOTHING, objects_in
from vader_ray.shapes.train.pickscore import clip_normalised
from vader_ray.shapes.train.vjepa import MASK_BLOCKS, draw_masks, error_of, guess_and_goal, zoomed


@torch.no_grad()
def vjepa_quality(
    out: Path, vae: AutoencoderKL, generator: Generator, *, num_scenes: int = 100
) -> dict[str, float]:
    """Mean surprise at calm videos and at the same scenes shaken, frozen and decoded; how often shaking
    surprises more.

    `frozen_ahead` is the share of scenes whose frozen first frame surprises less than their calm video.
    """
    model = VJEPA2Model.from_pretrained(out / "vjepa", dtype=torch.float32)
    scenes = steadied(draw_scenes(num_scenes, generator))
    calm = render(scenes)
    share = torch.full((num_scenes,), 0.05)
    everything = {
        "calm": calm,
        "shaken": render(shaken(scenes, generator)),
        "flicker": render(shaken(scenes, generator, jitter=False)),
        "jitter": render(shaken(scenes, generator, flicker=False)),
        "frozen": calm[:, :1].expand(calm.shape),
        "decoded": redecoded(vae, calm, share, generator),
        "decoded_shaken": redecoded(vae, render(shaken(scenes, generator)), share, generator),
    }
    quality: dict[str, float] = {}
    for kind, whole_context in (("", False), ("whole_context_", True)):
        losses = {
            name: surprises(model, videos, fixed_masks(), whole_context)
            for name, videos in everything.items()
        }
        quality |= {f"vjepa/{kind}loss_{name}": loss.mean().item() for name, loss in losses.items()}
        for name in ("shaken", "flicker", "jitter"):
            quality[f"vjepa/{kind}calm_ahead_of_{name}"] = (
                (losses["calm"] < losses[name]).float().mean().item()
            )
        ahead = losses["decoded"] < losses["decoded_shaken"]
        quality[f"vjepa/{kind}calm_ahead_of_shaken_decoded"] = ahead.float().mean().item()
        quality[f"vjepa/{kind}frozen_ahead"] = (losses["frozen"] < losses["calm"]).float().mean().item()
    return quality


def surprises(
    model: VJEPA2Model, videos: Tensor, masks: list[tuple[Tensor, Tensor]], whole_context: bool = False
) -> Float[Tensor, " videos"]:
    """The mean over masks of the surprise at each video, which is preprocessed as published."""
    parts = [normalised(zoomed(part)) for part in videos.split(50)]
    return torch.stack(
        [
            torch.cat(
                [error_of(*guess_and_goal(model, part, *mask, whole_context=whole_context)) for part in parts]
            )
            for mask in masks
        ]
    ).mean(0)


@torch.no_grad()
def action_quality(out: Path, vae: AutoencoderKL, generator: Generator) -> dict[str, float]:
    """Accuracy of the direction on well-filmed scenes, on intact videos and on videos spoiled by up to one
    half."""
    model = VideoMAEForVideoClassification.from_pretrained(out / "action", dtype=torch.float32)
    videos = draw_videos(vae, 600, generator)

    def right(frames: Tensor, truth: Tensor) -> Tensor:
        guesses = [model(pixel_values=normalised(part)).logits.argmax(1) for part in frames.split(50)]
        return (torch.cat(guesses) == truth).float()

    clean = cleaned(draw_scenes(200, Generator().manual_seed(1001)))
    filmed = right(videos.frames.float() / 255, videos.scenes.direction)
    intact = videos.spoiled == 0
    half = (videos.spoiled > 0) & (videos.spoiled < 0.5)
    return {
        "action/accuracy_well_filmed": right(render(clean), clean.direction).mean().item(),
        "action/accuracy_intact": filmed[intact].mean().item(),
        "action/accuracy_spoiled": filmed[half].mean().item(),
    }


@torch.no_grad()
def pickscore_quality(out: Path, pictures: Pictures) -> dict[str, float]:
    """How often PickScore picks the right shape and colour of 36 for an intact picture, and the better of
    two pictures."""
    model = CLIPModel.from_pretrained(out / "pickscore", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "pickscore")
    scenes = pictures.scenes
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    looks = [f"a {colour} {shape} moving " for shape in SHAPES for colour in COLOURS]
    every = tokenizer([f"{look}{way}" for look in looks for way in DIRECTIONS], **options)
    pixels = clip_normalised(pictures.frames.float() / 255)
    output = model(pixel_values=pixels, **tokenizer(captions_of(scenes), **options))
    scale = model.logit_scale.exp()
    score = scale * (output.image_embeds * output.text_embeds).sum(-1)
    text = model(pixel_values=pixels[:1], **every).text_embeds.unflatten(0, (len(looks), -1)).mean(1)
    right = (output.image_embeds @ text.T).argmax(1) == scenes.shape * len(COLOURS) + scenes.colour
    clear = (pictures.rating[:, None] - pictures.rating[None]) > 1
    intact = pictures.spoiled == 0
    well = intact & (pictures.rating > 9)
    return {
        "pickscore/retrieval": right[intact].float().mean().item(),
        "pickscore/preference": (score[:, None] > score[None])[clear].float().mean().item(),
        "pickscore/score_intact": score[intact].mean().item(),
        "pickscore/score_well_filmed": score[well].mean().item(),
        "pickscore/score_badly_filmed": score[intact & (pictures.rating < 4)].mean().item(),
        "pickscore/score_spoiled": score[pictures.spoiled > 0.5].mean().item(),
    }


@torch.no_grad()
def detection_quality(out: Path, pictures: Pictures) -> dict[str, float]:
    """On pictures spoiled by less than one half: whether landmark and shape are found at a score above 0.5,
    and where."""
    model = YolosForObjectDetection.from_pretrained(out / "detection", dtype=torch.float32)
    seen = pictures.spoiled < 0.5
    objects = objects_in(pictures.scenes[seen], pictures.moment[seen])
    output = model(pixel_values=normalised(pictures.frames[seen].float() / 255))
    scores = output.logits.softmax(-1)[..., :NOTHING]
    landmark, there = scores[..., len(SHAPES) :], objects.label[:, 1] != NOTHING
    score, kind = landmark.max(-1)
    found, token = score.amax(1) > 0.5, score.argmax(1)
    every = torch.arange(len(token))
    boxes = box_convert(output.pred_boxes[every, token], "cxcywh", "xyxy")
    true = box_convert(objects.box[:, 1], "cxcywh", "xyxy")
    overlap = box_iou(boxes, true).diagonal()[found & there]
    named = kind[every, token] + len(SHAPES) == objects.label[:, 1]
    shape = scores[..., : len(SHAPES)].amax(1)
    return {
        "detection/landmark_recall": found[there].float().mean().item(),
        "detection/landmark_precision": there[found].float().mean().item(),
        "detection/landmark_named": named[found & there].float().mean().item(),
        "detection/landmark_iou": overlap.mean().item(),
        "detection/shape": (shape.argmax(1) == objects.label[:, 0]).float().mean().item(),
        "detection/shape_found": (shape.amax(1) > 0.5).float().mean().item(),
    }


@torch.no_grad()
def samples_quality(
    out: Path, frames: Float[Tensor, "videos frames 3 height width"], prompts: list[str]
) -> dict[str, float]:
    """Score sampled videos with the rewards: PickScore, the share whose direction `action` recognises, and
    V-JEPA's error."""
    action = VideoMAEForVideoClassification.from_pretrained(out / "action", dtype=torch.float32)
    said = torch.tensor(
        [next(DIRECTIONS.index(word) for word in prompt.split() if word in DIRECTIONS) for prompt in prompts]
    )
    surprise = surprises(
        VJEPA2Model.from_pretrained(out / "vjepa", dtype=torch.float32), frames, fixed_masks()
    )
    return {
        "pickscore": pickscores(out, frames[:, 4], prompts).mean().item(),
        "action": (action(pixel_values=normalised(frames)).logits.argmax(1) == said).float().mean().item(),
        "vjepa_loss": surprise.mean().item(),
        "vjepa_loss_deviation": surprise.std().item(),
    }


def pickscores(
    out: Path, frames: Float[Tensor, "frames 3 height width"], texts: list[str]
) -> Float[Tensor, " frames"]:
    """PickScore of each frame with its text."""
    model, tokenizer = (
        CLIPModel.from_pretrained(out / "pickscore", dtype=torch.float32),
        AutoTokenizer.from_pretrained(out / "pickscore"),
    )
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    output = model(pixel_values=clip_normalised(frames), **tokens)
    score: Tensor = model.logit_scale.exp() * (output.image_embeds * output.text_embeds).sum(-1)
    return score


def fixed_masks() -> list[tuple[Tensor, Tensor]]:
    """Two masks of each kind, always the same."""
    generator = Generator().manual_seed(0)
    return [draw_masks(generator, *blocks) for blocks in MASK_BLOCKS for _ in range(2)]
