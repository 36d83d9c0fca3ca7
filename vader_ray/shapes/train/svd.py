"""Train the image encoder and the denoiser of `svd`, which continues a video from its first frame.

Many of its training videos flicker or shake, which V-JEPA's reward can improve.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from jaxtyping import Float
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from vader_ray.shapes.data import NUM_FRAMES, SIZE, Scenes, draw_scenes, render
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._videos import shaken
from vader_ray.shapes.train.svd_vae import LATENT_CHANNELS, encode
from vader_ray.shapes.train.text_to_video import shape_weights

_EMBED_WIDTH = 32
_TIME_IDS = (6.0, 127.0, 0.02)
"""Frame rate less one, motion bucket, noise on the image: the pipeline's defaults, the only ones that
training sees."""
_SIGMA_MEAN, _SIGMA_DEVIATION = 0.0, 1.8
"""Mean and deviation of the logarithm of the noise levels; lower than published, as 8x8 latents need less."""
_IMAGE_SIZE = 224
"""To which the pipeline enlarges every image for the image encoder."""


def build_unet() -> UNetSpatioTemporalConditionModel:
    """An untrained denoiser: one level of 8x8, attention over space and time in its middle block."""
    return UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64,),
        layers_per_block=1,
        down_block_types=("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",),
        cross_attention_dim=_EMBED_WIDTH,
        num_attention_heads=(4,),
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=16 * len(_TIME_IDS),
        num_frames=NUM_FRAMES,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """Stable Video Diffusion's own: EDM noise levels (Karras), predicting v."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="leading",
        timestep_type="continuous",
        steps_offset=1,
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
    )


def train_image_encoder(
    images: Tensor, scenes: Scenes, generator: Generator, *, num_steps: int
) -> CLIPVisionModelWithProjection:
    """Make a CLIP image model whose embedding encodes shape, colour, direction and landmark of a first
    frame."""
    config = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=_IMAGE_SIZE,
        patch_size=28,
        projection_dim=_EMBED_WIDTH,
    )
    encoder = CLIPVisionModelWithProjection(config)
    heads = nn.ModuleDict(
        {name: nn.Linear(_EMBED_WIDTH, 6) for name in ("shape", "colour", "direction", "landmark")}
    )

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(images), (24,), generator=generator)
        embeds = encoder(pixel_values=enlarged(images[chosen])).image_embeds
        losses = [cross_entropy(head(embeds), getattr(scenes, name)[chosen]) for name, head in heads.items()]
        return torch.stack(losses).sum()

    networks = nn.ModuleDict({"encoder": encoder, "heads": heads})
    trained = fit(networks, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.98).encoder
    assert isinstance(trained, CLIPVisionModelWithProjection)
    return trained


def enlarged(images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images 3 224 224"]:
    """Normalise images in [0, 1] for the image encoder, without the pipeline's slight blur."""
    processor = CLIPImageProcessor()
    mean, deviation = (
        torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std)
    )
    large = interpolate(images, size=(_IMAGE_SIZE, _IMAGE_SIZE), mode="bicubic", align_corners=True)
    return (large - mean) / deviation


def draw_unsteady(num_scenes: int, generator: Generator) -> Scenes:
    """Draw scenes of which three in five are shaken after their first frame, where the shaking is
    invisible."""
    steady = draw_scenes(num_scenes, generator)
    unsteady = shaken(steady, generator)
    shakes = torch.rand(num_scenes, 1, generator=generator) < 0.6
    shakes = shakes & (torch.arange(NUM_FRAMES) > 0)
    return replace(
        steady,
        centre=torch.where(shakes[..., None], unsteady.centre, steady.centre),
        brightness=torch.where(shakes, unsteady.brightness, steady.brightness),
    )


