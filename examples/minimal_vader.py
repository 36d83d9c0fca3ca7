"""VADER (arXiv 2407.08737, Algorithm 1) on a diffusers text-to-video pipeline, in one flat file.

No recipe, no Ray, no MLflow, and none of vader_ray's engine: plain PyTorch, diffusers and peft. Only the tiny
model and its reward model come from the package, so that the file runs on a laptop without a download:

    python examples/minimal_vader.py

The engine computes the same gradient (tests/examples/test_minimal_vader.py), with all frames of long videos
in bounded memory, any scheduler and pipeline, several workers, checkpoints and evaluation.
"""

import torch
from diffusers import DiffusionPipeline, TextToVideoSDPipeline
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import vader_ray as vr

NUM_FRAMES, HEIGHT, WIDTH = 8, 64, 64
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 20, 4.0
TRUNCATION_DEPTH = 1  # K: gradient flows through the last K denoising steps
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 16, 2, 1e-3
PROMPTS = ["a red star moving up", "a blue circle moving left", "a green square moving down"]


def add_lora(pipe: DiffusionPipeline, rank: int = 8, alpha: int = 8) -> list[Tensor]:
    """Freeze the pipeline, add a LoRA to the denoiser and return its trainable parameters."""
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), pipe.unet)
    return [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]


def sample_frames(
    pipe: DiffusionPipeline, prompts: list[str], noise: Tensor, truncation_depth: int
) -> Tensor:
    """Denoise from noise (batch, channels, frames, height, width); return frames in [0, 1] with gradient.

    The first denoising steps run without gradient; the last ``truncation_depth`` keep their graph.
    """
    with torch.no_grad():
        conditional, unconditional = pipe.encode_prompt(list(prompts), noise.device, 1, True)
    prompt_embeds = torch.cat([unconditional, conditional])
    pipe.scheduler.set_timesteps(NUM_INFERENCE_STEPS)
    latents = noise
    for index, timestep in enumerate(pipe.scheduler.timesteps):
        with torch.set_grad_enabled(index >= NUM_INFERENCE_STEPS - truncation_depth):
            model_input = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
            predicted = pipe.unet(model_input, timestep, encoder_hidden_states=prompt_embeds).sample
            unguided, guided = predicted.chunk(2)
            predicted = unguided + GUIDANCE_SCALE * (guided - unguided)
            latents = pipe.scheduler.step(predicted, timestep, latents).prev_sample
    images = latents.transpose(1, 2).flatten(0, 1) / pipe.vae.config.scaling_factor
    decoded = checkpoint(lambda latent: pipe.vae.decode(latent).sample, images, use_reentrant=False)
    frames: Tensor = (decoded / 2 + 0.5).clamp(0, 1).unflatten(0, (len(prompts), -1))
    return frames


def main() -> None:
    """Train a LoRA that raises the mean reward of the training prompts."""
    generator = torch.Generator().manual_seed(0)
    pipe = TextToVideoSDPipeline.from_pretrained(vr.packaged_weights("text_to_video"))
    reward = vr.load_reward("hps", weights="shapes:hps")
    lora = add_lora(pipe)
    optimizer = torch.optim.AdamW(lora, lr=LEARNING_RATE)
    height, width = HEIGHT // pipe.vae_scale_factor, WIDTH // pipe.vae_scale_factor
    shape = (BATCH_SIZE, pipe.unet.config.in_channels, NUM_FRAMES, height, width)
    for step in range(NUM_STEPS):
        prompts = [PROMPTS[(step * BATCH_SIZE + index) % len(PROMPTS)] for index in range(BATCH_SIZE)]
        noise = torch.randn(shape, generator=generator)
        frames = sample_frames(pipe, prompts, noise, TRUNCATION_DEPTH)
        mean_reward = reward(frames, prompts).mean()
        (-mean_reward).backward()
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}/{NUM_STEPS}: reward {mean_reward.item():.4f}")


if __name__ == "__main__":
    main()
