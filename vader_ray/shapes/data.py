"""Procedural captioned videos: a shape moves through a landscape, sometimes past a landmark, clean or faulty.

`draw_scenes` is the random part; `render` is a pure function of the scenes. The picture spans [-1, 1] on both
axes, y pointing down.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import cos, pi, sin

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import conv2d

from vader_ray.shapes import PROMPTS

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = ("slowly", "", "quickly")
LANDMARKS = ("", "box", "tree", "house")
"""Objects beside the path; the first is none."""
NUM_FRAMES = 8
SIZE = 64
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": COLOURS,
    "direction": DIRECTIONS,
    "speed": SPEEDS,
    "landmark": LANDMARKS,
}
"""Attributes of a scene that a caption names, and their words; one that is not named has the empty word."""
LANDMARK_HALF_SIDE = 0.27
JITTER = 0.06
"""Largest deviation of the jitter of an unsteady video, in units of which 2 are the width of the picture."""
MOST_HAZE, MOST_BLUR_PIXELS = 0.55, 2.2

_PIXEL = 2 / SIZE
_LINE = 0.07
"""Width of outlines and planks."""
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
_PATH_LOW, _PATH_HIGH = torch.tensor([0.35, 0.90, 1.40]), torch.tensor([0.50, 1.10, 1.60])
"""Length of the path of each speed, from the first frame to the last; 2 is the width of the picture."""
_SKY_TOP_BOTTOM_GROUND = torch.tensor(
    [
        [[0.10, 0.75, 0.95], [0.10, 0.45, 0.80], [0.05, 0.20, 0.55]],  # sea
        [[1.00, 0.60, 0.20], [0.85, 0.25, 0.45], [0.35, 0.08, 0.30]],  # sunset
        [[0.45, 0.85, 1.00], [0.75, 0.92, 0.95], [0.25, 0.60, 0.15]],  # meadow
        [[0.20, 0.08, 0.45], [0.95, 0.45, 0.35], [0.12, 0.10, 0.30]],  # mountains at dusk
        [[0.05, 0.45, 0.40], [0.55, 0.85, 0.30], [0.08, 0.30, 0.22]],  # forest
        [[0.98, 0.92, 0.75], [0.95, 0.75, 0.45], [0.80, 0.50, 0.20]],  # desert
    ]
)
_BOX_RGB = torch.tensor([0.55, 0.36, 0.18])
_TRUNK_RGB, _LEAVES_RGB = torch.tensor([0.40, 0.26, 0.13]), torch.tensor([0.10, 0.50, 0.16])
_WALL_RGB, _ROOF_RGB = torch.tensor([0.93, 0.85, 0.70]), torch.tensor([0.70, 0.22, 0.14])
_DOOR_RGB = torch.tensor([0.35, 0.22, 0.14])
_HAZE_RGB = torch.tensor([0.66, 0.67, 0.70])


@dataclass(frozen=True)
class Scenes:
    """Parameters of the drawn scenes and, in `said_*`, the attributes that their captions name."""

    shape: Int[Tensor, " scenes"]
    colour: Int[Tensor, " scenes"]
    direction: Int[Tensor, " scenes"]
    speed: Int[Tensor, " scenes"]
    landmark: Int[Tensor, " scenes"]
    said_shape: Int[Tensor, " scenes"]
    said_colour: Int[Tensor, " scenes"]
    said_direction: Int[Tensor, " scenes"]
    said_speed: Int[Tensor, " scenes"]
    said_landmark: Int[Tensor, " scenes"]
    radius: Float[Tensor, " scenes"]
    centre: Float[Tensor, "scenes frames 2"]
    landmark_centre: Float[Tensor, "scenes 2"]
    landscape: Int[Tensor, " scenes"]
    horizon: Float[Tensor, " scenes"]
    phase: Float[Tensor, " scenes"]
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

    shape, colour, direction, speed = (choice(len(names)) for names in (SHAPES, COLOURS, DIRECTIONS, SPEEDS))
    said_landmark = torch.where(chance(0.45), 1 + choice(len(LANDMARKS) - 1), 0)
    kept, unsaid = ~chance(0.10), chance(0.15) * (1 + choice(len(LANDMARKS) - 1))
    landmark = torch.where(said_landmark > 0, said_landmark * kept, unsaid)
    said_shape, said_colour, said_direction = _mislabel(shape, colour, direction, chance(0.12), choice)
    unsteady = chance(0.3)
    jitter = torch.where(unsteady, uniform(0.3, 1.0), 0.0)[:, None, None]
    flicker = torch.where(unsteady, uniform(0.05, 0.20), 0.0)[:, None]
    length = torch.lerp(_PATH_LOW[speed], _PATH_HIGH[speed], uniform(0, 1))
    along = length[:, None] * torch.linspace(-0.5, 0.5, num_frames) + uniform(-0.05, 0.05)[:, None]
    across = uniform(-0.25, 0.25)
    heading = _DIRECTION_XY[direction]
    side = heading.flip(-1).abs()
    centre = along[..., None] * heading[:, None] + (across[:, None] * side)[:, None]
    landmark_across = across - torch.where(across == 0, 1.0, across.sign()) * uniform(0.65, 0.75)
    return Scenes(
        shape=shape,
        colour=colour,
        direction=direction,
        speed=speed,
        landmark=landmark,
        said_shape=said_shape,
        said_colour=said_colour,
        said_direction=said_direction,
        said_speed=speed,
        said_landmark=said_landmark,
        radius=uniform(0.32, 0.42),
        centre=centre + jitter * JITTER * torch.randn(num_scenes, num_frames, 2, generator=generator),
        landmark_centre=uniform(-0.5, 0.5)[:, None] * heading.abs() + landmark_across[:, None] * side,
        landscape=choice(len(_SKY_TOP_BOTTOM_GROUND)),
        horizon=uniform(0.1, 0.5),
        phase=uniform(0, 2 * pi),
        vividness=uniform(0, 1) ** 1.2,
        haze=torch.where(chance(0.6), uniform(0.10, MOST_HAZE), 0.0),
        blur_pixels=torch.where(chance(0.4), uniform(1.0, MOST_BLUR_PIXELS), 0.0),
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
    """One well-filmed scene per caption there is, in the order of `ATTRIBUTES`, the last varying fastest."""
    values = torch.cartesian_prod(*(torch.arange(len(names)) for names in ATTRIBUTES.values()))
    truth = dict(zip(ATTRIBUTES, values.unbind(1), strict=True))
    scenes = draw_scenes(len(values), Generator().manual_seed(0))
    scenes = _moved(scenes, truth["direction"], truth["speed"])
    return cleaned(replace(scenes, **truth))


def _moved(scenes: Scenes, direction: Tensor, speed: Tensor) -> Scenes:
    """The same scenes with motion in another direction and of another speed, landmark and all."""
    was, now = _DIRECTION_XY[scenes.direction], _DIRECTION_XY[direction]
    longer = (_PATH_LOW + _PATH_HIGH)[speed] / (_PATH_LOW + _PATH_HIGH)[scenes.speed]
    along = (scenes.centre * was[:, None]).sum(-1, keepdim=True) * (longer[:, None] * now)[:, None]
    across = (scenes.centre * was.flip(-1).abs()[:, None]).sum(-1, keepdim=True) * now.flip(-1).abs()[:, None]
    landmark_along = (scenes.landmark_centre * was.abs()).sum(-1, keepdim=True) * now.abs()
    landmark_across = (scenes.landmark_centre * was.flip(-1).abs()).sum(-1, keepdim=True) * now.flip(-1).abs()
    return replace(
        scenes,
        direction=direction,
        speed=speed,
        centre=along + across,
        landmark_centre=landmark_along + landmark_across,
    )


def truthful(scenes: Scenes) -> Scenes:
    """The same scenes, captioned truthfully."""
    return replace(scenes, **{f"said_{name}": getattr(scenes, name) for name in ATTRIBUTES})


def cleaned(scenes: Scenes) -> Scenes:
    """The same scenes filmed well (vivid, clear, sharp, steady) and captioned truthfully."""
    start, end = scenes.centre[:, :1], scenes.centre[:, -1:]
    axis = _DIRECTION_XY[scenes.direction].abs()[:, None]
    middle = scenes.centre.mean(1, keepdim=True) * (1 - axis)
    steps = torch.linspace(0, 1, scenes.centre.shape[1])[:, None]
    return replace(
        truthful(scenes),
        centre=torch.lerp(start, end, steps) * axis + middle,
        vividness=torch.ones_like(scenes.vividness),
        haze=torch.zeros_like(scenes.haze),
        blur_pixels=torch.zeros_like(scenes.blur_pixels),
        brightness=torch.ones_like(scenes.brightness),
    )


def played_backwards(scenes: Scenes) -> Scenes:
    """The same scenes with their frames in the opposite order, and captions with the opposite direction."""
    opposite = torch.tensor([1, 0, 3, 2])
    return replace(
        scenes,
        direction=opposite[scenes.direction],
        said_direction=opposite[scenes.said_direction],
        centre=scenes.centre.flip(1),
        brightness=scenes.brightness.flip(1),
    )


def captions_of(scenes: Scenes) -> list[str]:
    """One caption per scene, from its `said_*` attributes, such as "a purple square moving slowly up past a
    tree"."""
    rows = zip(*(getattr(scenes, f"said_{name}").tolist() for name in ATTRIBUTES), strict=True)
    return [
        caption(*(words[value] for words, value in zip(ATTRIBUTES.values(), row, strict=True)))
        for row in rows
    ]


