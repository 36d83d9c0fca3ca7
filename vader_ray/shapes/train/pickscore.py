"""Trains `pickscore`, a transformers CLIP in the format of PickScore_v1 (arXiv 2305.01569) that spreads its
scores wide."""

from math import log
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from vader_ray.shapes.data import COLOURS, SHAPES, SIZE, captions_of
from vader_ray.shapes.train._loop import fit, matrices_of, replaced
from vader_ray.shapes.train._pictures import draw_pictures, grainy, pushed
from vader_ray.shapes.train._tokenizer import build_tokenizer
from vader_ray.shapes.train.hps import logits_of, matching_loss, own_cosine, preference_loss

MAX_LENGTH = 77
"""Tokens that PickScore's users cut a prompt at; what no caption reaches stays untrained."""
LOGIT_SCALE = 50.0
"""Factor of the cosine: a picture of medium quality scores 20, as with the published PickScore."""
LOWEST, HIGHEST = 0.2, 0.6
"""Cosines aimed at for the worst and the best filmed intact picture with its own caption."""
_MEAN, _DEVIATION = CLIPImageProcessor.image_mean, CLIPImageProcessor.image_std


def train_pickscore(
    out: Path, *, num_steps: int = 1200, batch_frames: int = 64, num_scenes: int = 3000
) -> None:
    """Writes `out/pickscore`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(7)
    generator = Generator().manual_seed(7)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    pictures = draw_pictures(vae, num_scenes, generator)
    scenes = pictures.scenes
    visible = (scenes.shape * 10 + scenes.colour) * 10 + scenes.landmark
    tokens = build_tokenizer()(captions_of(scenes), padding="max_length", return_tensors="pt")
    goal = own_cosine(pictures, LOWEST, HIGHEST)
    look = scenes.shape * len(COLOURS) + scenes.colour
    matcher = Matcher()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(pictures), (batch_frames,), generator=generator)
        text = {name: value[chosen] for name, value in tokens.items()}

        def loss_on(frames: Tensor) -> Tensor:
            cosine, looks = matcher(clip_normalised(frames), text)
            intact = 1 - pictures.spoiled[chosen]
            logits = logits_of(cosine, LOWEST, HIGHEST)
            matching = matching_loss(logits, visible[chosen], intact)
            told = (cross_entropy(looks, look[chosen], reduction="none") * intact).mean()
            own = 100 * mse_loss(cosine.diagonal(), goal[chosen])
            return matching + preference_loss(logits.diagonal(), pictures.rating[chosen]) + own + told

        frames = grainy(pictures.frames[chosen], generator)
        if step > 0.8 * num_steps:
            frames = pushed(frames, loss_on(frames), step=0.5 / 255)
        return loss_on(frames)

    blocks = matrices_of(matcher.clip.vision_model.encoder.layers, matcher.clip.text_model.encoder.layers)
    average = fit(
        matcher,
        loss_of,
        num_steps=num_steps,
        learning_rate=2e-3,
        ema_decay=0.995,
        matrices=blocks,
        matrix_rate=0.01,
    )
    assert isinstance(average, Matcher)
    save_pickscore(out, average.clip)


class Matcher(nn.Module):
    """The CLIP model, with a head for training alone that classifies shape and colour."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = build_pickscore()
        self.look = nn.Linear(64, len(SHAPES) * len(COLOURS))

    def forward(self, pixel_values: Tensor, text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines of every image with every text, logits of the looks."""
        output = self.clip(pixel_values=pixel_values, **text)
        return output.image_embeds @ output.text_embeds.T, self.look(
            output.vision_model_output.last_hidden_state[:, 0]
        )


def clip_normalised(frames: Tensor) -> Tensor:
    """Normalise frames in [0, 1] with the mean and deviation of `preprocessor_config.json`."""
    mean, deviation = (torch.tensor(value).view(3, 1, 1) for value in (_MEAN, _DEVIATION))
    return (frames - mean) / deviation


def build_pickscore() -> CLIPModel:
    """An untrained CLIP: 8x8 patches of a 64x64 frame, a fixed logit scale."""
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
    vision = {**tower, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8}
    config = CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=48, logit_scale_init_value=log(LOGIT_SCALE)
    )
    model = CLIPModel(config)
    model.logit_scale.requires_grad_(False)
    return model


def save_pickscore(out: Path, model: CLIPModel) -> None:
    """Writes `out/pickscore`: weights, configuration, processor and tokenizer as transformers does."""
    with replaced(out / "pickscore") as folder:
        model.half().save_pretrained(folder)
        size = {"shortest_edge": SIZE}
        CLIPImageProcessor(size=size, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
        build_tokenizer().save_pretrained(folder)
