"""Procedural captioned videos: one shape moves over a gradient, sometimes past a crate, clean or faulty.

`draw_scenes` is the random part; `render` is a pure function of the scenes. The picture spans [-1, 1] on both
axes, y pointing down.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import cos, pi, sin

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import conv2d

from vader_ray.shapes import PROMPTS

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
DIRECTIONS = ("left", "right", "up", "down")
NUM_FRAMES = 8
SIZE = 32
CRATE_HALF_SIDE = 0.26

_PIXEL = 2 / SIZE
_COLOUR_RGB = torch.tensor(
    [
        [0.90, 0.12, 0.12],
        [0.12, 0.72, 0.22],
        [0.12, 0.30, 0.95],
        [0.98, 0.86, 0.10],
        [0.62, 0.16, 0.82],
        [1.0, 1.0, 1.0],
    ]
)
_DIRECTION_XY = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
_PALETTES_TOP_BOTTOM = torch.tensor(
    [
        [[0.10, 0.75, 0.95], [0.05, 0.20, 0.55]],  # sea
        [[1.00, 0.60, 0.20], [0.75, 0.10, 0.45]],  # sunset
        [[0.45, 0.85, 1.00], [0.25, 0.60, 0.15]],  # meadow
        [[0.25, 0.10, 0.50], [0.95, 0.45, 0.35]],  # dusk
        [[0.05, 0.45, 0.40], [0.55, 0.85, 0.30]],  # forest
    ]
)
_CRATE_RGB = torch.tensor([0.55, 0.36, 0.18])
_HAZE_RGB = torch.tensor([0.66, 0.67, 0.70])


@dataclass(frozen=True)
class Scenes:
    """Parameters of the drawn scenes and, in `said_*`, the attributes that their captions name."""

    shape: Int[Tensor, " scenes"]
    colour: Int[Tensor, " scenes"]
    direction: Int[Tensor, " scenes"]
    box: Bool[Tensor, " scenes"]
    said_shape: Int[Tensor, " scenes"]
    said_colour: Int[Tensor, " scenes"]
    said_direction: Int[Tensor, " scenes"]
    said_box: Bool[Tensor, " scenes"]
    radius: Float[Tensor, " scenes"]
    centre: Float[Tensor, "scenes frames 2"]
    box_centre: Float[Tensor, "scenes 2"]
    palette: Int[Tensor, " scenes"]
    vividness: Float[Tensor, " scenes"]
    haze: Float[Tensor, " scenes"]
    blur_pixels: Float[Tensor, " scenes"]
    brightness: Float[Tensor, "scenes frames"]

    def __len__(self) -> int:
        """Number of scenes."""
        return len(self.shape)

    def __getitem__(self, index: Tensor | slice) -> "Scenes":
        """The chosen scenes."""
        return Scenes(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def draw_scenes(num_scenes: int, generator: Generator, *, num_frames: int = NUM_FRAMES) -> Scenes:
    """Draw uncurated scenes: dull, hazy, blurred or flickering by chance, and 12 % with a wrong caption."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(num_scenes, *shape, generator=generator)

    def chance(probability: float) -> Tensor:
        return uniform(0, 1) < probability

    def choice(num: int) -> Tensor:
        return torch.randint(num, (num_scenes,), generator=generator)

    shape, colour, direction = choice(len(SHAPES)), choice(len(COLOURS)), choice(len(DIRECTIONS))
    said_box = chance(0.3)
    box = torch.where(said_box, ~chance(0.05), chance(0.15))
    said_shape, said_colour, said_direction = _mislabel(shape, colour, direction, chance(0.12), choice)
    unsteady = chance(0.3)
    jitter = torch.where(unsteady, uniform(0.3, 1.0), 0.0)[:, None, None]
    flicker = torch.where(unsteady, uniform(0.05, 0.20), 0.0)[:, None]
    along = (
        uniform(0.95, 1.20)[:, None] * torch.linspace(-0.5, 0.5, num_frames) + uniform(-0.05, 0.05)[:, None]
    )
    across = uniform(-0.25, 0.25)
    heading = _DIRECTION_XY[direction]
    side = heading.flip(-1).abs()
    centre = along[..., None] * heading[:, None] + (across[:, None] * side)[:, None]
    box_across = across - torch.where(across == 0, 1.0, across.sign()) * uniform(0.65, 0.75)
    return Scenes(
        shape=shape,
        colour=colour,
        direction=direction,
        box=box,
        said_shape=said_shape,
        said_colour=said_colour,
        said_direction=said_direction,
        said_box=said_box,
        radius=uniform(0.35, 0.45),
        centre=centre + jitter * _PIXEL * torch.randn(num_scenes, num_frames, 2, generator=generator),
        box_centre=uniform(-0.5, 0.5)[:, None] * heading.abs() + box_across[:, None] * side,
        palette=choice(len(_PALETTES_TOP_BOTTOM)),
        vividness=uniform(0, 1) ** 1.5,
        haze=torch.where(chance(0.7), uniform(0.15, 0.5), 0.0),
        blur_pixels=torch.where(chance(0.4), uniform(0.5, 1.1), 0.0),
        brightness=1 + flicker * torch.randn(num_scenes, num_frames, generator=generator),
    )


