"""Tiny random pipelines of every family, in the published layout, as the library saves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers as d
import numpy as np
import torch
import transformers as t
from PIL import Image

from vader_ray.config import Precision
from vader_ray.shapes.train._tokenizer import build_tokenizer


@dataclass(frozen=True)
class Case:
    """One checkpoint layout and what a recipe says about it."""

    family: str
    build: Callable[[], Any]
    sampling: dict[str, Any]
    schedulers: tuple[str | None, ...] = (None,)
    images: bool = False
    precision: Precision = "float64"
    """Of the gradient test; Wan keeps some layers in float32 whatever is asked."""
    tolerance: float = 1e-10
    calls_per_step: int = 1
    """Calls of the denoiser in a denoising step: two if the branches of guidance are computed one by one."""
    call: dict[str, Any] = field(default_factory=dict)
    """Arguments by which the pipeline's own call differs from the recipe's words."""


def save(case: Case, folder: Path) -> Path:
    """The pipeline on disk, without zero-initialised layers: they would hide errors."""
    torch.manual_seed(0)
    pipe = case.build()
    for name in ("unet", "transformer", "transformer_2"):
        for parameter in getattr(pipe, name).parameters() if getattr(pipe, name, None) is not None else ():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    pipe.save_pretrained(folder)
    return folder


def save_images(folder: Path, count: int = 2) -> list[Path]:
    """Random pictures that are not of the video's shape."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(path)
    return paths


def t5(kind: Any = t.T5EncoderModel, config: Any = t.T5Config) -> dict[str, Any]:
    tokenizer = build_tokenizer()
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return {"tokenizer": tokenizer, "text_encoder": kind(config(vocab_size=len(tokenizer), **sizes))}


def clip_text(length: int, num_layers: int = 1) -> tuple[Any, Any]:
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    sizes["num_hidden_layers"] = num_layers
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = t.CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=length, **sizes, **ends)
    return tokenizer, t.CLIPTextModel(config)


