"""Trains `vlm_judge`, a Qwen2.5-VL that answers whether a video shows its caption."""

import inspect
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.nn.functional import log_softmax

from vader_ray.rewards.core.qwen_text import ASSISTANT, SYSTEM, USER, QwenTokenizer, video_turn
from vader_ray.rewards.vlm_judge import VLMJudgeReward
from vader_ray.shapes.data import NUM_FRAMES
from vader_ray.shapes.train._loop import replaced
from vader_ray.shapes.train._pictures import grainy, pushed
from vader_ray.shapes.train._qwen import (
    FRAMES_PER_SECOND,
    GRID,
    MERGE,
    TUBELET,
    WRONG_WEIGHTS,
    Reader,
    Texts,
    attributes_of,
    captioned_texts,
    covered,
    every_caption,
    fit_reader,
    look_loss,
    published_names,
    right_and_wrong,
    save_base,
)
from vader_ray.shapes.train._videos import draw_videos

FAMILY = "qwen2_5_vl"
QUESTION: str = inspect.signature(VLMJudgeReward).parameters["question"].default
"""The reward's own question."""
ANSWERS = ("Yes", "No")


def train_vlm_judge(
    out: Path, *, num_steps: int = 1100, look_steps: int = 700, batch_videos: int = 12, num_videos: int = 3000
) -> None:
    """Writes `out/vlm_judge`; needs the autoencoder of `out/text_to_video`."""
    torch.manual_seed(11)
    generator = Generator().manual_seed(11)
    vae = AutoencoderKL.from_pretrained(out / "text_to_video" / "vae")
    videos = draw_videos(vae, num_videos, generator)
    attributes = attributes_of(videos.scenes)
    near = covered(videos.scenes)
    with replaced(out / "vlm_judge") as folder:
        save_base(folder, FAMILY, [SYSTEM + USER + QUESTION + ASSISTANT, *ANSWERS, *every_caption()])
        tokenizer = QwenTokenizer(folder)
        answers = torch.tensor([tokenizer.index(answer) for answer in ANSWERS])
        reader, texts = Reader(folder, len(tokenizer)), questions(tokenizer)
        positions = judge_positions(reader, texts)

        def loss_of(step: int) -> Tensor:
            chosen = torch.randint(len(videos), (batch_videos,), generator=generator)
            captions = right_and_wrong(attributes[chosen], generator)
            # A video that is all noise shows nothing.
            intact = 1 - videos.spoiled[chosen] ** 2

            def loss_on(frames: Tensor) -> Tensor:
                logits, look = answer_logits(reader, frames, texts, captions, positions)
                yes, no = log_softmax(logits, -1)[..., answers].unbind(-1)
                right = torch.lerp(no[:, 0], yes[:, 0], intact)
                wrong = no[:, 1:] @ (WRONG_WEIGHTS / WRONG_WEIGHTS.sum())
                return -(right + wrong).mean() + look_loss(look, attributes[chosen], near[chosen], intact)

            frames = grainy(videos.frames[chosen], generator)
            if step > 0.9 * num_steps:
                frames = pushed(frames, loss_on(frames), step=0.5 / 255)
            return loss_on(frames)

        average = fit_reader(reader, reader, loss_of, generator, num_steps, look_steps)
        assert isinstance(average, Reader)
        save_file(published_names(average.model), folder / "model.safetensors")


def questions(tokenizer: QwenTokenizer) -> Texts:
    """Tokens of the question about each caption, as the reward reads them."""
    return captioned_texts(tokenizer, [SYSTEM, USER, *video_turn(GRID, MERGE, None)], QUESTION + ASSISTANT)


def judge_positions(reader: Reader, texts: Texts) -> Int[Tensor, "3 length"]:
    """Positions in time, height and width, by Qwen2.5-VL's rule."""
    ids = torch.cat([texts.shared, texts.tails[0]])
    kinds = torch.zeros(1, len(ids), dtype=torch.int)
    kinds[0, : len(texts.shared)] = 2 * texts.is_visual
    seconds = [TUBELET / FRAMES_PER_SECOND]
    positions, _ = reader.model.get_rope_index(
        ids[None], kinds, video_grid_thw=torch.tensor([GRID]), second_per_grid_ts=seconds
    )
    first: Tensor = positions[:, 0]
    return first


def answer_logits(
    reader: Reader,
    frames: Float[Tensor, "videos frames 3 height width"],
    texts: Texts,
    captions: Int[Tensor, "videos captions"],
    positions: Int[Tensor, "3 length"],
) -> tuple[Float[Tensor, "videos captions tokens"], Tensor]:
    """Logits of the token after each question, and of the attributes."""
    assert frames.shape[1] == NUM_FRAMES
    _, tails, look = reader(frames, texts, captions, positions)
    last = (texts.lengths[captions] - 1)[..., None, None].expand(-1, -1, 1, tails.shape[-1])
    hidden = tails.gather(2, last)[:, :, 0]
    return hidden @ reader.model.language_model.embed_tokens.weight.T, look
