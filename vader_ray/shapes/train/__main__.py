"""Trains and measures the embedded shapes: `python -m vader_ray.shapes.train all`, then `… evaluate`."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from time import process_time
from typing import Annotated

import torch
import typer
from rich import print as show

from vader_ray.shapes import CHECKPOINTS
from vader_ray.shapes.train.action import train_action
from vader_ray.shapes.train.aesthetic import train_aesthetic
from vader_ray.shapes.train.caption_classifier import train_caption_classifier
from vader_ray.shapes.train.detection import train_detection
from vader_ray.shapes.train.evaluate import evaluate
from vader_ray.shapes.train.four_steps import train_four_steps
from vader_ray.shapes.train.hps import train_hps
from vader_ray.shapes.train.images import draw_images
from vader_ray.shapes.train.pickscore import train_pickscore
from vader_ray.shapes.train.prompts import write_prompts
from vader_ray.shapes.train.svd import train_svd
from vader_ray.shapes.train.svd_vae import train_svd_vae
from vader_ray.shapes.train.text_to_video import train_text_to_video
from vader_ray.shapes.train.vae import train_vae
from vader_ray.shapes.train.video_reward import train_video_reward
from vader_ray.shapes.train.vjepa import train_vjepa
from vader_ray.shapes.train.vlm_judge import train_vlm_judge
from vader_ray.shapes.train.wan import train_wan
from vader_ray.shapes.train.wan_vae import train_wan_vae

_TRAINERS: dict[str, Callable[[Path], None]] = {
    "vae": train_vae,
    "text_to_video": train_text_to_video,
    "hps": train_hps,
    "aesthetic": train_aesthetic,
    "caption_classifier": train_caption_classifier,
    "vjepa": train_vjepa,
    "action": train_action,
    "pickscore": train_pickscore,
    "four_steps": train_four_steps,
    "detection": train_detection,
    "vlm_judge": train_vlm_judge,
    "video_reward": train_video_reward,
    "wan_vae": train_wan_vae,
    "wan": train_wan,
    "svd_vae": train_svd_vae,
    "svd": train_svd,
    "prompts": write_prompts,
    "images": draw_images,
}


class Part(StrEnum):
    """Argument of the command: one part, or all of them."""

    VAE = "vae"
    TEXT_TO_VIDEO = "text_to_video"
    HPS = "hps"
    AESTHETIC = "aesthetic"
    CAPTION_CLASSIFIER = "caption_classifier"
    VJEPA = "vjepa"
    ACTION = "action"
    PICKSCORE = "pickscore"
    FOUR_STEPS = "four_steps"
    DETECTION = "detection"
    VLM_JUDGE = "vlm_judge"
    VIDEO_REWARD = "video_reward"
    WAN_VAE = "wan_vae"
    WAN = "wan"
    SVD_VAE = "svd_vae"
    SVD = "svd"
    PROMPTS = "prompts"
    IMAGES = "images"
    ALL = "all"
    EVALUATE = "evaluate"


def main(
    part: Annotated[
        Part,
        typer.Argument(
            help="What to train; `vae` before all others, `wan_vae` before `wan`, `svd_vae` before `svd`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the checkpoints.")] = CHECKPOINTS,
    sheet: Annotated[
        Path | None, typer.Option(help="With `evaluate`: PNG of sampled held-out videos.")
    ] = None,
    num_threads: Annotated[int, typer.Option(help="CPU threads; one is often the fastest.")] = 1,
) -> None:
    """Trains one part of the embedded shapes data set, or all of them, or measures what is there."""
    torch.set_num_threads(num_threads)
    if part is Part.EVALUATE:
        for name, value in evaluate(out, sheet).items():
            show(f"{name:48s} {value:.3f}")
        return
    for name in _TRAINERS if part is Part.ALL else [part.value]:
        started = process_time()
        _TRAINERS[name](out)
        show(f"{name}: {process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    typer.run(main)
