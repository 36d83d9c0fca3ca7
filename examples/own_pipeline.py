"""Train the LoRA of a diffusers pipeline that is already in memory, in a plain Python loop.

    python examples/own_pipeline.py

Replace the tiny packaged pipeline by any video pipeline of diffusers that the package knows, for example
``diffusers.WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", torch_dtype=torch.bfloat16)``.
"""

from diffusers import DiffusionPipeline

import vader_ray as vr

PROMPTS = ["a red star moving up", "a blue circle moving left", "a green square moving down"]


def main(num_steps: int = 8) -> None:
    """Train, and save the adapter in a folder that `vader_ray.load_adapter` reads."""
    pipe = DiffusionPipeline.from_pretrained(vr.packaged_weights("text_to_video"))
    model = vr.VideoModel.from_pipeline(
        pipe, num_frames=8, height=64, width=64, num_inference_steps=20, guidance_scale=4.0, lora_rank=8
    )
    hps = vr.load_reward("hps", weights="shapes:hps")
    trainer = vr.Trainer(
        model,
        rewards={hps: 1.0, "colorfulness": 0.1},
        prompts=PROMPTS,
        learning_rate=1e-3,
        num_steps=num_steps,
        videos_per_step=2,
    )
    for step in trainer:
        print(f"step {step.step}: objective {step.reward:.4f}, {step.rewards}")
    print(trainer.save_adapter("my_adapter"))


if __name__ == "__main__":
    main()
