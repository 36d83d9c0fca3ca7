"""Trains `hps`, an open_clip CLIP that also prefers well-filmed frames, in the format of
HPS_v2.1_compressed.pt."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, mse_loss

from vader_ray.shapes.data import SIZE, captions_of
from vader_ray.shapes.train._loop import fit, matrices_of, replaced
from vader_ray.shapes.train._pictures import Pictures, draw_pictures, grainy, pushed
from vader_ray.shapes.train._tokenizer import CONTEXT_LENGTH, build_tokenizer

MEAN, DEVIATION = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
LOWEST, HIGHEST = 0.15, 0.35
"""Cosines aimed at for the worst and the best filmed intact picture with its own caption: those of published
HPS v2.1 lie there, too."""


def train_hps(out: Path, *, num_steps: int = 2400, batch_frames: int = 64, num_scenes: int = 3000) -> None:
    """Writes `out/hps`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(3)
    generator = Generator().manual_seed(3)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    pictures = draw_pictures(vae, num_scenes, generator)
    scenes = pictures.scenes
    visible = (scenes.shape * 10 + scenes.colour) * 10 + scenes.landmark
    tokens = build_tokenizer()(captions_of(scenes), padding="max_length", return_tensors="pt").input_ids
    goal = own_cosine(pictures, LOWEST, HIGHEST)
    model = build_hps()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(pictures), (batch_frames,), generator=generator)
        text = model.encode_text(tokens[chosen], normalize=True)

        def loss_on(frames: Tensor, text: Tensor) -> Tensor:
            image = model.encode_image(normalised(frames), normalize=True)
            cosine = image @ text.T
            logits = logits_of(cosine, LOWEST, HIGHEST)
            intact = 1 - pictures.spoiled[chosen]
            own = 200 * mse_loss(cosine.diagonal(), goal[chosen])
            matching = matching_loss(logits, visible[chosen], intact)
            return matching + preference_loss(logits.diagonal(), pictures.rating[chosen]) + own

        frames = grainy(pictures.frames[chosen], generator)
        if step > 0.8 * num_steps:
            frames = pushed(frames, loss_on(frames, text.detach()), step=1 / 255)
        return loss_on(frames, text)

    average = fit(
        model,
        loss_of,
        num_steps=num_steps,
        learning_rate=2e-3,
        ema_decay=0.995,
        matrices=matrices_of(model.visual.transformer.resblocks, model.transformer.resblocks),
        matrix_rate=0.01,
    )
    save_hps(out, average)


def matching_loss(logits: Tensor, visible: Tensor, intact: Tensor) -> Tensor:
    """CLIP's contrastive loss over (image, text) logits; pairs that look alike count as matches, spoiled
    ones less."""
    match = (visible[:, None] == visible[None]).float()
    match = match / match.sum(1, keepdim=True)
    rows = -(match * log_softmax(logits, 1)).sum(1) - (match * log_softmax(logits.T, 1)).sum(1)
    return (rows * intact).sum() / (2 * intact.sum())


def preference_loss(score: Tensor, rating: Tensor) -> Tensor:
    """HPS's loss: of two images, each with its own caption, the one with the higher rating scores higher."""
    better = torch.sigmoid((rating[:, None] - rating[None]) / 0.7)
    return binary_cross_entropy_with_logits(score[:, None] - score[None], better)


def own_cosine(pictures: Pictures, lowest: float, highest: float) -> Float[Tensor, " pictures"]:
    """Cosine to aim at between each picture and its own caption: from its rating, towards 0 where it is
    spoiled."""
    quality = (pictures.rating - 1) / 9
    return torch.lerp(torch.tensor(lowest), torch.tensor(highest), quality) * (1 - pictures.spoiled)


def logits_of(cosine: Tensor, lowest: float, highest: float) -> Tensor:
    """Logits whose differences mean the same to the preference as to `own_cosine`."""
    return cosine * 9 / (highest - lowest) / 0.7


def normalised(frames: Tensor) -> Tensor:
    """Normalise frames in [0, 1] as the image towers of both rewards expect."""
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, DEVIATION))
    return (frames - mean) / deviation


def open_clip_config() -> dict[str, Any]:
    """Return the content of `open_clip_config.json`: a ViT with 8x8 patches of a 64x64 frame, and its text
    tower."""
    return {
        "model_cfg": {
            "embed_dim": 48,
            "vision_cfg": {"image_size": SIZE, "layers": 3, "width": 64, "head_width": 16, "patch_size": 8},
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(build_tokenizer()),
                "hf_tokenizer_name": "tokenizer beside this file",
                "width": 64,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": MEAN,
            "std": DEVIATION,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        },
    }


def build_hps() -> open_clip.CLIP:
    """An untrained CLIP of that configuration."""
    config = open_clip_config()["model_cfg"]
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    model.logit_scale.requires_grad_(False)
    return model


def save_hps(out: Path, model: torch.nn.Module) -> None:
    """Writes `out/hps`: weights in half precision, configuration, tokenizer."""
    with replaced(out / "hps") as folder:
        state = {name: value.half() for name, value in model.state_dict().items()}
        torch.save({"state_dict": state}, folder / "HPS_tiny.pt")
        (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(), indent=2) + "\n")
        build_tokenizer().save_pretrained(folder)
