"""Train the denoiser and the text encoder of `text_to_video` on latents of uncurated videos."""

from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import TemporalConvLayer
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vader_ray.shapes.data import (
    ATTRIBUTES,
    Scenes,
    captions_of,
    draw_scenes,
    every_scene,
    played_backwards,
    render,
)
from vader_ray.shapes.train._loop import fit, matrices_of, replaced
from vader_ray.shapes.train._places import around_objects
from vader_ray.shapes.train._tokenizer import CONTEXT_LENGTH, build_tokenizer
from vader_ray.shapes.train.vae import LATENT_CHANNELS, encode

_TEXT_WIDTH = 64


def build_unet() -> UNet3DConditionModel:
    """Make an untrained denoiser: convolutions at 8x8, attention over text, space and time at 4x4.

    The last temporal convolutions start small instead of at zero: they alone carry the order of the
    frames.
    """
    unet = UNet3DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "UpBlock3D"),
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    for module in unet.modules():
        if isinstance(module, TemporalConvLayer):
            nn.init.kaiming_normal_(module.conv4[-1].weight, nonlinearity="linear")
            module.conv4[-1].weight.data.mul_(0.3)
    return unet


def build_text_encoder(vocab_size: int) -> CLIPTextModel:
    """An untrained CLIP text model."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=4 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_dim=_TEXT_WIDTH,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        pad_token_id=vocab_size - 1,
    )
    return CLIPTextModel(config)


def train_text_encoder(
    tokenizer: CLIPTokenizer, generator: Generator, *, num_steps: int = 500
) -> CLIPTextModel:
    """Make a text model whose padding tokens all encode every attribute of a caption.

    It stays frozen while the denoiser trains, as in the large pipelines. Trained along with the denoiser it
    would encode colour alone, which is most of the early loss, and lose the direction.
    """
    scenes = every_scene()
    tokens = tokenizer(captions_of(scenes), padding="max_length", return_tensors="pt").input_ids
    text_encoder = build_text_encoder(len(tokenizer))
    heads = nn.ModuleDict({name: nn.Linear(_TEXT_WIDTH, len(words)) for name, words in ATTRIBUTES.items()})

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(scenes), (256,), generator=generator)
        padding = text_encoder(tokens[chosen]).last_hidden_state[:, -5:]
        losses = []
        for name, head in heads.items():
            truth = getattr(scenes, name)[chosen, None].expand(-1, padding.shape[1])
            losses.append(cross_entropy(head(padding).flatten(0, 1), truth.flatten(), label_smoothing=0.1))
        return torch.stack(losses).sum()

    networks = nn.ModuleDict({"text_encoder": text_encoder, "heads": heads})
    return fit(networks, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.98).text_encoder


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, predicting v; the trailing spacing starts sampling at pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )


def train_text_to_video(
    out: Path,
    *,
    num_steps: int = 8000,
    batch_videos: int = 16,
    num_videos: int = 8000,
    learning_rate: float = 2e-3,
) -> None:
    """Write `out/text_to_video` around the autoencoder found there, and update it while training.

    Half of each batch are the other half's videos played backwards, with the same noise. The denoiser's
    attention over time has no positions, and without these pairs, after 3,500 steps on uncurated videos
    alone, it still took left for right and up for down in half of its videos.
    """
    torch.manual_seed(1)
    generator = Generator().manual_seed(1)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    scenes = draw_scenes(num_videos, generator)
    latents = torch.cat(
        [encode(vae, render(scenes[start : start + 500])) for start in range(0, num_videos, 500)]
    )
    weights = shape_weights(scenes)
    text_encoder = train_text_encoder(tokenizer, generator)
    forwards, backwards, nothing = (
        embed(text_encoder, tokenizer, prompts)
        for prompts in (captions_of(scenes), captions_of(played_backwards(scenes)), [""])
    )
    unet = build_unet().eval()

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos // 2,), generator=generator)
        noise = torch.randn(latents[chosen].shape, generator=generator).repeat(2, 1, 1, 1, 1)
        timesteps = _draw_timesteps(len(chosen), generator).repeat(2)
        dropped = torch.rand(len(chosen), 1, 1, generator=generator).repeat(2, 1, 1) < 0.1
        clean = torch.cat([latents[chosen], latents[chosen].flip(2)])
        texts = torch.where(dropped, nothing, torch.cat([forwards[chosen], backwards[chosen]]))
        noisy = scheduler.add_noise(clean, noise, timesteps)
        predicted = unet(noisy, timesteps, encoder_hidden_states=texts).sample
        error = (predicted - scheduler.get_velocity(clean, noise, timesteps)).square()
        around = torch.cat([weights[chosen], weights[chosen].flip(2)])
        weighted: Tensor = torch.where(timesteps.view(-1, 1, 1, 1, 1) < 700, around, 1.0) * error
        return weighted.mean()

    def save(step: int, average: nn.Module) -> None:
        pipeline = TextToVideoSDPipeline(
            vae=deepcopy(vae).half(),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=deepcopy(average).half(),
            scheduler=scheduler,
        )
        with replaced(out / "text_to_video") as folder:
            pipeline.save_pretrained(folder)

    attention = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    fit(
        unet,
        loss_of,
        num_steps=num_steps,
        learning_rate=learning_rate,
        matrices=matrices_of(*attention),
        matrix_rate=0.01,
        every=save,
    )


def load_pipeline(out: Path) -> TextToVideoSDPipeline:
    """The pipeline under `out`, in single precision, without its progress bar."""
    pipeline = TextToVideoSDPipeline.from_pretrained(out / "text_to_video", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def shape_weights(scenes: Scenes) -> Float[Tensor, "scenes 1 frames height width"]:
    """Loss weights of the latents: 4 around the shape and the landmark, 1 elsewhere.

    Without them the kind of shape decides one percent of the loss. They are for timesteps with so little
    noise that the shape's place is certain: at others the weights would bias the prediction.
    """
    return torch.where(around_objects(scenes, 8), 4.0, 1.0)[:, None]


@torch.no_grad()
def embed(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, prompts: list[str]
) -> Float[Tensor, "prompts tokens width"]:
    """Encode prompts to the tokens that the denoiser attends to."""
    tokens = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    embeds: Tensor = text_encoder(tokens).last_hidden_state
    return embeds


def _draw_timesteps(num: int, generator: Generator) -> Tensor:
    """Timesteps: three in ten from 600 upwards, where the motion is decided, half from 200 to 700, where the
    shape is, the others from everywhere."""
    timesteps = torch.randint(1000, (num,), generator=generator)
    kind = torch.rand(num, generator=generator)
    timesteps = torch.where(kind < 0.3, 600 + timesteps * 2 // 5, timesteps)
    return torch.where(kind > 0.5, 200 + timesteps // 2, timesteps)
