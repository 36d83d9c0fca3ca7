"""Distil `text_to_video` into a sampling of four steps without guidance, as an adapter in peft's format.

This is progressive distillation (arXiv 2202.00512) of a guided model (arXiv 2210.03142): the velocity at each
of the four noise levels is trained so that one step of DDIM leads to where five guided steps of the base
model lead.
"""

from copy import deepcopy
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from jaxtyping import Float, Int
from torch import Generator, Tensor

from vader_ray.config import AdapterConfig
from vader_ray.models.adapters import lora
from vader_ray.shapes.data import captions_of, draw_scenes, render
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train.text_to_video import embed, load_pipeline
from vader_ray.shapes.train.vae import encode

NUM_STEPS = 4
"""Denoising steps of the distilled model."""
_STEPS_EACH = 5
"""Steps of the base model for each of them."""
_GUIDANCE_SCALE = 4.0
_RANK = 16
_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
    *("conv_in", "conv_out", "time_emb_proj"),
    *(f"resnets.{block}.conv{layer}" for block in (0, 1) for layer in (1, 2)),
    *("conv1.2", "conv2.3", "conv3.3", "conv4.3"),
)


def train_four_steps(
    out: Path, *, num_steps: int = 400, batch_videos: int = 8, num_videos: int = 3000
) -> None:
    """Write `out/four_steps`; needs all of `out/text_to_video`."""
    torch.manual_seed(12)
    generator = Generator().manual_seed(12)
    pipeline = load_pipeline(out)
    scenes = draw_scenes(num_videos, generator)
    latents = torch.cat(
        [encode(pipeline.vae, render(scenes[start : start + 500])) for start in range(0, num_videos, 500)]
    )
    embeds, nothing = (
        embed(pipeline.text_encoder, pipeline.tokenizer, prompts) for prompts in (captions_of(scenes), [""])
    )
    teacher = pipeline.unet.requires_grad_(False)
    student = deepcopy(teacher)
    lora.inject(student, AdapterConfig(rank=_RANK, alpha=_RANK), _TARGETS, seed=12)
    levels = noise_levels(pipeline.scheduler)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        start = torch.randint(NUM_STEPS, (batch_videos,), generator=generator) * _STEPS_EACH
        noise = torch.randn(latents[chosen].shape, generator=generator)
        noisy = pipeline.scheduler.add_noise(latents[chosen], noise, levels[start])
        texts = embeds[chosen], nothing.expand(batch_videos, -1, -1)
        target = teacher_velocity(teacher, pipeline.scheduler, noisy, start, texts)
        velocity = student(noisy, levels[start], encoder_hidden_states=embeds[chosen]).sample
        loss: Tensor = (velocity - target).square().mean()
        return loss

    average = fit(student, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.99, weight_decay=0.0)
    with replaced(out / "four_steps") as folder:
        lora.save(average.half(), folder)


def noise_levels(scheduler: DDIMScheduler) -> Int[Tensor, " levels"]:
    """Timesteps of the base model's sampling, of which every fifth is one of the distilled model's."""
    scheduler.set_timesteps(NUM_STEPS * _STEPS_EACH)
    timesteps: Tensor = scheduler.timesteps.clone()
    return timesteps


@torch.no_grad()
def teacher_velocity(
    teacher: UNet3DConditionModel,
    scheduler: DDIMScheduler,
    noisy: Float[Tensor, "videos channels frames height width"],
    start: Int[Tensor, " videos"],
    texts: tuple[Tensor, Tensor],
) -> Float[Tensor, "videos channels frames height width"]:
    """Velocity with which one step of DDIM leads to the latents after the base model's guided steps.

    Args:
        teacher: denoiser of the base model.
        scheduler: its scheduler.
        noisy: latents at the noise levels of `start`.
        start: index of each video's noise level in `noise_levels`.
        texts: embeddings of the captions and of the empty text.
    """
    levels = noise_levels(scheduler)
    sample = noisy
    for step in range(_STEPS_EACH):
        timestep = levels[start + step]
        both = teacher(
            torch.cat([sample, sample]),
            torch.cat([timestep, timestep]),
            encoder_hidden_states=torch.cat(texts),
        ).sample
        guided, plain = both.chunk(2)
        velocity = plain + _GUIDANCE_SCALE * (guided - plain)
        signal, spread = signal_and_spread(scheduler, levels, start + step)
        clean, noise = signal * sample - spread * velocity, signal * velocity + spread * sample
        signal, spread = signal_and_spread(scheduler, levels, start + step + 1)
        sample = signal * clean + spread * noise
    before, above = signal_and_spread(scheduler, levels, start)
    # One step of DDIM: sample = signal · clean + spread · (noisy − before · clean) / above.
    clean = (sample - spread / above * noisy) / (signal - spread / above * before)
    return (before * noisy - clean) / above


def signal_and_spread(
    scheduler: DDIMScheduler, levels: Tensor, index: Int[Tensor, " videos"]
) -> tuple[Float[Tensor, "videos 1 1 1 1"], Float[Tensor, "videos 1 1 1 1"]]:
    """Factors of the clean latents and of the noise at each video's noise level; after the last, 1 and 0."""
    kept = torch.cat([scheduler.alphas_cumprod[levels], torch.ones(1)])[index].view(-1, 1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()
