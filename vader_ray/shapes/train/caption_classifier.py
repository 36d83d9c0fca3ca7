"""Train the caption classifier on videos of every quality with truthful labels."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from vader_ray.shapes.caption_classifier import CaptionClassifier
from vader_ray.shapes.data import draw_scenes, render
from vader_ray.shapes.train._loop import fit, replaced


def train_caption_classifier(
    out: Path, *, num_steps: int = 1200, batch_videos: int = 24, num_videos: int = 4000
) -> None:
    """Write `out/caption_classifier`."""
    torch.manual_seed(2)
    generator = Generator().manual_seed(2)
    scenes = draw_scenes(num_videos, generator)
    videos = (render(scenes) * 255).byte()
    classifier = CaptionClassifier()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        frames = videos[chosen].float() / 255
        grain = 0.08 * torch.rand(batch_videos, 1, 1, 1, 1, generator=generator)
        logits = classifier(frames + grain * torch.randn(frames.shape, generator=generator))
        return sum(
            (cross_entropy(logits[name], getattr(scenes, name)[chosen]) for name in logits), torch.tensor(0.0)
        )

    average = fit(classifier, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.99)
    with replaced(out / "caption_classifier") as folder:
        save_file(average.half().state_dict(), folder / "caption_classifier.safetensors")
