"""Trains `detection`, a YOLOS (arXiv 2106.00666) that finds the shape and the landmark, softly painted
ones too."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import TextToVideoSDPipeline
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, pad
from torchvision.ops import box_convert, generalized_box_iou_loss
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

from vader_ray.shapes.data import (
    LANDMARK_HALF_SIDE,
    LANDMARKS,
    NUM_FRAMES,
    SHAPES,
    SIZE,
    Scenes,
    captions_of,
    draw_scenes,
    render,
    truthful,
)
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._pictures import draw_pictures, pushed
from vader_ray.shapes.train._videos import normalised
from vader_ray.shapes.train.text_to_video import load_pipeline
from vader_ray.shapes.train.vae import decode, encode

PATCH = 8
NUM_TOKENS = 4
LABELS = (*SHAPES, *LANDMARKS[1:])
NOTHING = len(LABELS)
_EXTENT = torch.tensor(
    [
        [-0.92, -0.92, 0.92, 0.92],  # circle
        [-0.82, -0.82, 0.82, 0.82],  # square
        [-1.386, -1.7, 1.386, 0.7],  # triangle
        [-1.236, -1.30, 1.236, 1.052],  # star
        [-0.90, -1.08, 0.90, 0.575],  # heart
        [-0.94, -0.94, 0.94, 0.94],  # ring
    ]
)
"""Left, top, right and bottom of each shape around its centre, in units of its radius."""
_LANDMARK_EXTENT = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],  # nothing
        [-1.0, -1.0, 1.0, 1.0],  # box
        [-0.75, -0.93, 0.75, 1.0],  # tree
        [-0.82, -1.0, 0.82, 1.0],  # house
    ]
)
"""The same of each landmark, in units of `LANDMARK_HALF_SIDE`."""


@dataclass(frozen=True)
class Objects:
    """Targets of detection: the shape, then the landmark; boxes as centre and size in [0, 1]."""

    label: Int[Tensor, "pictures 2"]
    box: Float[Tensor, "pictures 2 4"]
    patch: Int[Tensor, "pictures patches"]


def train_detection(
    out: Path,
    *,
    num_steps: int = 2400,
    batch_frames: int = 64,
    num_scenes: int = 3000,
    num_redrawn: int = 600,
) -> None:
    """Writes `out/detection`; needs all of `out/text_to_video`."""
    torch.manual_seed(8)
    generator = Generator().manual_seed(8)
    pipeline = load_pipeline(out)
    pictures = draw_pictures(pipeline.vae, num_scenes, generator)
    painted, scenes = redrawn(pipeline, num_redrawn, generator)
    source, moment = (
        torch.arange(num_redrawn * NUM_FRAMES) // NUM_FRAMES,
        torch.arange(NUM_FRAMES).repeat(num_redrawn),
    )
    drawn = (
        (pictures.frames, objects_in(pictures.scenes, pictures.moment), pictures.spoiled),
        (painted.flatten(0, 1), objects_in(scenes[source], moment), torch.zeros(len(source))),
    )
    finder = Finder()

    def loss_of(step: int) -> Tensor:
        frames, objects, spoiled = drawn[step % 3 == 0]
        chosen = torch.randint(len(frames), (batch_frames,), generator=generator)
        pixels = recoloured(frames[chosen].float() / 255, generator)
        pixels = (pixels + 4 / 255 * torch.randn(pixels.shape, generator=generator)).requires_grad_()
        goal = Objects(objects.label[chosen], objects.box[chosen], objects.patch[chosen])

        def loss_on(pixels: Tensor) -> Tensor:
            logits, boxes, patches = finder(normalised(pixels))
            return detection_loss(logits, boxes, patches, goal, spoiled[chosen])

        if step > 2 / 3 * num_steps:
            pixels = pushed(pixels, loss_on(pixels), step=0.5 / 255)
        return loss_on(pixels)

    average = fit(finder, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.995)
    assert isinstance(average, Finder)
    save_detection(out, average.detector)


def recoloured(pixels: Tensor, generator: Generator) -> Tensor:
    """The pictures, half of them in other colours: a box that is painted red is still there."""
    num = len(pixels)
    order = torch.rand(num, 3, generator=generator).argsort(1)[:, :, None, None].expand_as(pixels)
    gain = 0.6 + 0.8 * torch.rand(num, 3, 1, 1, generator=generator)
    changed = (pixels.gather(1, order) * gain).clamp(0, 1)
    changed = torch.where(torch.rand(num, 1, 1, 1, generator=generator) < 0.3, 1 - changed, changed)
    return torch.where(torch.rand(num, 1, 1, 1, generator=generator) < 0.5, changed, pixels)


@torch.no_grad()
def redrawn(
    pipeline: TextToVideoSDPipeline,
    num_videos: int,
    generator: Generator,
    *,
    num_steps: int = 20,
    start: int = 8,
) -> tuple[Tensor, Scenes]:
    """Videos as the base model paints them and the scenes they show: noised half way, denoised with true
    captions.

    This is SDEdit (arXiv 2108.01073): things stay where they were drawn, so that the labels hold.
    """
    scenes = truthful(draw_scenes(num_videos, generator))
    scheduler, parts = pipeline.scheduler, []
    for first in range(0, num_videos, 20):
        part = scenes[first : first + 20]
        prompt_embeds, _ = pipeline.encode_prompt(
            captions_of(part), "cpu", 1, do_classifier_free_guidance=False
        )
        latents = encode(pipeline.vae, render(part))
        scheduler.set_timesteps(num_steps)
        timesteps = scheduler.timesteps[start:]
        latents = scheduler.add_noise(latents, torch.randn(latents.shape, generator=generator), timesteps[:1])
        for timestep in timesteps:
            output = pipeline.unet(latents, timestep, encoder_hidden_states=prompt_embeds).sample
            latents = scheduler.step(output, timestep, latents).prev_sample
        parts.append((decode(pipeline.vae, latents) * 255).round().byte())
    return torch.cat(parts), scenes


def objects_in(scenes: Scenes, moment: Int[Tensor, " scenes"]) -> Objects:
    """Return the targets in the frame at `moment` of each scene, with boxes clipped to the frame."""
    here = scenes.centre[torch.arange(len(scenes)), moment]
    shape = here.repeat(1, 2) + _EXTENT[scenes.shape] * scenes.radius[:, None]
    side = _LANDMARK_EXTENT[scenes.landmark] * LANDMARK_HALF_SIDE
    corners = torch.stack([shape, scenes.landmark_centre.repeat(1, 2) + side], 1).clamp(-1, 1)
    landmark = torch.where(scenes.landmark > 0, len(SHAPES) - 1 + scenes.landmark, NOTHING)
    return Objects(
        label=torch.stack([scenes.shape, landmark], 1),
        box=box_convert((corners + 1) / 2, "xyxy", "cxcywh"),
        patch=patch_labels(scenes, here, landmark),
    )


def patch_labels(
    scenes: Scenes, here: Float[Tensor, "scenes 2"], landmark: Tensor
) -> Int[Tensor, "scenes patches"]:
    """Classify the middle of each patch: background, shape or landmark."""
    axis = (torch.arange(SIZE // PATCH) + 0.5) * 2 * PATCH / SIZE - 1
    middle = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)
    inside = (middle - scenes.landmark_centre[:, None]).abs().amax(-1) < LANDMARK_HALF_SIDE
    behind = torch.where(inside, landmark[:, None], NOTHING)
    near = (middle - here[:, None]).norm(dim=-1) < scenes.radius[:, None]
    return torch.where(near, scenes.shape[:, None], behind)


class Finder(nn.Module):
    """The detector, with a head for training alone that classifies each patch."""

    def __init__(self) -> None:
        super().__init__()
        labels = dict(enumerate(LABELS))
        config = YolosConfig(
            image_size=(SIZE, SIZE),
            patch_size=PATCH,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_detection_tokens=NUM_TOKENS,
            initializer_range=0.1,
            id2label=labels,
            label2id={label: index for index, label in labels.items()},
        )
        self.detector = YolosForObjectDetection(config)
        for name, value in self.detector.named_parameters():
            if name.endswith(("_token", "_tokens", "position_embeddings")):
                nn.init.normal_(value, std=0.1)  # transformers' zeros would make the tokens twins
        self.patch = nn.Linear(config.hidden_size, NOTHING + 1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and boxes of the detection tokens, logits of the patches."""
        output = self.detector(pixel_values=pixel_values)
        return output.logits, output.pred_boxes, self.patch(output.last_hidden_state[:, 1:-NUM_TOKENS])


