"""Videos and sheets: what a player decodes, and what a person finds on the sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.video_files import decode
from vader_ray.training import media
from vader_ray.training.events import Video

RED, GREEN = (220, 60, 50), (60, 190, 90)


def moving_bar(
    num_frames: int, height: int, width: int, colour: tuple[int, int, int] = RED
) -> NDArray[np.uint8]:
    frames = np.full((num_frames, height, width, 3), 40, np.uint8)
    for index in range(num_frames):
        left = index * width // num_frames
        frames[index, :, left : left + max(2, width // 4)] = colour
    return frames


def video(prompt: str, score: float, colour: tuple[int, int, int] = RED, size: int = 32) -> Video:
    return Video(prompt, 7, {"hps": score, "aesthetic": 5.0}, moving_bar(12, size, size, colour))


def test_a_written_video_is_read_as_ffmpeg_decodes_it(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 24, 40, 3), np.uint8)
    media.write_mp4(frames, tmp_path / "video.mp4", 8)
    assert np.array_equal(media.read_mp4(tmp_path / "video.mp4"), decode(tmp_path / "video.mp4")[1])
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match=r"ffmpeg could not read .*broken\.mp4"):
        media.read_mp4(tmp_path / "broken.mp4")


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (32, 32, (256, 256)),
        (24, 40, (264, 440)),
        (320, 512, (320, 512)),
        (301, 301, (302, 302)),
        (100, 101, (300, 304)),
    ],
)
def test_mp4_is_what_browsers_play(
    tmp_path: Path, height: int, width: int, expected: tuple[int, int]
) -> None:
    path = tmp_path / "video.mp4"
    media.write_mp4(moving_bar(9, height, width), path, 8)
    about, frames = decode(path)
    assert about.startswith("h264")
    assert "yuv420p(tv, bt709, progressive)" in about
    assert " 8 fps" in about
    assert frames.shape == (9, *expected, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]


def test_mp4_keeps_time_and_colours(tmp_path: Path) -> None:
    frames = moving_bar(8, 32, 32)
    media.write_mp4(frames, tmp_path / "video.mp4", 8)
    _, decoded = decode(tmp_path / "video.mp4")
    for index, frame in enumerate(decoded):
        blocks = frame.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
        # Chroma has half the resolution and H.264 rounds: 8 of 255 levels is below what a person sees.
        assert np.abs(blocks - frames[index]).mean() < 8


def test_mp4_index_comes_first(tmp_path: Path) -> None:
    media.write_mp4(moving_bar(4, 32, 32), tmp_path / "video.mp4", 8)
    data = (tmp_path / "video.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_an_error_of_ffmpeg_is_reported_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ffmpeg could not write .*video\.mp4: .*-1"):
        media.write_mp4(moving_bar(4, 32, 32), tmp_path / "video.mp4", frames_per_second=-1)
    assert not list(tmp_path.iterdir())


def test_unwritable_video_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        media.write_mp4(moving_bar(4, 32, 32), tmp_path / "file" / "video.mp4", 8)


@pytest.mark.parametrize(("size", "tile"), [(32, 160), (64, 128), (512, 160)])
def test_contact_sheet_shows_first_and_last_frame(size: int, tile: int) -> None:
    clip = video("a red bar", 0.25, size=size)
    sheet = np.asarray(media.contact_sheet([clip], title="step 3", num_frames=4))
    reddish = (sheet[..., 0] > 180) & (sheet[..., 1] < 90)
    columns = np.flatnonzero(reddish.any(axis=0))
    left = sheet.shape[1] - media.MARGIN - 4 * tile - 3 * media.GAP
    assert columns[0] == left  # the bar of the first frame stands at its left edge
    last_bar = size * 11 // 12 / size * tile
    assert columns[-1] >= left + 3 * (tile + media.GAP) + last_bar


def test_sheets_have_one_row_per_video() -> None:
    one = media.contact_sheet([video("one", 0.1)])
    three = media.contact_sheet([video("one", 0.1)] * 3)
    assert three.width == one.width
    assert three.height > 2.5 * one.height - 4 * media.MARGIN


def test_before_stands_above_after() -> None:
    sheet = np.asarray(media.before_after_sheet([video("a bar", 0.2, RED)], [video("a bar", 0.3, GREEN)]))
    red = np.flatnonzero(((sheet[..., 0] > 200) & (sheet[..., 1] < 80)).any(axis=1))
    green = np.flatnonzero(((sheet[..., 1] > 170) & (sheet[..., 0] < 80)).sum(axis=1) > 50)
    assert len(red) == len(green) == 160
    assert red[-1] < green[0]


def test_before_and_after_must_show_the_same() -> None:
    with pytest.raises(AssertionError, match="different prompts or noise"):
        media.before_after_sheet([video("one", 0.2)], [video("two", 0.2)])


def test_a_long_prompt_is_wrapped_not_cut() -> None:
    short = media.contact_sheet([video("short", 0.1)])
    long = media.contact_sheet([video("a very long prompt " * 30, 0.1)])
    assert long.width == short.width
    assert long.height > short.height + 40


def test_a_short_clip_is_written_three_times_in_a_row() -> None:
    frames = moving_bar(12, 32, 32)
    repeated = media.repeat_short(frames, 8)
    assert len(repeated) == 3 * 12
    assert np.array_equal(repeated[12:24], frames)
    assert media.repeat_short(frames, 4) is frames, "it lasts three seconds"