def clip_vision(kind: Any, size: int) -> Any:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 8,
    }
    return kind(t.CLIPVisionConfig(image_size=size, patch_size=size // 2, **sizes))


_EULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _svd() -> Any:
    unet = d.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    vae = d.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2
    )
    spacing = {
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "sigma_min": 0.002,
        "sigma_max": 700.0,
    }
    scheduler = d.EulerDiscreteScheduler(
        **_EULER, **spacing, prediction_type="v_prediction", use_karras_sigmas=True
    )
    encoder = clip_vision(t.CLIPVisionModelWithProjection, 224)
    return d.StableVideoDiffusionPipeline(vae, encoder, unet, scheduler, t.CLIPImageProcessor())


def animatediff_parts() -> dict[str, Any]:
    """An image model and motion modules for it, with AnimateDiff's scheduler."""
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    unet = d.UNet2DConditionModel(
        **sizes,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    motion = d.MotionAdapter(
        block_out_channels=(8, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = d.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)
    tokenizer, text_encoder = clip_text(16)
    scheduler = d.DDIMScheduler(**_EULER | {"beta_schedule": "linear"}, clip_sample=False, steps_offset=1)
    return {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "motion_adapter": motion,
        "scheduler": scheduler,
    }


def _cogvideox(kind: Any = d.CogVideoXPipeline, in_channels: int = 4, **transformer: Any) -> Any:
    model = d.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=8,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=17,
        **transformer,
    )
    vae = d.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    zero_snr = {"rescale_betas_zero_snr": True, "snr_shift_scale": 3.0, "timestep_spacing": "trailing"}
    scheduler = d.CogVideoXDDIMScheduler(
        **_EULER, **zero_snr, prediction_type="v_prediction", clip_sample=False
    )
    return kind(vae=vae, transformer=model, scheduler=scheduler, **t5())


def wan_transformer(channels: int = 16, **more: Any) -> Any:
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 1,
    }
    settings = {
        "in_channels": channels,
        "out_channels": channels,
        "cross_attn_norm": True,
        "rope_max_seq_len": 32,
    }
    return d.WanTransformer3DModel(**sizes | settings | more)


def wan_vae() -> Any:
    """Wan 2.1's autoencoder."""
    return d.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def wan_pipeline(kind: Any = d.WanPipeline, **parts: Any) -> Any:
    """A pipeline with Wan's parts but for those that are given."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    wan = {
        "vae": wan_vae(),
        "transformer": wan_transformer(),
        "scheduler": d.UniPCMultistepScheduler(**flow),
        **t5(t.UMT5EncoderModel, t.UMT5Config),
    }
    return kind(**wan | parts)


def _wan_5b() -> Any:
    vae = d.AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=8,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1] * 8,
        latents_std=[1.5] * 8,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return wan_pipeline(vae=vae, transformer=wan_transformer(8), expand_timesteps=True)


def _wan_i2v() -> Any:
    transformer = wan_transformer(in_channels=36, image_dim=8, added_kv_proj_dim=24)
    encoder = clip_vision(t.CLIPVisionModel, 32)
    processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    images = {"image_encoder": encoder, "image_processor": processor}
    return wan_pipeline(d.WanImageToVideoPipeline, transformer=transformer, **images)


def _wan_i2v_a14b() -> Any:
    experts = {name: wan_transformer(in_channels=36) for name in ("transformer", "transformer_2")}
    return wan_pipeline(d.WanImageToVideoPipeline, **experts, boundary_ratio=0.9)


def ltx(timestep_conditioning: bool = False) -> Any:
    transformer = d.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    vae = d.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
        timestep_conditioning=timestep_conditioning,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    return d.LTXPipeline(scheduler, vae, transformer=transformer, **t5())


def hunyuan_video(channels: int = 4) -> Any:
    """HunyuanVideo; its denoiser takes ``channels``."""
    transformer = d.HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    vae = d.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    tokenizer, clip_tokenizer_and_model = build_tokenizer(), clip_text(77)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    llama = t.LlamaModel(t.LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=7.0)
    return d.HunyuanVideoPipeline(
        llama,
        tokenizer,
        transformer,
        vae,
        scheduler,
        clip_tokenizer_and_model[1],
        clip_tokenizer_and_model[0],
    )


def _mochi() -> Any:
    transformer = d.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        text_embed_dim=8,
        time_embed_dim=4,
        max_sequence_length=256,
    )
    vae = d.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1,) * 5,
    )
    scheduler = d.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return d.MochiPipeline(scheduler, vae, transformer=transformer, **t5())


def size_of(num_frames: int, size: int, guidance_scale: float = 3.0) -> dict[str, Any]:
    return {
        "num_frames": num_frames,
        "height": size,
        "width": size,
        "num_inference_steps": 3,
        "guidance_scale": guidance_scale,
    }


VIDEO_IS_FLOAT32 = 1e-6  # these pipelines cast the decoded video
FLOAT32: dict[str, Any] = {"precision": "float32", "tolerance": 1e-5}
"""For pipelines that keep some layers in float32, whatever the precision is."""
WAN: dict[str, Any] = FLOAT32 | {"calls_per_step": 2}
CASES = {
    "svd": Case("svd", _svd, size_of(3, 16), images=True, tolerance=VIDEO_IS_FLOAT32),
    "animatediff": Case(
        "animatediff",
        lambda: d.AnimateDiffPipeline(**animatediff_parts()),
        size_of(3, 16),
        ("DDIMScheduler", "EulerDiscreteScheduler"),
        tolerance=VIDEO_IS_FLOAT32,
    ),
    "cogvideox": Case(
        "cogvideox", _cogvideox, size_of(17, 16), ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
    ),
    "cogvideox_i2v": Case(
        "cogvideox",
        lambda: _cogvideox(d.CogVideoXImageToVideoPipeline, 8, use_rotary_positional_embeddings=True),
        size_of(9, 16),
        images=True,
    ),
    "cogvideox_1_5": Case(
        "cogvideox",
        lambda: _cogvideox(patch_size_t=2, patch_bias=False, use_rotary_positional_embeddings=True),
        size_of(17, 16),  # five latent frames, padded to six
    ),
    "wan": Case(
        "wan",
        wan_pipeline,
        size_of(9, 16),
        ("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
        **WAN,
    ),
    "wan_5b": Case("wan", _wan_5b, size_of(5, 32), **WAN),
    "wan_a14b": Case(
        "wan",
        lambda: wan_pipeline(transformer_2=wan_transformer(), boundary_ratio=0.875),
        size_of(5, 16),
        **WAN,
    ),
    "wan_i2v": Case("wan", _wan_i2v, size_of(5, 16), images=True, **WAN),
    "wan_i2v_a14b": Case("wan", _wan_i2v_a14b, size_of(5, 16), images=True, **WAN),
    "ltx": Case("ltx", ltx, size_of(9, 32)),
    "ltx_denoising_decoder": Case(
        "ltx", lambda: ltx(True), size_of(9, 32), call={"decode_timestep": 0.05, "decode_noise_scale": 0.025}
    ),
    "hunyuan_video": Case("hunyuan_video", hunyuan_video, size_of(5, 16)),
    "mochi": Case("mochi", _mochi, size_of(7, 16)),
}
DEEP_WAN = Case(
    "wan",
    lambda: wan_pipeline(transformer=wan_transformer(num_layers=8, ffn_dim=512)),
    size_of(65, 64),
    **WAN,
)
"""A denoiser with more activations than the decoder."""
