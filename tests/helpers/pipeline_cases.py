"""Tiny random pipelines of further video pipelines of diffusers, in the published layout."""

from __future__ import annotations

from typing import Any

import diffusers as d
import tokenizers
import transformers as t
from diffusers.guiders import ClassifierFreeGuidance
from transformers.models.t5gemma2.modeling_t5gemma2 import T5Gemma2Encoder

from tests.helpers.families import (
    FLOAT32,
    VIDEO_IS_FLOAT32,
    WAN,
    Case,
    clip_text,
    clip_vision,
    hunyuan_video,
    ltx,
    size_of,
    t5,
    wan_pipeline,
    wan_vae,
)
from tests.helpers.tiny_qwen import tokenizer_text
from vader_ray.shapes.train._tokenizer import build_tokenizer


def _skyreels(kind: Any = d.SkyReelsV2Pipeline, channels: int = 16, **more: Any) -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16}
    images = {"image_dim": 8, "added_kv_proj_dim": 24} if more else {}
    transformer = d.SkyReelsV2Transformer3DModel(
        in_channels=channels, out_channels=16, num_layers=1, rope_max_seq_len=32, **sizes, **images
    )
    return wan_pipeline(kind, transformer=transformer, **more)


def _skyreels_i2v() -> Any:
    processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    images = {"image_encoder": clip_vision(t.CLIPVisionModelWithProjection, 32), "image_processor": processor}
    return _skyreels(d.SkyReelsV2ImageToVideoPipeline, 36, **images)


def _anyflow() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16}
    transformer = d.AnyFlowTransformer3DModel(num_layers=1, rope_max_seq_len=32, **sizes)
    scheduler = d.FlowMapEulerDiscreteScheduler(shift=5.0)
    return wan_pipeline(d.AnyFlowPipeline, transformer=transformer, scheduler=scheduler)


def _wan_vace() -> Any:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 8, "freq_dim": 16, "ffn_dim": 16}
    transformer = d.WanVACETransformer3DModel(
        num_layers=2, rope_max_seq_len=32, vace_layers=[0], vace_in_channels=96, **sizes
    )
    return wan_pipeline(d.WanVACEPipeline, transformer=transformer)


def _latte() -> Any:
    transformer = d.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=2,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=8,
        video_length=3,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = d.AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **blocks)
    scheduler = d.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    parts = t5()
    return d.LattePipeline(parts["tokenizer"], parts["text_encoder"], vae, transformer, scheduler)


def _sana() -> Any:
    transformer = d.SanaVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=8,
        rope_max_seq_len=32,
    )
    tokenizer = build_tokenizer()
    gemma = t.Gemma2Model(
        t.Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
        )
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=8.0)
    return d.SanaVideoPipeline(tokenizer, gemma, wan_vae(), transformer, scheduler)


def _ltx_i2v() -> Any:
    pipe = ltx()
    return d.LTXImageToVideoPipeline(**pipe.components)


def _animatediff_sdxl() -> Any:
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = d.UNet2DConditionModel(
        **sizes,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56,
        transformer_layers_per_block=1,
        use_linear_projection=True,
    )
    motion = d.MotionAdapter(
        block_out_channels=(8, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = d.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    tokenizer, first = clip_text(16, num_layers=2)  # the last layer's output is not used
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    second = t.CLIPTextModelWithProjection(
        t.CLIPTextConfig(
            vocab_size=len(tokenizer), max_position_embeddings=16, projection_dim=8, **sizes, **ends
        )
    )
    scheduler = d.DDIMScheduler(beta_schedule="linear", clip_sample=False, steps_offset=1)
    return d.AnimateDiffSDXLPipeline(vae, first, second, tokenizer, tokenizer, unet, motion, scheduler)


def _sana_i2v() -> Any:
    return d.SanaImageToVideoPipeline(**_sana().components)


def _skyreels_v1() -> Any:
    return d.HunyuanSkyreelsImageToVideoPipeline(**hunyuan_video(8).components)


def _motif(kind: Any = d.MotifVideoPipeline, image_width: int | None = None, **more: Any) -> Any:
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    attention = {"num_key_value_heads": 2, "head_dim": 4}
    text = {"vocab_size": len(tokenizer), "dropout_rate": 0.0, **attention, **sizes}
    vision = {"model_type": "siglip_vision_model", "image_size": 28, **sizes}
    config = t.T5Gemma2EncoderConfig(text_config=text, vision_config=vision, image_token_index=0)
    encoder = T5Gemma2Encoder(config)
    transformer = d.MotifVideoTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        text_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        image_embed_dim=image_width,
    )
    return kind(
        scheduler=d.FlowMatchEulerDiscreteScheduler(),
        vae=wan_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        guider=ClassifierFreeGuidance(guidance_scale=8.0),
        **more,
    )


def _qwen_text() -> tuple[Any, Any]:
    tokenizer = t.Qwen2Tokenizer(tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer_text()))
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0]}
    config = t.Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, rope_parameters=rope, **sizes
    )
    return tokenizer, t.Qwen2_5_VLTextModel(config)


