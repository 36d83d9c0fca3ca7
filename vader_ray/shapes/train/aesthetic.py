"""Trains `aesthetic`, a CLIP image encoder with a LAION-style linear head that rates how well a frame is
filmed."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn.functional import mse_loss
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from vader_ray.shapes.data import SIZE
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._pictures import draw_pictures, grainy, pushed
from vader_ray.shapes.train.hps import DEVIATION, MEAN, normalised

HEAD_FILE = "sac+logos+ava1-tiny-linearMSE.pth"


def train_aesthetic(
    out: Path, *, num_steps: int = 2000, batch_frames: int = 64, num_scenes: int = 3000
) -> None:
    """Writes `out/aesthetic`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(4)
    generator = Generator().manual_seed(4)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    pictures = draw_pictures(vae, num_scenes, generator)
    rater = Rater()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(pictures), (batch_frames,), generator=generator)
        frames = grainy(pictures.frames[chosen], generator)
        if step > 0.5 * num_steps:
            frames = pushed(
                frames, mse_loss(rater(normalised(frames)), pictures.rating[chosen]), step=1 / 255
            )
        return mse_loss(rater(normalised(frames)), pictures.rating[chosen])

    average = fit(rater, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.995)
    assert isinstance(average, Rater)
    save_aesthetic(out, average)


class Rater(nn.Module):
    """Image encoder and head as one module; rates frames that are already normalised."""

    def __init__(self) -> None:
        super().__init__()
        config = CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=256,
            projection_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=8,
            hidden_act="quick_gelu",
        )
        self.image_encoder = CLIPVisionModelWithProjection(config)
        final = nn.Linear(8, 1)
        self.layers = nn.Sequential(
            nn.Linear(48, 64),
            nn.Dropout(0.0),
            nn.Linear(64, 32),
            nn.Dropout(0.0),
            nn.Linear(32, 16),
            nn.Dropout(0.0),
            nn.Linear(16, 8),
            final,
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
        nn.init.constant_(final.bias, 5.0)
        final.weight.data.mul_(5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """One rating per frame."""
        embeds = self.image_encoder(pixel_values=pixel_values).image_embeds
        rating: Tensor = self.layers(embeds / embeds.norm(dim=-1, keepdim=True))
        return rating[:, 0]


def save_aesthetic(out: Path, rater: Rater) -> None:
    """Writes `out/aesthetic`: the image encoder as transformers does, the head as LAION does."""
    with replaced(out / "aesthetic") as folder:
        rater.half().image_encoder.save_pretrained(folder / "image_encoder")
        size = {"height": SIZE, "width": SIZE}
        CLIPImageProcessor(size=size, crop_size=size, image_mean=MEAN, image_std=DEVIATION).save_pretrained(
            folder / "image_encoder"
        )
        head = {f"layers.{name}": value for name, value in rater.layers.state_dict().items()}
        torch.save(head, folder / HEAD_FILE)