def _mislabel(
    shape: Tensor, colour: Tensor, direction: Tensor, wrong: Tensor, choice: Callable[[int], Tensor]
) -> list[Tensor]:
    """Choose the attributes named in the captions: where `wrong`, exactly one of the three is incorrect."""
    which = choice(3)
    said = []
    for index, (truth, names) in enumerate(((shape, SHAPES), (colour, COLOURS), (direction, DIRECTIONS))):
        other = (truth + 1 + choice(len(names) - 1)) % len(names)
        said.append(torch.where(wrong & (which == index), other, truth))
    return said


def every_scene() -> Scenes:
    """One well-filmed scene per caption there is: every shape, colour and direction, with and without a
    box."""
    sizes = (len(SHAPES), len(COLOURS), len(DIRECTIONS), 2)
    shape, colour, direction, box = torch.cartesian_prod(*(torch.arange(size) for size in sizes)).unbind(1)
    scenes = draw_scenes(len(shape), Generator().manual_seed(0))
    return cleaned(replace(_turned(scenes, direction), shape=shape, colour=colour, box=box.bool()))


def _turned(scenes: Scenes, direction: Tensor) -> Scenes:
    """The same scenes with motion in another direction, crate and all."""
    was, now = _DIRECTION_XY[scenes.direction], _DIRECTION_XY[direction]
    along = (scenes.centre * was[:, None]).sum(-1, keepdim=True) * now[:, None]
    across = (scenes.centre * was.flip(-1).abs()[:, None]).sum(-1, keepdim=True) * now.flip(-1).abs()[:, None]
    box_along = (scenes.box_centre * was.abs()).sum(-1, keepdim=True) * now.abs()
    box_across = (scenes.box_centre * was.flip(-1).abs()).sum(-1, keepdim=True) * now.flip(-1).abs()
    return replace(scenes, direction=direction, centre=along + across, box_centre=box_along + box_across)


def cleaned(scenes: Scenes) -> Scenes:
    """The same scenes filmed well (vivid, clear, sharp, steady) and captioned truthfully."""
    start, end = scenes.centre[:, :1], scenes.centre[:, -1:]
    axis = _DIRECTION_XY[scenes.direction].abs()[:, None]
    middle = scenes.centre.mean(1, keepdim=True) * (1 - axis)
    steps = torch.linspace(0, 1, scenes.centre.shape[1])[:, None]
    return replace(
        scenes,
        said_shape=scenes.shape,
        said_colour=scenes.colour,
        said_direction=scenes.direction,
        said_box=scenes.box,
        centre=torch.lerp(start, end, steps) * axis + middle,
        vividness=torch.ones_like(scenes.vividness),
        haze=torch.zeros_like(scenes.haze),
        blur_pixels=torch.zeros_like(scenes.blur_pixels),
        brightness=torch.ones_like(scenes.brightness),
    )


def captions_of(scenes: Scenes) -> list[str]:
    """One caption per scene, from its `said_*` attributes, such as "a purple square moving up past a box"."""
    rows = zip(
        scenes.said_shape.tolist(),
        scenes.said_colour.tolist(),
        scenes.said_direction.tolist(),
        scenes.said_box.tolist(),
        strict=True,
    )
    return [
        f"a {COLOURS[colour]} {SHAPES[shape]} moving {DIRECTIONS[direction]}{' past a box' if box else ''}"
        for shape, colour, direction, box in rows
    ]


def captions(split: str) -> list[str]:
    """The prompts of `split`, `train`, `validation` or `test`: no shape of the last two has its colour in a
    train prompt."""
    return (PROMPTS / f"{split}.txt").read_text().splitlines()


def aesthetic_of(scenes: Scenes) -> Float[Tensor, " scenes"]:
    """Rate the picture quality of each scene from 1 (dull, hazy, blurred) to 10, from its true parameters."""
    clear = 1 - scenes.haze / 0.5
    sharp = 1 - scenes.blur_pixels / 1.1
    return 1 + 9 * (0.55 * scenes.vividness + 0.25 * clear + 0.20 * sharp)


