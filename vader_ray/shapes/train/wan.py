"""Train the text encoder and the denoiser of `wan` on latents of uncurated videos, by flow matching."""

from copy import deepcopy
from math import log
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPTokenizer, UMT5Config, UMT5EncoderModel

from vader_ray.shapes.data import ATTRIBUTES, SIZE, Scenes, captions_of, draw_scenes, every_scene, render
from vader_ray.shapes.train._loop import fit, matrices_of, replaced
from vader_ray.shapes.train._places import around_objects
from vader_ray.shapes.train._tokenizer import build_tokenizer
from vader_ray.shapes.train.wan_vae import LATENT_CHANNELS, NUM_FRAMES, encode

_TEXT_WIDTH = 64
_TEXT_LENGTH = 226
"""Tokens that the pipeline pads each prompt to, with zeros."""
_KEPT_LENGTH = 13
"""Tokens that training looks at: the longest caption has eleven, the rest is padding."""


def build_transformer() -> WanTransformer3DModel:
    """An untrained denoiser over 80 tokens: 5 latent frames of 4x4 patches."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=_TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=512,
        num_layers=4,
        rope_max_seq_len=64,
    )


def build_scheduler() -> UniPCMultistepScheduler:
    """Wan's own: flow prediction, noise levels shifted by 3 towards noise."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def train_text_encoder(tokenizer: CLIPTokenizer, generator: Generator, *, num_steps: int) -> UMT5EncoderModel:
    """Make a text model of which every token encodes every attribute of a caption; see `text_to_video`.

    Wan's pipeline sets padding to zero, so the words' own tokens carry the attributes.
    """
    scenes = every_scene()
    tokens = tokenizer(captions_of(scenes), padding=True, return_tensors="pt")
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=_TEXT_WIDTH,
        d_kv=16,
        d_ff=2 * _TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    text_encoder = UMT5EncoderModel(config)
    heads = nn.ModuleDict({name: nn.Linear(_TEXT_WIDTH, len(words)) for name, words in ATTRIBUTES.items()})

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(scenes), (256,), generator=generator)
        real = tokens.attention_mask[chosen].bool()
        words = text_encoder(tokens.input_ids[chosen], tokens.attention_mask[chosen]).last_hidden_state
        losses = []
        for name, head in heads.items():
            truth = getattr(scenes, name)[chosen, None].expand(real.shape)
            losses.append(cross_entropy(head(words[real]), truth[real], label_smoothing=0.1))
        return torch.stack(losses).sum()

    networks = nn.ModuleDict({"text_encoder": text_encoder, "heads": heads})
    trained = fit(networks, loss_of, num_steps=num_steps, learning_rate=3e-3, ema_decay=0.98).text_encoder
    assert isinstance(trained, UMT5EncoderModel)
    return trained


class PaddingOnce(WanAttnProcessor):  # type: ignore[misc]
    """Cross-attention in which one token of padding stands for all: the same result, in a fraction of the
    time."""

    def __call__(self, attn: WanAttention, hidden: Tensor, text: Tensor, *_: object) -> Tensor:
        weight = torch.zeros(1, text.shape[1])
        weight[0, -1] = log(_TEXT_LENGTH - text.shape[1] + 1)
        attended: Tensor = super().__call__(attn, hidden, text, weight)
        return attended