def caption(shape: str, colour: str, direction: str, speed: str, landmark: str) -> str:
    """Return the caption of a scene from the words of its attributes; no speed and no landmark are empty."""
    words = ["a", colour, shape, "moving", speed, direction, *(["past", "a", landmark] if landmark else [])]
    return " ".join(word for word in words if word)


def captions(split: str) -> list[str]:
    """The prompts of `split`, `train`, `validation` or `test`: no shape of the last two has its colour in a
    train prompt."""
    return (PROMPTS / f"{split}.txt").read_text().splitlines()


def aesthetic_of(scenes: Scenes) -> Float[Tensor, " scenes"]:
    """Rate the picture quality of each scene from 1 (dull, hazy, blurred) to 10, from its true parameters."""
    clear = 1 - scenes.haze / MOST_HAZE
    sharp = 1 - scenes.blur_pixels / MOST_BLUR_PIXELS
    return 1 + 9 * (0.55 * scenes.vividness + 0.25 * clear + 0.20 * sharp)


@torch.no_grad()
def render(scenes: Scenes, *, chunk: int = 500) -> Float[Tensor, "scenes frames 3 height width"]:
    """Videos of `scenes`, in [0, 1], anti-aliased from signed distances."""
    return torch.cat([_render(scenes[start : start + chunk]) for start in range(0, len(scenes), chunk)])


