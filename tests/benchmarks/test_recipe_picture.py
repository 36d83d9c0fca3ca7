"""The picture of several recipes has a labelled row before and after for each."""

from __future__ import annotations

import numpy as np

from benchmarks.recipe_picture import Example, picture
from vader_ray.orchestration.runs.summary import Gain

RED, GREEN = (220, 60, 50), (60, 190, 90)


def test_before_stands_above_after_and_the_gain_beside_it() -> None:
    before, after = (np.full((4, 32, 32, 3), colour, np.uint8) for colour in (RED, GREEN))
    gain = Gain(mean=0.9, standard_error=0.2, low=0.5, high=1.3)
    one = Example("Motion", "shapes_action", "a star", before, after, "action", (-1.3, -0.4), gain, 96)
    drawn, two = np.asarray(picture([one])), np.asarray(picture([one, one]))
    rows = [np.flatnonzero((drawn == colour).all(-1).sum(1) > 100) for colour in (RED, GREEN)]
    assert len(rows[0]) == len(rows[1]) == 160
    assert rows[0][-1] < rows[1][0]
    gain = (drawn == (0x1A, 0x8F, 0x42)).all(-1)  # the colour of a rise
    assert gain[rows[1][0] :].any()
    assert not gain[: rows[1][0]].any()
    assert len(two) > 1.8 * len(drawn) - 60
