"""Tiny Open-Sora weights with random numbers, in the published files.

Names and shapes in ``tests/data`` are those of the state dicts of the published networks
(hpcaitech/Open-Sora at v1.2.0, ``STDiT3`` and ``VideoAutoencoderPipeline``): ``published`` as configured for
version 1.2; ``tiny`` with 2 blocks of each kind, 32 features, 2 heads and 40 tokens of 8 features, an image
autoencoder of 32, 32, 64, 64 channels and one in time of 32 channels in multiples of 1, 2, 2, 4, one residual
block per level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from tests.helpers.published_layouts import draw_inputs, draw_weights, read_layout
from vader_ray import models
from vader_ray.config import AdapterConfig, ModelConfig, Precision, SamplingConfig
from vader_ray.shapes.train._tokenizer import build_tokenizer

SAMPLING: dict[str, Any] = {
    "num_frames": 22,
    "height": 24,
    "width": 16,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
}
"""Two clips, the second with 2 of 5 latent frames; an odd number of latent rows, which the denoiser pads."""
NUM_TOKENS, CONTEXT_SIZE = 40, 8


def layout(name: str, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights, ``published`` or ``tiny``, of ``transformer`` or ``vae``."""
    both = read_layout(f"opensora_{name}")
    return {key.partition(":")[2]: shape for key, shape in both.items() if key.startswith(f"{part}:")}


def random_weights(part: str) -> dict[str, Tensor]:
    """Weights of a tiny network that leave no layer without effect; constants are the published ones."""
    weights = draw_weights(layout("tiny", part), seed=0)
    return weights | {name: value for name, value in _constants().items() if name in weights}


def _constants() -> dict[str, Tensor]:
    return {
        "rope.freqs": 1.0 / (10000 ** (torch.arange(0, 16, 2).float() / 16)),
        "scale": torch.tensor([3.85, 2.32, 2.33, 3.06]).view(1, 4, 1, 1, 1),
        "shift": torch.tensor([-0.10, 0.34, 0.27, 0.98]).view(1, 4, 1, 1, 1),
    }


def write_weights(folder: Path) -> Path:
    """A local copy of the three repositories, each as published."""
    for part in ("transformer", "vae"):
        (folder / part).mkdir(parents=True)
        save_file(random_weights(part), folder / part / "model.safetensors", metadata={"format": "pt"})
    tokenizer = build_tokenizer()
    sizes = {"d_model": CONTEXT_SIZE, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes))
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "text_encoder")
    return folder


def load_tiny(
    weights: Path, *, precision: Precision = "float32", chunk_size: int = 4, seed: int = 0, **sampling: Any
) -> Any:
    """The tiny pipeline with an adapter of rank 2."""
    return models.build(
        ModelConfig(
            family="opensora", weights=str(weights), precision=precision, decoder_precision=precision
        ),
        SamplingConfig(**(SAMPLING | sampling)),
        AdapterConfig(rank=2, alpha=4.0),
        seed=seed,
        chunk_size=chunk_size,
        device=torch.device("cpu"),
    )


def inputs() -> dict[str, Tensor]:
    """Random inputs of the networks, of two videos; the prompts have 7 and 31 tokens."""
    drawn = draw_inputs(
        {
            "latents": (2, 4, 7, 3, 4),
            "context": (2, NUM_TOKENS, CONTEXT_SIZE),
            "video": (1, 3, 22, 24, 16),
            "noise": (2, 4, 7, 3, 2),
        }
    )
    return drawn | {"mask": (torch.arange(NUM_TOKENS) < torch.tensor([[7], [31]])).long()}
