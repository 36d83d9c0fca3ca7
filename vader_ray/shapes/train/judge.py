"""Trains `judge` on videos of every quality with truthful labels."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from vader_ray.shapes.data import draw_scenes, render
from vader_ray.shapes.judge import Judge
from vader_ray.shapes.train._loop import fit, replaced


def train_judge(out: Path, *, num_steps: int = 1200, batch_videos: int = 24, num_videos: int = 4000) -> None:
    """Writes `out/judge`."""
    torch.manual_seed(2)
    generator = Generator().manual_seed(2)
    scenes = draw_scenes(num_videos, generator)
    videos = (render(scenes) * 255).byte()
    judge = Judge()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        frames = videos[chosen].float() / 255
        grain = 0.08 * torch.rand(batch_videos, 1, 1, 1, 1, generator=generator)
        logits = judge(frames + grain * torch.randn(frames.shape, generator=generator))
        return sum(
            (cross_entropy(logits[name], getattr(scenes, name)[chosen]) for name in logits), torch.tensor(0.0)
        )

    average = fit(judge, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.99)
    with replaced(out / "judge") as folder:
        save_file(average.state_dict(), folder / "judge.safetensors")