def _qwen_vl(num_tokens: int, **vision: int) -> dict[str, Any]:
    """Settings of a tiny Qwen 2 or 2.5 VL."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0]}
    text = {"vocab_size": num_tokens, "num_key_value_heads": 2, "rope_parameters": rope, **sizes}
    return {"text_config": text, "vision_config": {"depth": 1, "hidden_size": 8, "num_heads": 2, **vision}}


def _hunyuan_video_15(kind: Any = d.HunyuanVideo15Pipeline, task: str = "t2v", **more: Any) -> Any:
    transformer = d.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(2, 4, 4),
        task_type=task,
        target_size=32,
    )
    vae = d.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    tokenizer, encoder = _qwen_text()
    byt5 = t.ByT5Tokenizer()
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return kind(
        text_encoder=encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=t.T5EncoderModel(t.T5Config(vocab_size=len(byt5), **sizes)),
        tokenizer_2=byt5,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
        **more,
    )


def _hunyuan_video_15_i2v() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = t.SiglipVisionModel(t.SiglipVisionConfig(image_size=28, patch_size=14, **sizes))
    processor = t.SiglipImageProcessor(size={"height": 28, "width": 28})
    images = {"image_encoder": encoder, "feature_extractor": processor}
    return _hunyuan_video_15(d.HunyuanVideo15ImageToVideoPipeline, "i2v", **images)


def _motif_i2v() -> Any:
    processor = t.SiglipImageProcessor(size={"height": 28, "width": 28})
    return _motif(d.MotifVideoImage2VideoPipeline, 8, feature_extractor=processor)


def _kandinsky5() -> Any:
    transformer = d.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        out_visual_dim=4,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 4),
        visual_cond=True,
    )
    clip_tokenizer, clip = clip_text(77)
    tokenizer, _ = _qwen_text()
    qwen = t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(**_qwen_vl(len(tokenizer), out_hidden_size=8))
    )
    processor = t.Qwen2VLProcessor(t.Qwen2VLImageProcessor(), tokenizer, t.Qwen2VLVideoProcessor())
    return d.Kandinsky5T2VPipeline(
        transformer=transformer,
        vae=hunyuan_video().vae,
        text_encoder=qwen,
        tokenizer=processor,
        text_encoder_2=clip,
        tokenizer_2=clip_tokenizer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def _easyanimate() -> Any:
    transformer = d.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=2,
        sample_height=2,
        num_layers=1,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=8,
    )
    vae = d.AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=[8, 8, 8, 8], layers_per_block=1, norm_num_groups=2
    )
    tokenizer, _ = _qwen_text()
    qwen = t.Qwen2VLForConditionalGeneration(t.Qwen2VLConfig(**_qwen_vl(len(tokenizer), embed_dim=8)))
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return d.EasyAnimatePipeline(vae, qwen, tokenizer, transformer, scheduler)


PIPELINES = {
    "hunyuan_video_15_i2v": Case(
        "auto", _hunyuan_video_15_i2v, size_of(5, 32), images=True, calls_per_step=2
    ),
    "motif_video_i2v": Case("auto", _motif_i2v, size_of(5, 32), images=True, **WAN),
    "kandinsky5": Case("auto", _kandinsky5, size_of(5, 32), call={"negative_prompt": ""}, **WAN),
    "easyanimate": Case("auto", _easyanimate, size_of(5, 16), call={"negative_prompt": ""}),
    "sana_video_i2v": Case(
        "auto", _sana_i2v, size_of(5, 32), images=True, call={"use_resolution_binning": False}, **FLOAT32
    ),
    "skyreels_v1": Case(
        "auto", _skyreels_v1, size_of(5, 16), images=True, calls_per_step=2, call={"negative_prompt": ""}
    ),
    "motif_video": Case("auto", _motif, size_of(5, 32), **WAN),
    "hunyuan_video_15": Case("auto", _hunyuan_video_15, size_of(5, 32), calls_per_step=2),
    "ltx_i2v": Case("auto", _ltx_i2v, size_of(9, 32), images=True),
    "animatediff_sdxl": Case("auto", _animatediff_sdxl, size_of(3, 16), tolerance=VIDEO_IS_FLOAT32),
    "skyreels_v2": Case("auto", _skyreels, size_of(9, 16), **WAN),
    "skyreels_v2_i2v": Case("auto", _skyreels_i2v, size_of(5, 16), images=True, **WAN),
    "anyflow": Case("auto", _anyflow, size_of(9, 16, guidance_scale=1.0), **FLOAT32),
    "wan_vace": Case("auto", _wan_vace, size_of(5, 16), **WAN),
    "latte": Case("auto", _latte, size_of(3, 16), tolerance=VIDEO_IS_FLOAT32, call={"decode_chunk_size": 2}),
    "sana_video": Case("auto", _sana, size_of(5, 32), call={"use_resolution_binning": False}, **FLOAT32),
}
"""One case for each pipeline class that `tests.helpers.families.CASES` leaves out."""
