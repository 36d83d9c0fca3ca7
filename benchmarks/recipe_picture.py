"""One picture of several recipes: a held-out video before and after each, with the mean gain of all of them.

    vader-ray train shapes_detection --run-name detection evaluation.num_shown=24
    python -m benchmarks.recipe_picture "Object removal=runs/detection:2" -o picture.png

An item is TITLE=RUN:VIDEO: a title, the folder of a finished run, and the number of one of its videos. The
mean gain of the trained reward over all held-out videos, with its 95 % interval, stands beside the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image

from vader_ray.orchestration.publishing.finished_run import FinishedRun, run_of_adapter
from vader_ray.orchestration.runs.summary import REWARD, Gain
from vader_ray.training.media import GREY, NUM_SHEET_FRAMES, RISE, PixelFrames, Strip, draw_sheet, draw_text
from vader_ray.training.web import number, signed


@dataclass(frozen=True)
class Example:
    """One recipe of the picture."""

    title: str
    recipe: str
    prompt: str
    before: PixelFrames
    after: PixelFrames
    reward: str
    """Name of the trained reward."""
    means: tuple[float, float]
    """Mean of the reward over the held-out videos, before and after."""
    gain: Gain
    """Mean of the paired differences, with its 95 % interval."""
    num_videos: int
    """Videos of which the means are: test videos if the run has them."""


def example(title: str, run: FinishedRun, video: int) -> Example:
    """Return the example of a run, with one of its videos."""
    shown = min(len(run.videos(0)), len(run.videos(run.step)))
    if video >= shown:
        raise typer.BadParameter(f"{run.folder.path} has {shown} videos; raise its evaluation.num_shown")
    (_, before), (_, after) = run.videos(0)[video], run.videos(run.step)[video]
    results = run.results
    reward = next(iter(results.rewards))
    metric = f"{REWARD}{reward}"
    gain, evaluation = results.gains[metric], run.recipe["evaluation"]
    num_test = evaluation.get("num_test_videos") or len(run.recipe["prompts"].get("test") or ())
    return Example(
        title, run.summary.recipe, before.prompt, before.frames, after.frames, reward,
        (results.before[metric], results.after[metric]), gain,
        num_test if results.split == "test" else evaluation["num_videos"],
    )  # fmt: skip


def picture(examples: list[Example]) -> Image.Image:
    """Draw the examples below each other."""
    return draw_sheet(
        [(f"{each.title}  ({each.recipe}): “{each.prompt}”", _strips(each)) for each in examples],
        "",
        NUM_SHEET_FRAMES,
    )


def _strips(of: Example) -> list[Strip]:
    before, after = (f"{of.reward} {number(mean)}" for mean in of.means)
    interval = f"95 %: {signed(of.gain.low)} to {signed(of.gain.high)}"
    count = draw_text(f"mean of {of.num_videos} videos", 15, colour=GREY)
    return [
        Strip("before", [draw_text(before, 15, colour=GREY), count], of.before),
        Strip(
            "after",
            [
                draw_text(after, 15, colour=GREY),
                draw_text(signed(of.gain.mean), 15, colour=RISE),
                draw_text(interval, 15, colour=RISE),
                count,
            ],
            of.after,
        ),
    ]


def main(
    items: Annotated[list[str], typer.Argument(metavar="TITLE=RUN:VIDEO...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file.")],
) -> None:
    """Write the picture."""
    examples = []
    for item in items:
        title, _, rest = item.partition("=")
        folder, _, video = rest.rpartition(":")
        run = run_of_adapter(Path(folder) / "best_adapter")
        if run is None:
            raise typer.BadParameter(f"{folder} is no folder of a finished run")
        examples.append(example(title, run, int(video)))
    picture(examples).save(output, optimize=True)


if __name__ == "__main__":
    typer.run(main)
