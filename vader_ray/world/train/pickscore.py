"""Trains `pickscore`, a transformers CLIP in the format of PickScore_v1 (arXiv 2305.01569) that spreads its scores wide."""

from math import log
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn.functional import mse_loss
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from vader_ray.world.data import SIZE, captions_of
from vader_ray.world.train._loop import fit, replaced
from vader_ray.world.train._pictures import Pictures, draw_pictures, pushed
from vader_ray.world.train._tokenizer import build_tokenizer
from vader_ray.world.train.hps import matching_loss, preference_loss

MAX_LENGTH = 77
"""Tokens that PickScore's users cut a prompt at; what no caption reaches stays untrained."""
LOGIT_SCALE = 50.0
"""What a cosine is multiplied with: a picture of middling quality scores 20, as PickScore's do."""
LOWEST, HIGHEST = 0.2, 0.6
"""Cosines aimed at for the worst and the best filmed intact picture with its own caption."""
_MEAN, _DEVIATION = CLIPImageProcessor.image_mean, CLIPImageProcessor.image_std


def train_pickscore(out: Path, *, num_steps: int = 2400, batch_frames: int = 64, num_scenes: int = 3000) -> None:
    """Writes `out/pickscore`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(7)
    generator = Generator().manual_seed(7)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    pictures = draw_pictures(vae, num_scenes, generator)
    scenes = pictures.scenes
    visible = (scenes.shape * 10 + scenes.colour) * 2 + scenes.box
    tokens = build_tokenizer()(captions_of(scenes), padding="max_length", return_tensors="pt")
    goal = own_cosine(pictures)
    model = build_pickscore()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(pictures), (batch_frames,), generator=generator)
        text = {name: value[chosen] for name, value in tokens.items()}

        def loss_on(frames: Tensor) -> Tensor:
            output = model(pixel_values=clip_normalised(frames), **text)
            cosine = output.image_embeds @ output.text_embeds.T
            matching = matching_loss(LOGIT_SCALE * cosine, visible[chosen], 1 - pictures.spoiled[chosen])
            # At this scale a difference in rating means the same to both of the other losses.
            agreed = cosine * 9 / (HIGHEST - LOWEST) / 0.7
            preference = preference_loss(agreed, pictures.rating[chosen])
            return matching + preference + 20 * mse_loss(cosine.diagonal(), goal[chosen])

        frames = pictures.frames[chosen].float() / 255
        frames = (frames + 4 / 255 * torch.randn(frames.shape, generator=generator)).requires_grad_()
        if step > 0.8 * num_steps:
            frames = pushed(frames, loss_on(frames), step=2 / 255)
        return loss_on(frames)

    average = fit(model, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.995)
    assert isinstance(average, CLIPModel)
    save_pickscore(out, average)


def own_cosine(pictures: Pictures) -> Float[Tensor, " pictures"]:
    """Cosine to aim at between each picture and its own caption: from its rating, towards 0 where it is spoiled."""
    quality = (pictures.rating - 1) / 9
    return torch.lerp(torch.tensor(LOWEST), torch.tensor(HIGHEST), quality) * (1 - pictures.spoiled)


def clip_normalised(frames: Tensor) -> Tensor:
    """Frames in [0, 1] with CLIP's own mean and deviation, as `preprocessor_config.json` says."""
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (_MEAN, _DEVIATION))
    return (frames - mean) / deviation


def build_pickscore() -> CLIPModel:
    """An untrained CLIP: 4x4 patches of a 32x32 frame, a fixed logit scale."""
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 48}
    text = {
        **tower,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**tower, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=48, logit_scale_init_value=log(LOGIT_SCALE))
    model = CLIPModel(config)
    model.logit_scale.requires_grad_(False)
    return model


def save_pickscore(out: Path, model: CLIPModel) -> None:
    """Writes `out/pickscore`: weights, configuration, processor and tokenizer as transformers does."""
    with replaced(out / "pickscore") as folder:
        model.save_pretrained(folder)
        size = {"shortest_edge": SIZE}
        CLIPImageProcessor(size=size, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
