"""Write the prompts for alignment: no shape of the validation and test prompts has its colour in another
set."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from vader_ray.files import atomic_write
from vader_ray.shapes.data import COLOURS, DIRECTIONS, LANDMARKS, SHAPES, SPEEDS, caption

_NUM_LOOKS = len(SHAPES) * len(COLOURS)
_HALF_WITHOUT = tuple(word for landmark in LANDMARKS[1:] for word in ("", landmark))
"""Landmarks in turn, none before each."""


def write_prompts(out: Path) -> None:
    """Write into the folder `prompts` beside `out`, for each split: `{split}.txt` with prompts of every kind,
    `{split}_boxes.txt` with a box in each, `{split}_going.txt` with a verb that no base model was trained
    on."""
    for split in ("train", "validation", "test"):
        texts = {
            split: prompts_of(split),
            f"{split}_boxes": prompts_of(split, landmarks=("box",)),
            f"{split}_going": [
                text.replace("moving", "going") for text in prompts_of(split, landmarks=("",), speeds=("",))
            ],
        }
        for name, lines in texts.items():
            with atomic_write(out.parent / "prompts" / f"{name}.txt") as path:
                path.write_text("".join(f"{line}\n" for line in lines))


def prompts_of(
    split: str,
    *,
    landmarks: tuple[str, ...] = _HALF_WITHOUT,
    speeds: tuple[str, ...] = SPEEDS,
) -> list[str]:
    """One prompt per look of the split and direction, speeds and landmarks in turn; neighbours look
    different."""
    prompts = []
    looks = list(looks_of(split))
    for turn, (number, (shape, colour)) in product(range(len(DIRECTIONS)), enumerate(looks)):
        direction = DIRECTIONS[(number + turn) % len(DIRECTIONS)]
        speed = speeds[(number + 2 * turn) % len(speeds)]
        landmark = landmarks[(number + turn) % len(landmarks)]
        prompts.append(caption(shape, colour, direction, speed, landmark))
    return prompts


def looks_of(split: str) -> Iterator[tuple[str, str]]:
    """Shapes with colours: in the validation and the test split each shape and each colour once, in the train
    split all others."""
    shift_of = {"validation": 1, "test": 4}
    for number in range(_NUM_LOOKS):
        shape, turn = number % len(SHAPES), number // len(SHAPES)
        shift = (turn * 5 + 2) % len(COLOURS)
        is_of = next((name for name, value in shift_of.items() if value == shift), "train")
        if is_of == split:
            yield SHAPES[shape], COLOURS[(shape + shift) % len(COLOURS)]
