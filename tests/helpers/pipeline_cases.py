"""Tiny random pipelines of further video pipelines of diffusers, in the published layout."""

from __future__ import annotations

import re
from typing import Any

import diffusers as d
import tokenizers
import transformers as t
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.cosmos import pipeline_cosmos2_5_predict
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
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
from vader_ray.models.ltx2 import LTX2Model
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


def _hunyuan_video_i2v() -> Any:
    """The text encoder sees the image as 576 tokens within the pipeline's own template."""
    transformer = d.HunyuanVideoTransformer3DModel.from_config(
        hunyuan_video().transformer.config, image_condition_type="token_replace"
    )
    tokenizer, words = build_tokenizer(), re.findall(r"\w{3,}", DEFAULT_PROMPT_TEMPLATE["template"])
    headers = ["<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_tokens(headers, special_tokens=True)
    tokenizer.add_tokens(sorted(set(words)))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    llava = t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            text_config=t.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes),
            vision_config=t.CLIPVisionConfig(image_size=48, patch_size=2, **sizes),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    processor = t.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=48)
    parts = hunyuan_video().components | {
        "transformer": transformer,
        "text_encoder": llava,
        "tokenizer": tokenizer,
    }
    return d.HunyuanVideoImageToVideoPipeline(**parts, image_processor=processor)


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


def _kandinsky5(kind: Any = d.Kandinsky5T2VPipeline) -> Any:
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
    return kind(
        transformer=transformer,
        vae=hunyuan_video().vae,
        text_encoder=qwen,
        tokenizer=processor,
        text_encoder_2=clip,
        tokenizer_2=clip_tokenizer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def _kandinsky6(scheduler: Any = None, num_predictions: int = 1) -> Any:
    """The configuration of diffusers' own test, with the switches of the published denoisers."""
    pipe = _kandinsky5()
    switches = dict.fromkeys(("text_token_padding", "ca_rope", "cross_gates", "fix_modulation"), True)
    transformer = d.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4 * num_predictions,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4 * num_predictions,
        visual_token_type_num_embeddings=2,
        **switches,
    )
    audio_vae = d.MMAudioVAE(
        mel_bins=8,
        latent_channels=4,
        hidden_channels=8,
        channel_multipliers=(1, 2),
        layers_per_block=1,
        sample_rate=64,
        n_fft=16,
        hop_length=4,
    )
    vocoder = d.MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=8,
        upsample_rates=(2, 2),
        upsample_kernel_sizes=(4, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )
    parts = pipe.components | {"transformer": transformer, "scheduler": scheduler or pipe.scheduler}
    return d.Kandinsky6TI2VAPipeline(**parts, audio_vae=audio_vae, vocoder=vocoder)


class Guardrail:
    """In place of NVIDIA's guardrail, whose networks are on the hub: it refuses a word, and blackens a pixel
    of every frame."""

    def __new__(cls) -> Any:  # no subclass, so that the pipeline's own call stays differentiable
        return _Guardrail()


class _Guardrail:
    def to(self, device: Any) -> None:
        assert device is not None

    def check_text_safety(self, prompt: str) -> bool:
        return "weapon" not in prompt

    def check_video_safety(self, frames: Any) -> Any:
        frames[..., 0, 0, :] = 0
        return frames


pipeline_cosmos2_5_predict.CosmosSafetyChecker = Guardrail  # as diffusers' own tests do


def _cosmos() -> Any:
    transformer = d.CosmosTransformer3DModel(
        in_channels=17,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=8,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        extra_pos_embed_type=None,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=16,
        encoder_hidden_states_channels=8,
    )
    tokenizer, _ = _qwen_text()
    qwen = t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(**_qwen_vl(len(tokenizer), out_hidden_size=8))
    )
    return wan_pipeline(
        d.Cosmos2_5_PredictBasePipeline, transformer=transformer, tokenizer=tokenizer, text_encoder=qwen
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


def _ltx2(kind: Any = d.LTX2Pipeline) -> Any:
    transformer = d.LTX2VideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=8,
        vae_scale_factors=(4, 8, 8),
    )
    connectors = LTX2TextConnectors(
        caption_channels=8,
        text_proj_in_factor=2,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=4,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=4,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
    )
    vae = d.AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 16),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(True, True),
        upsample_factor=(2, 2),
        patch_size=2,
        decoder_causal=False,
    )
    vae.latents_mean.uniform_(-0.1, 0.1)
    vae.latents_std.uniform_(0.5, 2)
    audio_vae = d.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    attention = {"num_key_value_heads": 2, "head_dim": 4}
    text = {"vocab_size": len(tokenizer), **attention, **sizes}
    vision = {"image_size": 28, "patch_size": 14, **sizes}
    tokens = {"boi_token_index": 1, "eoi_token_index": 2, "image_token_index": 0}
    gemma = t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    return kind(scheduler, vae, audio_vae, gemma, tokenizer, connectors, transformer, vocoder)


PIPELINES = {
    "cosmos": Case("auto", _cosmos, size_of(5, 16), call={"negative_prompt": ""}, **WAN),
    "ltx2": Case("auto", _ltx2, size_of(9, 32), **FLOAT32 | {"calls_per_step": 3}),
    "ltx2_without_guidance": Case(
        "auto", _ltx2, size_of(9, 32, guidance_scale=1.0), call=dict(LTX2Model.no_guidance_kwargs), **FLOAT32
    ),
    "ltx2_i2v": Case(
        "auto",
        lambda: _ltx2(d.LTX2ImageToVideoPipeline),
        size_of(9, 32),
        images=True,
        **FLOAT32 | {"calls_per_step": 3},
    ),
    "hunyuan_video_15_i2v": Case(
        "auto", _hunyuan_video_15_i2v, size_of(5, 32), images=True, calls_per_step=2
    ),
    "hunyuan_video_i2v": Case("auto", _hunyuan_video_i2v, size_of(5, 16), images=True),
    "motif_video_i2v": Case("auto", _motif_i2v, size_of(5, 32), images=True, **WAN),
    "kandinsky5_i2v": Case(
        "auto",
        lambda: _kandinsky5(d.Kandinsky5I2VPipeline),
        size_of(21, 32),
        images=True,
        call={"negative_prompt": ""},
        **WAN,
    ),
    "kandinsky5": Case("auto", _kandinsky5, size_of(5, 32), call={"negative_prompt": ""}, **WAN),
    "kandinsky6": Case("auto", _kandinsky6, size_of(5, 32), call={"negative_prompt": ""}, **WAN),
    "kandinsky6_i2v": Case(
        "auto", _kandinsky6, size_of(5, 32), images=True, call={"negative_prompt": ""}, **WAN
    ),
    "kandinsky6_distilled": Case(
        "auto",
        lambda: _kandinsky6(d.PiflowScheduler(n_grid=3), 3),
        size_of(5, 32, guidance_scale=1.0),
        **FLOAT32,
    ),
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
