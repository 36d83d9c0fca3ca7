"""Action recognition (VideoMAE, arXiv 2203.12602): a video classifier's probability of the wanted action."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from vader_ray.errors import UserError
from vader_ray.rewards.base import NetworkReward, frozen
from vader_ray.rewards.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalise
from vader_ray.rewards.core.resizing import Resizing, whole
from vader_ray.rewards.core.transformers_loading import load_folder
from vader_ray.rewards.core.video import obtain_folder, read_processor
from vader_ray.types import Frames, Granularity, Scores
from vader_ray.weights import Source

WEIGHTS = "MCG-NJU/videomae-base-finetuned-kinetics"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
RENAMED = {
    "attention.attention.q_bias": "attention.attention.query.bias",
    "attention.attention.v_bias": "attention.attention.value.bias",
}
"""Names of weights in published checkpoints, and their names in the installed transformers."""
FILLERS = frozenset({"a", "an", "the", "or", "and", "of", "in", "on", "with", "to", "is", "are"})
"""Words that are ignored when texts and labels are compared."""
SAME_WORD = 0.85
"""Smallest ratio of `difflib.SequenceMatcher` at which two words count as equal: one letter of a word of
seven differs."""
CLOSE = 0.5
"""Smallest share of a label's words that the option ``action`` must contain."""
NUM_SUGGESTIONS = 3
"""Labels in the message when no label is close."""


class ActionReward(NetworkReward):
    """The classifier's log-probability (or probability) of one of its labels for the whole clip.

    The label nearest to a text is the one with the largest share of its words in the text. Words are compared
    without case, plural and the endings -ing, -ed, -e, and may differ by a letter. Ties are broken by the
    number of such words, then by the similarity of spelling (`difflib`), then by the order of the labels. A
    label with exactly the words of the text wins always.

    The network takes a fixed number of frames (16). ``published`` takes them at equal distances from first to
    last and repeats frames of a shorter clip; ``vader`` takes every second frame first and then does the
    same.

    Deviation from float32 on a tiny network with random weights (tests): bfloat16 below 0.02, float16 below
    0.003.

    Args:
        weights: folder or hub repository in transformers' format (``config.json``, processor,
            ``model.safetensors``).
        action: label of every video, exact or nearest. By default each video has the label nearest to its
            prompt, even if it is not near: set the option if prompts name no action.
        score: ``log_probability`` (at most 0, its gradient does not vanish) or ``probability``.
        preprocessing: ``published``: that of the checkpoint's processor (short side, centre crop); ``vader``:
            resized to a square (bilinear, ImageNet's normalisation).
    """

    granularity: Granularity = "clip"
    unit = "log-probability of the action, at most 0 (or probability, 0 to 1, by option)"
    default_weights = WEIGHTS
    licence = "CC-BY-NC-4.0"

    def __init__(
        self,
        *,
        weights: Source = WEIGHTS,
        action: str | None = None,
        score: Literal["log_probability", "probability"] = "log_probability",
        preprocessing: Preprocessing = "published",
    ) -> None:
        super().__init__()
        folder = obtain_folder(weights, "videomae", *FILES)
        self.network = frozen(load_network(folder))
        self.processor = read_processor(folder)
        if self.processor.size != self.network.config.image_size:
            raise UserError(
                f"{folder}: frames of {self.processor.size} pixels do not fit a network for "
                f"{self.network.config.image_size}; give the processor of these weights"
            )
        self.labels = [label for _, label in sorted(self.network.config.id2label.items())]
        self.action = None if action is None else find_label(action, self.labels)
        self.as_probability = score == "probability"
        self.preprocessing = preprocessing

    def resizing(self, height: int, width: int) -> Resizing:
        """Return that of the checkpoint's processor, or a square with ``preprocessing=vader``."""
        if self.preprocessing == "published":
            return self.processor.resizing(height, width)
        return whole(self.processor.size, self.processor.size)

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Return the score of each video's own label."""
        logits = self.network(pixel_values=self.prepare(frames).to(self.dtype)).logits
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        wanted = torch.tensor(
            [self.labels.index(self.label_of(prompt)) for prompt in prompts], device=frames.device
        )
        own: Tensor = scores.gather(1, wanted[:, None])[:, 0]
        return own.exp() if self.as_probability else own

    def label_of(self, prompt: str) -> str:
        """Return the label on which videos of this prompt are scored."""
        return self.action or nearest_labels(prompt, tuple(self.labels))[0][0]

    def prepare(self, frames: Frames) -> Float[Tensor, "batch num_frames 3 size size"]:
        """Return the preprocessed frames that the network takes."""
        if self.preprocessing == "vader":
            frames = frames[:, ::2]
        frames = frames[:, evenly(frames.shape[1], self.network.config.num_frames)]
        if self.preprocessing == "published":
            return self.processor(frames)
        return normalise(self.seen(frames), IMAGENET_MEAN, IMAGENET_STD)


def evenly(num_frames: int, wanted: int) -> list[int]:
    """Return ``wanted`` indices at equal distances from the first frame to the last, halves rounded up."""
    gaps = max(wanted - 1, 1)
    return [(2 * index * (num_frames - 1) + gaps) // (2 * gaps) for index in range(wanted)]


def find_label(action: str, labels: Sequence[str]) -> str:
    """Return the label that is meant by the option ``action``.

    Raises:
        UserError: no label is close; the message suggests the nearest.
    """
    ranked = nearest_labels(action, tuple(labels))
    if ranked[0][1] >= CLOSE:
        return ranked[0][0]
    suggestions = ", ".join(repr(label) for label, _ in ranked[:NUM_SUGGESTIONS])
    raise UserError(
        f"no label of the {len(labels)} is close to action={action!r}; the nearest are {suggestions}"
    )


@lru_cache(maxsize=4096)
def nearest_labels(text: str, labels: tuple[str, ...]) -> list[tuple[str, float]]:
    """Return the labels from the nearest to the farthest, each with the share of its words in the text."""
    given = _words(text)

    def rank(label: str) -> tuple[bool, float, int, float]:
        words = _words(label)
        found = sum(any(_same(word, other) for other in given) for word in words)
        return (
            words == given,
            found / max(len(words), 1),
            found,
            SequenceMatcher(None, text.lower(), label.lower()).ratio(),
        )

    ranked = sorted(((label, rank(label)) for label in labels), key=lambda item: item[1], reverse=True)
    return [(label, similarity[1]) for label, similarity in ranked]


def _words(text: str) -> list[str]:
    """Return the words of a text without their endings, and without fillers unless there is nothing else."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [_stem(word) for word in words if word not in FILLERS] or words


def _stem(word: str) -> str:
    """Remove an ending: "running", "runs" and "run" give the same, and so do "riding", "rides" and "ride"."""
    for ending in ("ing", "ed", "es", "s", "e"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            return stem[:-1] if ending in ("ing", "ed") and stem[-1] == stem[-2] else stem
    return word


def _same(word: str, other: str) -> bool:
    return word == other or SequenceMatcher(None, word, other).ratio() >= SAME_WORD


def load_network(folder: Path) -> VideoMAEForVideoClassification:
    """Load the classifier with every weight of the file."""
    network = VideoMAEForVideoClassification(VideoMAEConfig.from_pretrained(folder))
    load_folder(network, folder, renamed=_published(network.state_dict()))
    return network


def _published(names: Iterable[str]) -> dict[str, str]:
    """Return the new name of every renamed weight by its published name."""
    return {
        name.replace(now, before): name for before, now in RENAMED.items() for name in names if now in name
    }
