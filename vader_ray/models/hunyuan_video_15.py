"""HunyuanVideo 1.5 (``hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v``).

Videos from text, or from an image.
"""

from __future__ import annotations

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
    text_encoding = TextEncoding(negative_apart=True)
    embeddings = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")

    def build_decoder(self, options: DecoderOptions) -> WholeClip:
        """Return the decoder; the mask of its attention does not fit several videos in diffusers 0.42."""
        return WholeClip(self.pipe.vae, self.vae_scale_factors()[0], one_by_one=True)
