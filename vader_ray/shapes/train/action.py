"""Train `action`, a VideoMAE (arXiv 2203.12602) that classifies the direction in which the shape moves."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor

from vader_ray.shapes.data import DIRECTIONS, NUM_FRAMES, SIZE, Scenes
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._pictures import pushed
from vader_ray.shapes.train._videos import IMAGENET_DEVIATION, IMAGENET_MEAN, draw_videos, normalised

PATCH, TUBELET = 8, 2


def train_action(out: Path, *, num_steps: int = 1200, batch_videos: int = 16, num_videos: int = 3000) -> None:
    """Writes `out/action`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(6)
    generator = Generator().manual_seed(6)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    videos = draw_videos(vae, num_videos, generator)
    truth = one_hot(videos.scenes.direction, len(DIRECTIONS)).float()
    # A video that is all noise has no direction.
    goal = torch.lerp(truth, torch.tensor(1 / len(DIRECTIONS)), videos.spoiled[:, None] ** 2)
    covered = occupancy(videos.scenes)
    watcher = Watcher()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(videos), (batch_videos,), generator=generator)
        frames = videos.frames[chosen].float() / 255
        frames = (frames + 4 / 255 * torch.randn(frames.shape, generator=generator)).requires_grad_()

        def loss_on(frames: Tensor) -> Tensor:
            logits, seen = watcher(normalised(frames))
            clear = 1 - videos.spoiled[chosen, None].expand_as(seen)
            return cross_entropy(logits, goal[chosen]) + binary_cross_entropy_with_logits(
                seen, covered[chosen], clear
            )

        if step > 2 / 3 * num_steps:
            frames = pushed(frames, loss_on(frames), step=1 / 255)
        return loss_on(frames)

    average = fit(watcher, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.995)
    assert isinstance(average, Watcher)
    save_action(out, average.classifier)


class Watcher(nn.Module):
    """The classifier, with a head for training alone that predicts which tokens the shape covers."""

    def __init__(self) -> None:
        super().__init__()
        labels = {index: f"moving {name}" for index, name in enumerate(DIRECTIONS)}
        config = VideoMAEConfig(
            image_size=SIZE,
            patch_size=PATCH,
            num_frames=NUM_FRAMES,
            tubelet_size=TUBELET,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            initializer_range=0.1,
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
        )
        self.classifier = VideoMAEForVideoClassification(config)
        self.cover = nn.Linear(config.hidden_size, 1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the directions, and of each token being covered by the shape."""
        output = self.classifier(pixel_values=pixel_values, output_hidden_states=True)
        return output.logits, self.cover(output.hidden_states[-1])[..., 0]


def occupancy(scenes: Scenes) -> Float[Tensor, "scenes tokens"]:
    """1 where the middle of a token lies within the radius of the shape's mean centre in the token's frames,
    else 0."""
    axis = (torch.arange(SIZE // PATCH) + 0.5) * 2 * PATCH / SIZE - 1
    middle = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    centre = scenes.centre.unflatten(1, (-1, TUBELET)).mean(2)
    distance: Tensor = (middle - centre[:, :, None, None]).norm(dim=-1)
    return (distance < scenes.radius[:, None, None, None]).float().flatten(1)


def save_action(out: Path, classifier: VideoMAEForVideoClassification) -> None:
    """Writes `out/action` as transformers does."""
    with replaced(out / "action") as folder:
        classifier.half().save_pretrained(folder)
        size = {"shortest_edge": SIZE}
        crop = {"height": SIZE, "width": SIZE}
        mean, deviation = list(IMAGENET_MEAN), list(IMAGENET_DEVIATION)
        processor = VideoMAEImageProcessor(size=size, crop_size=crop, image_mean=mean, image_std=deviation)
        processor.save_pretrained(folder)
