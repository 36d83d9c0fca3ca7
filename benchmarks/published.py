"""Configuration files of published models, without weights: what `benchmarks.preflight` counts.

Nothing is downloaded: the sizes are copied from the configuration files on the hub. Text encoders have their
published sizes and a small tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from vader_ray.shapes.train._tokenizer import build_tokenizer

SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def modelscope() -> tuple[type, dict[str, Any]]:
    """``ali-vilab/text-to-video-ms-1.7b``: its UNet is diffusers' default, its text encoder OpenCLIP's
    ViT-H."""
    text = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
    }
    return d.TextToVideoSDPipeline, {
        "unet": d.UNet3DConditionModel(),
        "vae": d.AutoencoderKL(**SD_VAE),
        "text_encoder": t.CLIPTextModel(t.CLIPTextConfig(**text)),
        "tokenizer": tokenizer(77),
        "scheduler": scheduler(
            d.DDIMScheduler, **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
    }


def stable_diffusion() -> tuple[type, dict[str, Any]]:
    """``stable-diffusion-v1-5/stable-diffusion-v1-5``: its text encoder is OpenAI's CLIP ViT-L/14."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return d.StableDiffusionPipeline, {
        "unet": d.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64),
        "vae": d.AutoencoderKL(**SD_VAE),
        "text_encoder": t.CLIPTextModel(t.CLIPTextConfig(**text)),
        "tokenizer": tokenizer(77),
        "scheduler": scheduler(d.PNDMScheduler, **BETAS, skip_prk_steps=True, steps_offset=1),
    }


def svd() -> tuple[type, dict[str, Any]]:
    """``stabilityai/stable-video-diffusion-img2vid``: its image encoder is OpenCLIP's ViT-H."""
    sizes = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
    }
    image_encoder = t.CLIPVisionConfig(**sizes, image_size=224, patch_size=14, projection_dim=1024)
    return d.StableVideoDiffusionPipeline, {
        "unet": d.UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)),
        "vae": d.AutoencoderKLTemporalDecoder(
            **{key: SD_VAE[key] for key in ("block_out_channels", "layers_per_block")},
            down_block_types=SD_VAE["down_block_types"],
            latent_channels=4,
        ),
        "image_encoder": t.CLIPVisionModelWithProjection(image_encoder),
        "feature_extractor": t.CLIPImageProcessor(),
        "scheduler": scheduler(
            d.EulerDiscreteScheduler,
            **BETAS,
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            timestep_spacing="leading",
            timestep_type="continuous",
            sigma_min=0.002,
            sigma_max=700.0,
        ),
    }


def wan_1_3b() -> tuple[type, dict[str, Any]]:
    """``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``."""
    return wan(num_attention_heads=12, ffn_dim=8960, num_layers=30)


def wan_14b() -> tuple[type, dict[str, Any]]:
    """``Wan-AI/Wan2.1-T2V-14B-Diffusers``."""
    return wan(num_attention_heads=40, ffn_dim=13824, num_layers=40)


def anyflow_14b() -> tuple[type, dict[str, Any]]:
    """``nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers``: Wan 2.1 14B with the next noise level as an input."""
    _, parts = wan_14b()
    return d.AnyFlowPipeline, parts | {
        "transformer": d.AnyFlowTransformer3DModel(),
        "scheduler": scheduler(d.FlowMapEulerDiscreteScheduler, shift=5.0),
    }


def wan_a14b() -> tuple[type, dict[str, Any]]:
    """``Wan-AI/Wan2.2-T2V-A14B-Diffusers``: a second transformer for the less noisy steps."""
    kind, parts = wan_14b()
    second = d.WanTransformer3DModel.from_config(parts["transformer"].config)
    return kind, parts | {"transformer_2": second, "boundary_ratio": 0.875}


def wan_5b() -> tuple[type, dict[str, Any]]:
    """``Wan-AI/Wan2.2-TI2V-5B-Diffusers``: its autoencoder divides height and width by 16."""
    channels = 48
    kind, parts = wan(
        num_attention_heads=24, ffn_dim=14336, num_layers=30, in_channels=channels, out_channels=channels
    )
    vae = d.AutoencoderKLWan(
        base_dim=160,
        decoder_base_dim=256,
        z_dim=channels,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[0.0] * channels,  # the published ones are other numbers, of no weight in counts
        latents_std=[1.0] * channels,
    )
    return kind, parts | {"vae": vae, "expand_timesteps": True}