def detection_loss(logits: Tensor, boxes: Tensor, patches: Tensor, goal: Objects, spoiled: Tensor) -> Tensor:
    """DETR's loss with a fixed assignment: token 0 finds the shape, token 1 the landmark, the others
    nothing."""
    label = pad(goal.label, (0, NUM_TOKENS - 2), value=NOTHING)
    nothing = torch.tensor([0.0] * NOTHING + [1.0])
    # Nothing can be found in a picture that is all noise.
    wanted = torch.lerp(one_hot(label, NOTHING + 1).float(), nothing, spoiled[:, None, None] ** 2)
    there = goal.label != NOTHING
    found, true = boxes[:, :2][there], goal.box[there]
    corners = (box_convert(kind, "cxcywh", "xyxy") for kind in (found, true))
    misplaced = 5 * (found - true).abs().mean(1) + 2 * generalized_box_iou_loss(*corners)
    placed = (misplaced * (1 - spoiled)[:, None].expand_as(there)[there]).mean()
    classed = NUM_TOKENS * cross_entropy(logits.flatten(0, 1), wanted.flatten(0, 1))
    total: Tensor = classed + placed + cross_entropy(patches.flatten(0, 1), goal.patch.flatten())
    return total


def save_detection(out: Path, detector: YolosForObjectDetection) -> None:
    """Writes `out/detection` as transformers does; the processor leaves a 64x64 frame at its size."""
    with replaced(out / "detection") as folder:
        detector.half().save_pretrained(folder)
        YolosImageProcessor(size={"shortest_edge": SIZE, "longest_edge": 2 * SIZE}).save_pretrained(folder)
