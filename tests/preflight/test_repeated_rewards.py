"""Calls of a reward that are counted without being computed cost what computed ones cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recipe import tiny_config
from vader_ray.preflight import repeated_rewards
from vader_ray.preflight.estimate import estimate_step


@pytest.mark.slow
def test_repeated_calls_cost_what_computed_ones_cost(
    tiny_pipeline_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five frames, one at a time, with a score and a gradient each, and of two evaluated videos.

    Memory is the same within 0.2 %: a repeated call frees all of its graph behind its backward pass.
    """
    config = tiny_config(
        tiny_pipeline_folder,
        rewards=[{"reward": "hps", "weights": "shapes:hps"}],
        eval_rewards=[{"reward": "pickscore", "weights": "shapes:pickscore"}],
        sampling={"num_frames": 5, "height": 8, "width": 8, "num_inference_steps": 3, "guidance_scale": 1.0},
        runtime={"decode_chunk_size": 1},
        videos_per_step=1,
    )
    repeated = estimate_step(config)
    monkeypatch.setattr(repeated_rewards, "_NUM_COMPUTED", 1000)
    computed = estimate_step(config)
    assert repeated.operations == computed.operations
    assert repeated.evaluation_bytes == pytest.approx(computed.evaluation_bytes, rel=0.002)
    assert repeated.step_bytes == pytest.approx(computed.step_bytes, rel=0.002)
    assert repeated.peak_bytes == pytest.approx(computed.peak_bytes, rel=0.002)