def wan(**sizes: int) -> tuple[type, dict[str, Any]]:
    """A Wan 2.1: its autoencoder is diffusers' default, its text encoder umT5-XXL."""
    text = {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 64,
        "vocab_size": 256384,
    }
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return d.WanPipeline, {
        "transformer": d.WanTransformer3DModel(attention_head_dim=128, text_dim=4096, freq_dim=256, **sizes),
        "vae": d.AutoencoderKLWan(),
        "text_encoder": t.UMT5EncoderModel(t.UMT5Config(**text)),
        "tokenizer": tokenizer(512),
        "scheduler": scheduler(d.UniPCMultistepScheduler, **flow),
    }


T5_XXL: dict[str, Any] = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def ltx() -> tuple[type, dict[str, Any]]:
    """``Lightricks/LTX-Video``: transformer and autoencoder are diffusers' defaults."""
    return d.LTXPipeline, {
        "transformer": d.LTXVideoTransformer3DModel(),
        "vae": d.AutoencoderKLLTXVideo(),
        "text_encoder": t.T5EncoderModel(t.T5Config(**T5_XXL)),
        "tokenizer": tokenizer(128),
        "scheduler": scheduler(
            d.FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True, shift_terminal=0.1
        ),
    }


def ltx2() -> tuple[type, dict[str, Any]]:
    """``Lightricks/LTX-2``: diffusers' defaults but for the autoencoder's ratios, Gemma 3 12B."""
    text = {
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 262208,
    }
    vision = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
    }
    return d.LTX2Pipeline, {
        "transformer": d.LTX2VideoTransformer3DModel(),
        "vae": d.AutoencoderKLLTX2Video(spatial_compression_ratio=32, temporal_compression_ratio=8),
        "audio_vae": d.AutoencoderKLLTX2Audio(),
        "vocoder": LTX2Vocoder(),
        "connectors": LTX2TextConnectors(),
        "text_encoder": t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(text_config=text, vision_config=vision)
        ),
        "tokenizer": tokenizer(1024),
        "scheduler": scheduler(
            d.FlowMatchEulerDiscreteScheduler, use_dynamic_shifting=True, shift_terminal=0.1
        ),
    }


def hunyuan_video() -> tuple[type, dict[str, Any]]:
    """``hunyuanvideo-community/HunyuanVideo``: diffusers' defaults, Llama 3 8B and CLIP's ViT-L."""
    llama = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128320,
    }
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return d.HunyuanVideoPipeline, {
        "transformer": d.HunyuanVideoTransformer3DModel(),
        "vae": d.AutoencoderKLHunyuanVideo(),
        "text_encoder": t.LlamaModel(t.LlamaConfig(**llama)),
        "tokenizer": tokenizer(256),
        "text_encoder_2": t.CLIPTextModel(t.CLIPTextConfig(**clip)),
        "tokenizer_2": tokenizer(77),
        "scheduler": scheduler(d.FlowMatchEulerDiscreteScheduler, shift=7.0),
    }


def mochi() -> tuple[type, dict[str, Any]]:
    """``genmo/mochi-1-preview``: transformer and autoencoder are diffusers' defaults."""
    return d.MochiPipeline, {
        "transformer": d.MochiTransformer3DModel(),
        "vae": d.AutoencoderKLMochi(),
        "text_encoder": t.T5EncoderModel(t.T5Config(**T5_XXL)),
        "tokenizer": tokenizer(256),
        "scheduler": scheduler(d.FlowMatchEulerDiscreteScheduler, invert_sigmas=True),
    }


def cogvideox_vae() -> d.AutoencoderKLCogVideoX:
    """The autoencoder of ``zai-org/CogVideoX-5b``, and that of 2b in all but a factor."""
    return d.AutoencoderKLCogVideoX(
        block_out_channels=(128, 256, 256, 512),
        layers_per_block=3,
        latent_channels=16,
        sample_height=480,
        sample_width=720,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        scaling_factor=0.7,
    )


