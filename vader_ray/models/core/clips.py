"""Videos of several clips, each of which continues the last frame of the one before."""

from __future__ import annotations

from typing import Any, ClassVar

from vader_ray.config import SamplingConfig
from vader_ray.errors import UserError
from vader_ray.models.core.conditioning import Conditioning
from vader_ray.models.core.decoders import DecoderOptions
from vader_ray.models.core.sampling import SamplingPipeline
from vader_ray.types import Images


class ClipsPipeline(SamplingPipeline):
    """A diffusers pipeline that continues a video from its last frame, if it makes videos from images."""

    continues_frames: ClassVar[bool] = True
    """Whether a pipeline that makes videos from images can take a frame of another video as its image, with
    gradient."""

    def __init__(self, pipe: Any, sampling: SamplingConfig, decoder_options: DecoderOptions) -> None:
        super().__init__(pipe, sampling, decoder_options)
        if sampling.num_clips > 1:
            self.check_clips()

    def check_clips(self) -> None:
        """Check that the model can continue a video from its last frame, with gradient.

        Raises:
            UserError: as `check_continues`.
        """
        self.check_continues(type(self.pipe).__name__, takes_images=self.is_image_to_video)

    @classmethod
    def check_continues(cls, pipeline: str, *, takes_images: bool) -> None:
        """Check that a pipeline of this family can continue a video from its last frame; needs no weights.

        Args:
            pipeline: name of its class.
            takes_images: whether it makes videos from images.

        Raises:
            UserError: it makes no videos from images, or changes images in a way without gradient.
        """
        reason = (
            "makes no videos from images"
            if not takes_images
            else "does more with an image than to encode it, through which no gradient flows"
        )
        if not (takes_images and cls.continues_frames):
            raise UserError(
                f"sampling.num_clips continues a video from its last frame, and {pipeline} {reason}; set it "
                "to 1, or choose other weights, of an image-to-video model"
            )

    def with_images(self, conditioning: Conditioning, images: Images) -> Conditioning:
        """Return the conditioning of the same videos with other first frames, to which gradient flows."""
        return Conditioning(conditioning.tensors | {"image": list(images)})
