"""A recipe with few denoising steps and prompts, whose step costs little to count."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from vader_ray import models
from vader_ray.config import WHOLE_SAMPLING, ExperimentConfig, SamplingConfig, split_image
from vader_ray.training.experiment import batching

_NUM_PROMPTS = 8
"""Number of prompts that are encoded in the estimate; a text encoder's batch is never larger."""


@contextmanager
def shortened(config: ExperimentConfig, depth: int) -> Iterator[ExperimentConfig]:
    """Shorten the recipe: few denoising steps, few prompts with blank images, a small evaluation.

    Prompts get no image if they have none and the model does not need one.
    """
    with tempfile.TemporaryDirectory(prefix="vader_ray_blank_") as folder:
        image = Path(folder) / "blank.png"
        Image.new("RGB", (config.sampling.width, config.sampling.height)).save(image)
        start = f"{image} | " if _takes_images(config) else ""
        texts = [split_image(prompt)[1] for prompt in config.prompts.train][:_NUM_PROMPTS]
        validation = [split_image(prompt)[1] for prompt in config.prompts.validation][:_NUM_PROMPTS]
        prompts = {
            "train": tuple(start + text for text in texts),
            "validation": tuple(start + text for text in validation),
            "test": None,
        }
        num_videos = max(2, batching(config.runtime).prefix)
        # few steps may not reach the chosen one of two denoisers, so both are counted with an adapter
        networks = config.adapter.networks if config.adapter.text_encoders() else None
        evaluation = config.evaluation.model_copy(update={"num_videos": num_videos, "num_shown": 1})
        yield config.model_copy(
            update={
                "adapter": config.adapter.model_copy(update={"networks": networks}),
                "prompts": config.prompts.model_copy(update=prompts),
                "sampling": _short_sampling(config.sampling, depth),
                "evaluation": evaluation,
                "runtime": config.runtime.model_copy(
                    update={
                        "num_workers": config.runtime.workers_per_video,
                        "compile": "none",
                        "shard": 1,
                        "offload_weights": False,
                    }
                ),
            }
        )


def _takes_images(config: ExperimentConfig) -> bool:
    has_image = split_image(config.prompts.train[0])[0] is not None
    return has_image or not models.resolve(models.find_family(config.model)).images_are_optional


def _short_sampling(sampling: SamplingConfig, depth: int) -> SamplingConfig:
    """Keep ``depth`` gradient steps, and at most two of the other denoising steps on either side.

    Gradient steps anywhere in the sampling are counted as evenly spaced ones, coupled.
    """
    assert sampling.recompute != "auto", "chosen before an estimate"
    num_steps = sampling.num_inference_steps
    changes: dict[str, object] = {
        "truncation_depth": depth,
        "prefix_cache": "none",
        "guidance_interval": WHOLE_SAMPLING,
    }
    if sampling.truncation == "ode_adjoint":
        return sampling.model_copy(update=changes | {"num_inference_steps": min(num_steps, depth + 2)})
    if sampling.truncation not in ("last", "random", "window"):
        changes |= {"truncation": "uniform", "num_inference_steps": min(num_steps, 2 * depth + 1)}
        return sampling.model_copy(update=changes | {"truncation_options": {}})
    is_window = sampling.truncation == "window"
    start = int(sampling.truncation_options.get("start", 0))
    before = start if is_window else num_steps - depth
    after = num_steps - before - depth if is_window else 0
    start, rest = min(before, 2), min(max(after, 0), 2)
    changes |= {"truncation": "window", "num_inference_steps": start + depth + rest}
    return sampling.model_copy(update=changes | {"truncation_options": {"start": float(start)}})