def cogvideox_5b() -> tuple[type, dict[str, Any]]:
    """``zai-org/CogVideoX-5b``."""
    return cogvideox(num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True)


def cogvideox_2b() -> tuple[type, dict[str, Any]]:
    """``zai-org/CogVideoX-2b``: its transformer is diffusers' default."""
    return cogvideox()


def cogvideox(**sizes: int) -> tuple[type, dict[str, Any]]:
    """A CogVideoX of 49 frames of 480 × 720."""
    return d.CogVideoXPipeline, {
        "transformer": d.CogVideoXTransformer3DModel(**sizes),
        "vae": cogvideox_vae(),
        "text_encoder": t.T5EncoderModel(t.T5Config(**T5_XXL)),
        "tokenizer": tokenizer(226),
        "scheduler": scheduler(
            d.CogVideoXDDIMScheduler,
            beta_end=0.012,
            beta_start=0.00085,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            timestep_spacing="trailing",
        ),
    }


def scheduler(kind: Any, **settings: Any) -> Any:
    """A scheduler, whose tables are computed."""
    with torch.device("cpu"):
        return kind(**settings)


def tokenizer(length: int) -> Any:
    """The shapes words, padded to a published length: counts do not depend on which tokens there are."""
    small = build_tokenizer()
    small.model_max_length = length
    return small


def write_configuration(make: Callable[[], tuple[type, dict[str, Any]]], folder: Path) -> Path:
    """The configuration files of a pipeline as the hub holds them, without weights."""
    with torch.device("meta"):
        kind, parts = make()
    index: dict[str, Any] = {"_class_name": kind.__name__, "_diffusers_version": d.__version__}
    for name, part in parts.items():
        if isinstance(part, bool | float):  # a setting of the pipeline
            index[name] = part
            continue
        settings = part.config if isinstance(part, t.PreTrainedModel) else part
        save = getattr(settings, "save_config", None) or settings.save_pretrained
        save(folder / name)
        library, *parts_of_name = type(part).__module__.split(".")
        is_pipelines_own = parts_of_name[0] == "pipelines"
        index[name] = [parts_of_name[1] if is_pipelines_own else library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_open_sora(folder: Path) -> Path:
    """The configuration of ``DeepFloyd/t5-v1_1-xxl``; Open-Sora's other sizes are part of its family."""
    for part in ("transformer", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    t.T5Config(**T5_XXL).save_pretrained(folder / "text_encoder")
    tokenizer(300).save_pretrained(folder / "text_encoder")
    return folder


def write_motion_adapter(folder: Path) -> Path:
    """The configuration of ``guoyww/animatediff-motion-adapter-v1-5-2``, which is diffusers' default."""
    with torch.device("meta"):
        d.MotionAdapter().save_config(folder)
    return folder


MODELS: dict[str, Callable[[], tuple[type, dict[str, Any]]]] = {
    "modelscope_hps": modelscope,
    "svd_vjepa": svd,
    "svd": svd,
    "wan_1_3b_hps": wan_1_3b,
    "wan_14b": wan_14b,
    "wan_a14b": wan_a14b,
    "ltx": ltx,
    "hunyuan_video": hunyuan_video,
    "mochi": mochi,
    "cogvideox_5b": cogvideox_5b,
}
"""What writes the configuration files of each case of `benchmarks.preflight`; VideoCrafter2's sizes are part
of its family."""
BY_WEIGHTS: dict[str, Callable[[], tuple[type, dict[str, Any]]]] = {
    "ali-vilab/text-to-video-ms-1.7b": modelscope,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": stable_diffusion,
    "stabilityai/stable-video-diffusion-img2vid": svd,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": wan_1_3b,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": wan_14b,
    "nvidia/AnyFlow-Wan2.1-T2V-14B-Diffusers": anyflow_14b,
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": wan_5b,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": wan_a14b,
    "Lightricks/LTX-Video": ltx,
    "Lightricks/LTX-2": ltx2,
    "hunyuanvideo-community/HunyuanVideo": hunyuan_video,
    "zai-org/CogVideoX-5b": cogvideox_5b,
    "zai-org/CogVideoX-2b": cogvideox_2b,
    "genmo/mochi-1-preview": mochi,
}
"""What writes the configuration files of the weights in packaged recipes."""
