"""Videos computed by several workers: latents and summed gradients are those of one worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.families import CASES, save, save_images
from tests.helpers.video_workers import differentiate_together
from tests.helpers.workers import run_workers
from vader_ray.config import ActivationCheckpointing

CONTEXT, GUIDANCE = {"context_parallel": 2}, {"guidance_parallel": True}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_workers", "settings", "recompute", "checkpointing"),
    [
        ("wan", 2, CONTEXT, False, "block"),
        ("wan_a14b", 2, GUIDANCE, True, "none"),  # two calls for the two branches, two denoisers
        ("cogvideox", 2, GUIDANCE, False, "none"),  # one call for both branches
        pytest.param("wan_i2v", 4, CONTEXT | GUIDANCE, True, "none", marks=pytest.mark.chaos),
        pytest.param("ltx", 2, CONTEXT, True, "attention", marks=pytest.mark.chaos),
        pytest.param("ltx", 4, CONTEXT | GUIDANCE, False, "none", marks=pytest.mark.chaos),
        pytest.param("wan_5b", 2, CONTEXT, True, "none", marks=pytest.mark.chaos),
        pytest.param("svd", 2, GUIDANCE, True, "none", marks=pytest.mark.chaos),
        pytest.param("animatediff", 2, GUIDANCE, True, "none", marks=pytest.mark.chaos),
        pytest.param("mochi", 2, GUIDANCE, True, "none", marks=pytest.mark.chaos),
    ],
)
def test_workers_of_a_video_compute_what_one_does(
    name: str,
    num_workers: int,
    settings: dict[str, Any],
    recompute: bool,
    checkpointing: ActivationCheckpointing,
    tmp_path: Path,
) -> None:
    """In float64: two gradient steps, through the latents between them, with a reference penalty.

    AnimateDiff's text encoder is trained, too, and without a penalty: each branch adds its part.
    """
    folder, images = save(CASES[name], tmp_path / "pipeline"), save_images(tmp_path)
    (tmp_path / "meetings").mkdir()
    arguments = (name, folder, images, settings, recompute, checkpointing)
    for latents, gradient, together, summed in run_workers(
        differentiate_together, num_workers, tmp_path / "meetings", *arguments
    ):
        assert gradient.abs().max() > 0
        assert torch.allclose(latents, together, rtol=0, atol=1e-10)
        assert (gradient - summed).abs().max() <= 1e-10 * gradient.abs().max()