def train_wan(
    out: Path,
    *,
    num_steps: int = 6000,
    text_steps: int = 400,
    batch_videos: int = 16,
    num_videos: int = 4000,
    learning_rate: float = 1.5e-3,
) -> None:
    """Writes `out/wan` around the autoencoder found there, and keeps it fresh while training."""
    torch.manual_seed(3)
    generator = Generator().manual_seed(3)
    vae = AutoencoderKLWan.from_pretrained(out / "wan" / "vae", torch_dtype=torch.float32)
    tokenizer, scheduler = build_tokenizer(), build_scheduler()
    scenes = draw_scenes(num_videos, generator, num_frames=NUM_FRAMES)
    latents = torch.cat(
        [encode(vae, render(scenes[start : start + 500])) for start in range(0, num_videos, 500)]
    )
    weights = shape_weights(scenes)
    text_encoder = train_text_encoder(tokenizer, generator, num_steps=text_steps).requires_grad_(False)
    transformer = build_transformer()
    parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "scheduler": scheduler}
    embeds, nothing = (
        embed(WanPipeline(**parts, vae=vae, transformer=None), texts) for texts in (captions_of(scenes), [""])
    )
    for block in transformer.blocks:
        block.attn2.set_processor(PaddingOnce())

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(num_videos, (batch_videos,), generator=generator)
        dropped = torch.rand(batch_videos, 1, 1, generator=generator) < 0.1
        noise = torch.randn(latents[chosen].shape, generator=generator)
        level = draw_levels(batch_videos, generator)
        share = level.view(-1, 1, 1, 1, 1)
        noisy = (1 - share) * latents[chosen] + share * noise
        texts = torch.where(dropped, nothing, embeds[chosen])
        flow = transformer(noisy, level * 1000, texts).sample
        error = (flow - (noise - latents[chosen])).square()
        weighted: Tensor = torch.where(share < 0.7, weights[chosen], 1.0) * error
        return weighted.mean()

    def save(step: int, average: nn.Module) -> None:
        average = deepcopy(average).half()
        for block in average.blocks:  # type: ignore[union-attr]
            block.attn2.set_processor(WanAttnProcessor())  # type: ignore[union-attr,operator]
        with replaced(out / "wan") as folder:
            WanPipeline(**parts, vae=deepcopy(vae).half(), transformer=average).save_pretrained(folder)

    fit(
        transformer,
        loss_of,
        num_steps=num_steps,
        learning_rate=learning_rate,
        matrices=matrices_of(transformer.blocks),
        every=save,
    )


def load_wan(out: Path) -> WanPipeline:
    """The pipeline under `out`, in single precision, without its progress bar."""
    pipeline = WanPipeline.from_pretrained(out / "wan", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_wan(
    pipeline: WanPipeline,
    prompts: list[str],
    generator: Generator,
    *,
    num_steps: int = 8,
    guidance_scale: float = 4.0,
) -> Float[Tensor, "videos frames 3 height width"]:
    """One video per prompt."""
    options = {
        "num_frames": NUM_FRAMES,
        "height": SIZE,
        "width": SIZE,
        "output_type": "pt",
        "generator": generator,
    }
    options |= {"num_inference_steps": num_steps, "guidance_scale": guidance_scale}
    frames: Tensor = pipeline(prompts, **options).frames
    return frames


def draw_levels(num: int, generator: Generator) -> Float[Tensor, " videos"]:
    """Noise levels in (0, 1): half of them shifted by 2 towards noise, between uniform ones and those of the
    scheduler, half between 0.2 and 0.7, where the shape is decided."""
    level = torch.rand(num, generator=generator)
    is_middle = torch.rand(num, generator=generator) < 0.5
    return torch.where(is_middle, 0.2 + level / 2, 2 * level / (1 + level))


def shape_weights(scenes: Scenes) -> Float[Tensor, "scenes 1 latent_frames height width"]:
    """Loss weights of the latents: 4 where the shape or the landmark is in one of a latent frame's frames, 1
    elsewhere."""
    inside = around_objects(scenes, 8)
    shown = torch.cat([inside[:, :1], inside[:, 1::2] | inside[:, 2::2]], 1)
    return torch.where(shown, 4.0, 1.0)[:, None]


@torch.no_grad()
def embed(pipeline: WanPipeline, prompts: list[str]) -> Float[Tensor, "prompts tokens width"]:
    """Encode prompts to the tokens that the denoiser attends to; the last one stands for all padding."""
    known = sorted(set(prompts))
    every, _ = pipeline.encode_prompt(
        known, do_classifier_free_guidance=False, max_sequence_length=_TEXT_LENGTH
    )
    assert not every[:, _KEPT_LENGTH - 1 :].any(), "the last token that is kept must be padding"
    index = {prompt: place for place, prompt in enumerate(known)}
    chosen: Tensor = every[[index[prompt] for prompt in prompts], :_KEPT_LENGTH].contiguous()
    return chosen
