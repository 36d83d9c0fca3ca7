"""HunyuanVideo 1.5 (``hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v``).

Videos from text, or from an image.
"""

from __future__ import annotations

from vader_ray.errors import UserError
from vader_ray.models.core.conditioning import TextEncoding
from vader_ray.models.core.decoders import DecoderOptions, WholeClip
from vader_ray.models.core.guider import GuiderPipeline


class HunyuanVideo15Model(GuiderPipeline):
    """Flow-predicting transformer, Qwen 2.5 VL and ByT5 text encoders, causal autoencoder of a whole clip.

    Videos are sampled and decoded one by one: the pipeline fails with several in diffusers 0.42. Videos
    from an image have its size. Adapters are saved in peft's format.
    """

    pipeline_classes = ("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline")
    image_pipeline_classes = ("HunyuanVideo15ImageToVideoPipeline",)
    loads_in_comfyui = False
    batched = False
    rounds_timesteps = True
    text_encoding = TextEncoding(negative_apart=True)
    embeddings = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")

    def latent_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of one video's noise.

        Raises:
            UserError: the pipeline would round the number of frames, or change the size of the image.
        """
        sampling, pipe = self.sampling, self.pipe
        if self.is_image_to_video:
            height, width = pipe.video_processor.calculate_default_height_width(
                height=sampling.height, width=sampling.width, target_size=pipe.target_size
            )
            if (height, width) != (sampling.height, sampling.width):
                raise UserError(
                    f"sampling: this model makes no videos of {sampling.height} x {sampling.width} from "
                    f"images; set sampling.height={height} and sampling.width={width}, or another size of "
                    "this area"
                )
        return super().latent_shape()

    def build_decoder(self, options: DecoderOptions) -> WholeClip:
        """Return the decoder; the mask of its attention does not fit several videos in diffusers 0.42."""
        return WholeClip(self.pipe.vae, self.vae_scale_factors()[0], one_by_one=True)
