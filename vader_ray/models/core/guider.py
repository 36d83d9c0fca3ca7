"""Pipelines whose guidance is computed by a component of their own, the guider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.base import VideoModel
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.loading import quiet
from vader_ray.models.core.loop_hooks import LoopHook
from vader_ray.types import Latents


class GuiderPipeline(VideoModel):
    """A pipeline with a guider, whose scale is ``sampling.guidance_scale`` instead of an argument.

    Raises:
        UserError: the guider is not that of classifier-free guidance; others have a memory of earlier steps.
    """

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        self._guiders: dict[float, Any] = {}
        if (name := type(pipe.guider).__name__) != "ClassifierFreeGuidance":
            raise UserError(
                f"model.weights: the pipeline's guider is {name}; only ClassifierFreeGuidance is supported: "
                "save the pipeline with pipe.guider = ClassifierFreeGuidance()"
            )

    def _run_pipeline(
        self, latents: Tensor, conditioning: Conditioning, hook: LoopHook, **changes: float
    ) -> Latents:
        with self._scaled(changes.pop("guidance_scale", self.sampling.guidance_scale)):
            return super()._run_pipeline(latents, conditioning, hook, **changes)

    @contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        before = self.pipe.guider
        if scale not in self._guiders:
            with quiet():
                self._guiders[scale] = before.new(guidance_scale=scale)
        self.pipe.guider = self._guiders[scale]
        try:
            yield
        finally:
            self.pipe.guider = before
