"""Motif-Video (``Motif-Technologies/Motif-Video-2B``): videos from text, or from an image."""

from __future__ import annotations

from vader_ray.models.core.guider import GuiderPipeline


class MotifVideoModel(GuiderPipeline):
    """Flow-predicting transformer, T5Gemma text encoder, Wan's autoencoder.

    The image-to-video pipeline takes one image for all its videos, so videos are sampled one by one there.
    Adapters are saved in peft's format.
    """

    pipeline_classes = ("MotifVideoPipeline", "MotifVideoImage2VideoPipeline")
    image_pipeline_classes = ("MotifVideoImage2VideoPipeline",)
    loads_in_comfyui = False
    takes_one_image = True
    embeddings = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_attention_mask",
    )

    def free_text_encoders(self) -> None:
        """Release the text encoder, but for the image encoder within it, which the loop calls."""
        if not self.is_image_to_video:
            super().free_text_encoders()
            return
        encoder = self.pipe.text_encoder
        for name, _ in list(encoder.named_children()):
            if name != "vision_tower":
                setattr(encoder, name, None)