def train_svd(
    out: Path,
    *,
    num_steps: int = 1500,
    image_steps: int = 300,
    batch_videos: int = 16,
    num_videos: int = 3000,
    learning_rate: float = 2e-3,
) -> None:
    """Writes `out/svd` around the autoencoder found there, and keeps it fresh while training."""
    torch.manual_seed(8)
    generator = Generator().manual_seed(8)
    vae = AutoencoderKLTemporalDecoder.from_pretrained(out / "svd" / "vae", torch_dtype=torch.float32)
    scenes = draw_unsteady(num_videos, generator)
    videos = render(scenes)
    latents, images = encode(vae, videos), videos[:, 0].clone()
    noisy_images = images + 0.5 * _TIME_IDS[2] * torch.randn(images.shape, generator=generator)
    conditions, weights = encode(vae, noisy_images[:, None]), shape_weights(scenes).transpose(1, 2)
    encoder = (
        train_image_encoder(images, scenes, generator, num_steps=image_steps).eval().requires_grad_(False)
    )
    with torch.no_grad():
        embeds = torch.cat([encoder(pixel_values=enlarged(part)).image_embeds for part in images.split(50)])[
            :, None
        ]
    unet = build_unet()
    parts = {"scheduler": build_scheduler(), "feature_extractor": CLIPImageProcessor()}

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        kept = (torch.rand(batch_videos, 1, 1, 1, 1, generator=generator) > 0.1).float()
        sigma = draw_sigmas(batch_videos, generator)
        noise = torch.randn(latents[chosen].shape, generator=generator)
        scale = (1 + sigma**2).sqrt()
        target = (noise - sigma * latents[chosen]) / scale
        condition = (kept * conditions[chosen]).expand(-1, NUM_FRAMES, -1, -1, -1)
        sample = torch.cat([(latents[chosen] + sigma * noise) / scale, condition], 2)
        ids = torch.tensor(_TIME_IDS).expand(batch_videos, -1)
        predicted = unet(sample, 0.25 * sigma.log().flatten(), kept[..., 0, 0] * embeds[chosen], ids).sample
        weighted: Tensor = torch.where(sigma < 2, weights[chosen], 1.0) * (predicted - target).square()
        return weighted.mean()

    def save(step: int, average: nn.Module) -> None:
        networks = {"vae": vae, "image_encoder": encoder, "unet": average}
        half = {name: deepcopy(network).half() for name, network in networks.items()}
        with replaced(out / "svd") as folder:
            StableVideoDiffusionPipeline(**half, **parts).save_pretrained(folder)

    fit(unet, loss_of, num_steps=num_steps, learning_rate=learning_rate, every=save)


def draw_sigmas(num: int, generator: Generator) -> Float[Tensor, "videos 1 1 1 1"]:
    """Noise levels, log-normal; EDM's (arXiv 2206.00364, table 1) but for mean and deviation."""
    return (_SIGMA_MEAN + _SIGMA_DEVIATION * torch.randn(num, 1, 1, 1, 1, generator=generator)).exp()


def load_svd(out: Path) -> StableVideoDiffusionPipeline:
    """The pipeline under `out`, in single precision, without its progress bar."""
    pipeline = StableVideoDiffusionPipeline.from_pretrained(out / "svd", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_svd(
    pipeline: StableVideoDiffusionPipeline,
    images: list[Image.Image],
    generator: Generator,
    *,
    num_steps: int = 8,
    guidance_scale: float = 1.0,
) -> Float[Tensor, "videos frames 3 height width"]:
    """One video per image."""
    options = {
        "num_frames": NUM_FRAMES,
        "height": SIZE,
        "width": SIZE,
        "output_type": "pt",
        "generator": generator,
    }
    options |= {
        "num_inference_steps": num_steps,
        "max_guidance_scale": guidance_scale,
        "decode_chunk_size": NUM_FRAMES,
    }
    # In one call the decoder would take the frames of all videos for those of one: videos are decoded apart.
    return torch.cat([pipeline(image, **options).frames for image in images])