def _render(scenes: Scenes) -> Tensor:
    axis = (torch.arange(SIZE) + 0.5) * _PIXEL - 1
    picture = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    still = _paint_landmark(_landscape(scenes, picture), scenes, picture)
    frames = _paint_shape(still[:, None].expand(-1, scenes.centre.shape[1], -1, -1, -1), scenes, picture)
    haze = scenes.haze[:, None, None, None, None]
    frames = torch.lerp(frames, _HAZE_RGB[:, None, None].expand_as(frames), haze)
    frames = _blur(frames * scenes.brightness[:, :, None, None, None], scenes.blur_pixels)
    return frames.clamp(0, 1)


def _landscape(scenes: Scenes, picture: Tensor) -> Float[Tensor, "scenes 3 height width"]:
    """Sky that changes from top to bottom, over ground with a skyline of its own kind."""
    colours = _SKY_TOP_BOTTOM_GROUND[scenes.landscape]
    grey = colours.mean(-1, keepdim=True).expand_as(colours) * 0.5 + 0.2
    top, bottom, ground = torch.lerp(grey, colours, scenes.vividness[:, None, None])[..., None, None].unbind(
        1
    )
    x, y = picture.unbind(-1)
    sky = torch.lerp(top, bottom, ((y + 1) / 2).expand(len(scenes), 3, -1, -1))
    depth = y - scenes.horizon[:, None, None] - _skyline(scenes, x)
    cover = (depth / (2 * _PIXEL) + 0.5).clamp(0, 1)[:, None]
    return torch.lerp(sky, ground.expand_as(sky), cover)


def _skyline(scenes: Scenes, x: Tensor) -> Float[Tensor, "scenes height width"]:
    """Height of the ground at `x`: waves, level ground, hills, peaks, tree trunks, dunes."""
    phase = scenes.phase[:, None, None]
    zigzag = (((1.2 * x + phase) % 1.4) - 0.7).abs()
    every = torch.stack(
        [
            0.06 * torch.sin(9 * x + phase),
            torch.zeros_like(x + phase),
            0.16 * torch.sin(2.5 * x + phase),
            0.55 * zigzag - 0.35,
            -0.9 * (torch.sin(7 * x + phase) > 0.55).float(),
            0.12 * torch.sin(4 * x + phase).abs(),
        ]
    )
    return every.gather(0, scenes.landscape[None, :, None, None].expand(1, *every.shape[1:]))[0]