@torch.no_grad()
def render(scenes: Scenes, *, chunk: int = 500) -> Float[Tensor, "scenes frames 3 height width"]:
    """Videos of `scenes`, in [0, 1], anti-aliased from signed distances."""
    return torch.cat([_render(scenes[start : start + chunk]) for start in range(0, len(scenes), chunk)])


def _render(scenes: Scenes) -> Tensor:
    axis = (torch.arange(SIZE) + 0.5) * _PIXEL - 1
    picture = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    frames = _background(scenes, axis)
    frames = _paint_crate(frames, scenes, picture)
    frames = _paint_shape(frames, scenes, picture)
    haze = scenes.haze[:, None, None, None, None]
    frames = torch.lerp(frames, _HAZE_RGB[:, None, None].expand_as(frames), haze)
    frames = _blur(frames * scenes.brightness[:, :, None, None, None], scenes.blur_pixels)
    return frames.clamp(0, 1)


def _background(scenes: Scenes, axis: Tensor) -> Tensor:
    palette = _PALETTES_TOP_BOTTOM[scenes.palette]
    grey = palette.mean(-1, keepdim=True).expand_as(palette) * 0.5 + 0.2
    top, bottom = torch.lerp(grey, palette, scenes.vividness[:, None, None]).unbind(1)
    column = torch.lerp(top[..., None], bottom[..., None], (axis + 1) / 2)
    return column[:, None, :, :, None].expand(-1, scenes.centre.shape[1], -1, -1, SIZE)


def _paint_crate(frames: Tensor, scenes: Scenes, picture: Tensor) -> Tensor:
    offset = (picture - scenes.box_centre[:, None, None]).abs()
    inside = CRATE_HALF_SIDE - offset.amax(-1)
    planks = (offset[..., 0] - offset[..., 1]).abs() < 0.8 * _PIXEL
    rim = inside < 1.2 * _PIXEL
    shade = torch.where(rim | planks, 0.6, 1.0)[:, None, None]
    cover = (inside / _PIXEL + 0.5).clamp(0, 1) * scenes.box[:, None, None]
    return torch.lerp(frames, _CRATE_RGB[:, None, None] * shade, cover[:, None, None].expand_as(frames))


def _paint_shape(frames: Tensor, scenes: Scenes, picture: Tensor) -> Tensor:
    offset = picture - scenes.centre[:, :, None, None]
    distance = _signed_distance(offset, scenes.shape, scenes.radius[:, None, None, None])[:, :, None]
    light = 1 - 0.22 * offset.sum(-1)[:, :, None] / scenes.radius[:, None, None, None, None]
    rim = torch.lerp(torch.tensor(1.0), torch.tensor(0.55), (distance / _PIXEL + 1.2).clamp(0, 1))
    colour = (_COLOUR_RGB[scenes.colour][:, None, :, None, None] * light * rim).clamp(0, 1)
    return torch.lerp(frames, colour, (0.5 - distance / _PIXEL).clamp(0, 1).expand_as(frames))


def _signed_distance(offset: Tensor, shape: Tensor, radius: Tensor) -> Tensor:
    """Distance of each point to each scene's outline, negative inside; exact near the edges, where it
    matters."""
    x, y = offset.unbind(-1)
    length = offset.norm(dim=-1)
    circle = length - 0.92 * radius
    square = torch.maximum(x.abs(), y.abs()) - 0.82 * radius
    lowered = y - 0.1 * radius
    triangle = (
        torch.maximum(lowered, x.abs() * cos(pi / 6) - lowered * sin(pi / 6) - radius * 0.3) - 0.6 * radius
    )
    folded = ((torch.atan2(x, -y) + pi / 5) % (2 * pi / 5) - pi / 5).abs()
    inner, outer = 0.54 * radius, 1.30 * radius
    run, rise = inner * cos(pi / 5) - outer, inner * sin(pi / 5)
    star = (rise * (length * folded.cos() - outer) - run * length * folded.sin()) / torch.hypot(run, rise)
    every = torch.stack([circle, square, triangle, star])
    return every.gather(0, shape[None, :, None, None, None].expand(1, *circle.shape))[0]


def _blur(frames: Tensor, blur_pixels: Tensor) -> Tensor:
    """Frames under a Gaussian of each scene's own width, edges replicated; width 0 changes nothing."""
    num_scenes = len(frames)
    taps = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-(taps**2) / (2 * blur_pixels[:, None].clamp_min(0.05) ** 2))
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, None, None]
    rows = frames.flatten(1, 2).transpose(0, 1)
    rows = torch.nn.functional.pad(rows, (3, 3, 3, 3), mode="replicate")
    rows = conv2d(conv2d(rows, kernel, groups=num_scenes), kernel.transpose(2, 3), groups=num_scenes)
    return rows.transpose(0, 1).reshape(frames.shape)
