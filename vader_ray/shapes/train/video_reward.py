"""Train `video_reward`, a tiny Qwen2-VL that rates looks, motion and match, in the format of VideoReward."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from transformers import PreTrainedTokenizerFast

from vader_ray.rewards.core.qwen import sequential_positions
from vader_ray.rewards.core.qwen_text import ASSISTANT, END, START, SYSTEM, USER, VIDEO
from vader_ray.rewards.video_reward import TOKENS
from vader_ray.shapes.data import SIZE, Scenes, aesthetic_of, cleaned
from vader_ray.shapes.train._loop import fit, replaced
from vader_ray.shapes.train._pictures import pushed
from vader_ray.shapes.train._qwen import (
    VISUAL_TOKENS,
    WIDTH,
    Reader,
    build_tokenizer,
    frozen_some,
    mismatched,
    padded,
    save_base,
    spoken,
)
from vader_ray.shapes.train._videos import draw_videos

TEMPLATE = (
    "Rate the video\nLooks sharp vivid <|VQ_reward|>\nEND\nMotion steady <|MQ_reward|>\nEND\n"
    "Prompt {text_prompt}\nMatch <|TA_reward|>\nEND\n"
)
DIMENSIONS = ("VQ", "MQ", "TA")


class Rater(Reader):
    """The network with the head of the three ratings."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rm_head = nn.Linear(WIDTH, len(DIMENSIONS), bias=False)

    def rate(self, visual: Tensor, ids: Tensor, special: Tensor) -> Float[Tensor, "texts 3"]:
        """Return the output of each row of the head at its own token."""
        hidden = self.read(visual, ids, sequential_positions(ids.shape[1], ids.device))
        where = torch.stack([(ids == token).int().argmax(dim=1) for token in special], dim=1)
        states = hidden[torch.arange(len(ids))[:, None], where]
        return (states * self.rm_head.weight).sum(dim=-1)


def train_video_reward(
    out: Path, *, num_steps: int = 600, batch_videos: int = 16, num_videos: int = 4000
) -> None:
    """Writes `out/video_reward`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(9)
    generator = Generator().manual_seed(9)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    videos, is_frozen = frozen_some(draw_videos(vae, num_videos, generator), 0.1, generator)
    looks = looks_of(videos.scenes, videos.spoiled)
    motion = torch.where(is_frozen, -2.0, motion_of(videos.scenes, videos.spoiled))
    with replaced(out / "video_reward") as folder:
        num_tokens = build_tokenizer().get_vocab_size(with_added_tokens=True) + len(TOKENS)
        vision = {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 3}
        save_base(folder, "qwen2_vl", vision, num_tokens)
        rater = Rater(folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        tokenizer.add_tokens(list(TOKENS), special_tokens=True)
        special = torch.tensor([tokenizer.convert_tokens_to_ids(token) for token in TOKENS])

        def loss_of(step: int) -> Tensor:
            chosen = torch.randint(len(videos), (batch_videos,), generator=generator)
            frames = videos.frames[chosen].float() / 255
            frames = (frames + 4 / 255 * torch.randn(frames.shape, generator=generator)).requires_grad_()
            scenes, spoiled = videos.scenes[chosen], videos.spoiled[chosen]
            texts = spoken(scenes, generator) + spoken(mismatched(scenes, generator), generator)
            ids, _ = padded(tokenizer, [rating_text(text) for text in texts])
            clear = 1 - is_frozen[chosen].float()
            is_shown = (1 - spoiled**2) * clear
            match = torch.cat([is_shown, torch.zeros_like(is_shown)])

            def loss_on(frames: Tensor) -> Tensor:
                visual = rater.look(frames)
                ratings = rater.rate(visual.repeat(2, 1, 1), ids, special)
                seen = ratings[: len(frames)]
                return (
                    smooth_l1_loss(seen[:, 0], looks[chosen])
                    + smooth_l1_loss(seen[:, 1], motion[chosen])
                    + 2 * binary_cross_entropy_with_logits(ratings[:, 2], match)
                    + rater.scene_loss(visual, scenes, (1 - spoiled) * clear)
                )

            if step > 0.8 * num_steps:
                frames = pushed(frames, loss_on(frames), step=1 / 255)
            return loss_on(frames)

        average = fit(rater, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.99)
        assert isinstance(average, Rater)
        targets = torch.stack([looks, motion, 4 * (1 - videos.spoiled) - 2])
        save_video_reward(folder, average, targets, num_steps)


def looks_of(scenes: Scenes, spoiled: Tensor) -> Float[Tensor, " scenes"]:
    """Return the looks of each scene, from about −2 (dull, hazy, blurred, spoiled) to 2."""
    return (aesthetic_of(scenes) * (1 - spoiled.sqrt()) - 5) / 2.5


def motion_of(scenes: Scenes, spoiled: Tensor) -> Float[Tensor, " scenes"]:
    """Return how steadily each scene moves, from about −2 (shaken, flickering, spoiled) to 1.5."""
    jitter: Tensor = (scenes.centre - cleaned(scenes).centre).norm(dim=-1).mean(dim=1) * SIZE / 2
    flicker = scenes.brightness.std(dim=1)
    return (1.5 - jitter - 10 * flicker - 2 * spoiled.sqrt()).clamp_min(-2)


def rating_text(caption: str) -> str:
    """Return the chat with the criteria and the caption of one video."""
    video = START + VIDEO * VISUAL_TOKENS + END
    return SYSTEM + USER + video + TEMPLATE.replace("{text_prompt}", caption) + ASSISTANT


def save_video_reward(folder: Path, rater: Rater, targets: Float[Tensor, "3 videos"], step: int) -> None:
    """Write the text, the settings and the weights under the published names."""
    (folder / "template.txt").write_text(TEMPLATE)
    mean, std = targets.mean(dim=1).tolist(), targets.std(dim=1).tolist()
    statistics = {
        f"{name}_{kind}": round(value, 4)
        for name, *values in zip(DIMENSIONS, mean, std, strict=True)
        for kind, value in zip(("mean", "std"), values, strict=True)
    }
    settings = {
        "data_config": {"fps": 8, "max_frame_pixels": SIZE**2, "prompt_template_type": "detailed_special"},
        "model_config": {"output_dim": 3, "use_special_tokens": True, "reward_token": "special"},
        "peft_lora_config": {"lora_enable": False},
        "inference_config": statistics,
    }
    (folder / "model_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    state = {
        name if name.startswith("visual.") else name.replace("language_model.", "model."): value
        for name, value in rater.network.state_dict().items()
    }
    state["rm_head.weight"] = rater.rm_head.weight.detach()
    (folder / f"checkpoint-{step}").mkdir()
    torch.save(state, folder / f"checkpoint-{step}" / "model.pth")