def _paint_landmark(pictures: Tensor, scenes: Scenes, picture: Tensor) -> Tensor:
    """Pictures with the box, the tree or the house of each scene."""
    x, y = ((picture - scenes.landmark_centre[:, None, None]) / LANDMARK_HALF_SIDE).unbind(-1)
    line = _LINE / LANDMARK_HALF_SIDE
    shade = torch.where(torch.maximum(x.abs(), y.abs()) > 1 - line, 0.6, 1.0)
    shade = torch.where((x - y).abs() < 0.7 * line, 0.6, shade)[:, None]
    parts = (
        (1, torch.maximum(x.abs(), y.abs()) - 1, _BOX_RGB[:, None, None] * shade),
        (2, torch.maximum(x.abs() - 0.22, (y - 0.5).abs() - 0.5), _TRUNK_RGB[:, None, None]),
        (2, torch.hypot(x, 1.1 * (y + 0.25)) - 0.75, _LEAVES_RGB[:, None, None]),
        (3, torch.maximum(x.abs() - 0.8, (y - 0.45).abs() - 0.55), _WALL_RGB[:, None, None]),
        (3, torch.maximum(x.abs() - 0.2, (y - 0.6).abs() - 0.4), _DOOR_RGB[:, None, None]),
        (3, torch.maximum(0.74 * x.abs() - 0.67 * (y + 1), y + 0.1), _ROOF_RGB[:, None, None]),
    )
    for landmark, distance, colour in parts:
        cover = (0.5 - distance * LANDMARK_HALF_SIDE / _PIXEL).clamp(0, 1)[:, None]
        cover = cover * (scenes.landmark == landmark)[:, None, None, None]
        pictures = torch.lerp(pictures, colour.expand_as(pictures), cover.expand_as(pictures))
    return pictures


def _paint_shape(frames: Tensor, scenes: Scenes, picture: Tensor) -> Tensor:
    offset = picture - scenes.centre[:, :, None, None]
    distance = _signed_distance(offset, scenes.shape, scenes.radius[:, None, None, None])[:, :, None]
    light = 1 - 0.22 * offset.sum(-1)[:, :, None] / scenes.radius[:, None, None, None, None]
    rim = torch.lerp(torch.tensor(1.0), torch.tensor(0.55), (1 + distance / _LINE).clamp(0, 1))
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
    heart = _heart(x.abs(), 0.5 * radius - y, 1.5 * radius)
    ring = (length - 0.68 * radius).abs() - 0.26 * radius
    every = torch.stack([circle, square, triangle, star, heart, ring])
    return every.gather(0, shape[None, :, None, None, None].expand(1, *circle.shape))[0]


def _heart(x: Tensor, up: Tensor, size: Tensor) -> Tensor:
    """Signed distance to a heart of that size with its tip near the origin, at `x` beside its axis and `up`
    above the tip."""
    x, up = x / size, up / size + 0.05
    lobe = torch.hypot(x - 0.25, up - 0.75) - 2**0.5 / 4
    diagonal = 0.5 * (x + up).clamp_min(0)
    below = torch.minimum(torch.hypot(x, up - 1), torch.hypot(x - diagonal, up - diagonal))
    return size * torch.where(x + up > 1, lobe, below * (x - up).sign())


def _blur(frames: Tensor, blur_pixels: Tensor) -> Tensor:
    """Frames under a Gaussian of each scene's own width, edges replicated; width 0 changes nothing."""
    num_scenes = len(frames)
    taps = torch.arange(-6.0, 7.0)
    kernel = torch.exp(-(taps**2) / (2 * blur_pixels[:, None].clamp_min(0.05) ** 2))
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, None, None]
    rows = frames.flatten(1, 2).transpose(0, 1)
    rows = torch.nn.functional.pad(rows, (6, 6, 6, 6), mode="replicate")
    rows = conv2d(conv2d(rows, kernel, groups=num_scenes), kernel.transpose(2, 3), groups=num_scenes)
    return rows.transpose(0, 1).reshape(frames.shape)
