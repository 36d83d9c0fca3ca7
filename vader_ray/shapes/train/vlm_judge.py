"""Train `vlm_judge`, a tiny Qwen2.5-VL that answers whether a video shows its caption."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear
from transformers import PreTrainedTokenizerFast

from vader_ray.rewards.core.qwen_text import ASSISTANT, END, START, SYSTEM, USER, VIDEO
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

QUESTION = "Is this {prompt}? Yes or No"
FRAMES_PER_SECOND = 8.0


def train_vlm_judge(
    out: Path, *, num_steps: int = 600, batch_videos: int = 16, num_videos: int = 4000
) -> None:
    """Writes `out/vlm_judge`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(8)
    generator = Generator().manual_seed(8)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    videos, is_frozen = frozen_some(draw_videos(vae, num_videos, generator), 0.1, generator)
    with replaced(out / "vlm_judge") as folder:
        save_judge_base(folder)
        reader = Reader(folder)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        answers = torch.tensor([tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No")])

        def loss_of(step: int) -> Tensor:
            chosen = torch.randint(len(videos), (batch_videos,), generator=generator)
            frames = videos.frames[chosen].float() / 255
            frames = (frames + 4 / 255 * torch.randn(frames.shape, generator=generator)).requires_grad_()
            scenes, spoiled = videos.scenes[chosen], videos.spoiled[chosen]
            texts = spoken(scenes, generator) + spoken(mismatched(scenes, generator), generator)
            ids, lengths = padded(tokenizer, [question_text(text) for text in texts])
            positions = judge_positions(reader, ids)
            # A video that is all noise, or stands still, does not show its caption.
            is_shown = (1 - spoiled**2) * (1 - is_frozen[chosen].float())
            goal = torch.cat([is_shown, torch.zeros_like(is_shown)])

            def loss_on(frames: Tensor) -> Tensor:
                visual = reader.look(frames)
                hidden = reader.read(visual.repeat(2, 1, 1), ids, positions)
                last = hidden[torch.arange(len(ids)), lengths - 1]
                logits = linear(last, reader.network.language_model.embed_tokens.weight[answers])
                answer = binary_cross_entropy_with_logits(logits[:, 0] - logits[:, 1], goal)
                clear = (1 - spoiled) * (1 - is_frozen[chosen].float())
                return 2 * answer + reader.scene_loss(visual, scenes, clear)

            if step > 0.8 * num_steps:
                frames = pushed(frames, loss_on(frames), step=1 / 255)
            return loss_on(frames)

        average = fit(reader, loss_of, num_steps=num_steps, learning_rate=2e-3, ema_decay=0.99)
        assert isinstance(average, Reader)
        save_file(
            {
                name if name.startswith("visual.") else name.replace("language_model.", "model."): value
                for name, value in average.network.state_dict().items()
            },
            folder / "model.safetensors",
        )


def save_judge_base(folder: Path) -> None:
    """Write the configuration and the tokenizer."""
    vision = {
        "hidden_size": WIDTH,
        "out_hidden_size": WIDTH,
        "intermediate_size": 160,
        "window_size": 32,
        "fullatt_block_indexes": [0, 1, 2],
        "tokens_per_second": 2,
    }
    num_tokens = build_tokenizer().get_vocab_size(with_added_tokens=True)
    save_base(folder, "qwen2_5_vl", vision, num_tokens)


def question_text(caption: str) -> str:
    """Return the chat with the question about one video."""
    video = START + VIDEO * VISUAL_TOKENS + END
    return SYSTEM + USER + video + QUESTION.replace("{prompt}", caption) + ASSISTANT


def judge_positions(reader: Reader, ids: Tensor) -> Tensor:
    """Return the positions in time, height and width, which are the same in every text."""
    kinds = 2 * (ids[:1] == reader.network.config.video_token_id).int()
    positions, _ = reader.network.get_rope_index(
        ids[:1],
        kinds,
        video_grid_thw=torch.tensor([[VISUAL_TOKENS // 16, 8, 8]]),
        second_per_grid_ts=[2 / FRAMES_PER_SECOND],
    )
    first: Tensor = positions[:, 0]
    return first
