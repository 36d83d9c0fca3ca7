"""AnimateDiff over Stable Diffusion XL: a folder that ``AnimateDiffSDXLPipeline.save_pretrained`` wrote."""

from __future__ import annotations

from vader_ray.models.animatediff import AnimateDiffModel


class AnimateDiffSDXLModel(AnimateDiffModel):
    """Noise-predicting image UNet with motion modules, two CLIP text encoders, image autoencoder."""

    pipeline_classes = ("AnimateDiffSDXLPipeline",)
    loads_in_comfyui = False
    embeddings = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
