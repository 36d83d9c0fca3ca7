"""Action recognition (VideoMAE, arXiv 2203.12602): how surely a classifier of videos sees the action that was asked for."""

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

from vader_ray.config import ConfigError
from vader_ray.rewards.base import NetworkReward, frozen
from vader_ray.rewards.core.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, normalise, squash
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
"""Names in published checkpoints, and what transformers calls the same weights today."""
FILLERS = frozenset({"a", "an", "the", "or", "and", "of", "in", "on", "with", "to", "is", "are"})
SAME_WORD = 0.85
"""Least ratio of `difflib.SequenceMatcher` for two words to count as one: a letter more or less in a word of seven."""
CLOSE = 0.5
"""Least share of a label's words for `action` to mean it."""
NUM_SUGGESTIONS = 3


class Reward(NetworkReward):
    """The classifier's log-probability (or probability) of one of its labels, of the whole clip.

    The label nearest to a text is the one with the largest share of its words in the text; words are compared without case,
    plural and the endings -ing, -ed, -e, and may differ by a letter. Ties go to the label with more such words, then to the more
    similar spelling (`difflib`), then to the earlier one. A label that the text spells out wins whatever the rest says.

    Frames: the network takes a fixed number (16). ``published`` takes them at equal distances from first to last, repeating where
    the clip is shorter; ``vader`` takes every second frame and then repeats in the same way up to that number.

    Deviation from float32 on a tiny network with random weights (tests): bfloat16 below 0.02, float16 below 0.003.

    Args:
        weights: a folder or hub repository in transformers' format (``config.json``, processor, ``model.safetensors``).
        action: the label of every video, exact or nearest. By default each video's is the nearest to its prompt, however far:
            set it where prompts name no action.
        score: ``log_probability`` (0 at most, its gradient never dies) or ``probability``.
        preprocessing: ``published`` as the checkpoint's processor does (short side, centre crop); ``vader`` squashes (bilinear,
            ImageNet's normalisation).
    """

    granularity: Granularity = "clip"
    unit = "log-probability of the action, at most 0 (probability, 0 to 1, where so asked)"
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
            raise ConfigError(
                f"{folder}: frames of {self.processor.size} pixels do not fit a network for {self.network.config.image_size}; "
                "give the processor of these weights"
            )
        self.labels = [label for _, label in sorted(self.network.config.id2label.items())]
        self.action = None if action is None else find_label(action, self.labels)
        self.as_probability = score == "probability"
        self.preprocessing = preprocessing

    def region(self, height: int, width: int) -> tuple[slice, slice]:
        """The centre square; the whole frame where it is squashed."""
        return (
            self.processor.region(height, width)
            if self.preprocessing == "published"
            else super().region(height, width)
        )

    def score(self, frames: Frames, prompts: Sequence[str], /) -> Scores:
        """Of each video's own label."""
        logits = self.network(pixel_values=self.prepare(frames).to(self.dtype)).logits
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
        wanted = torch.tensor(
            [self.labels.index(self.label_of(prompt)) for prompt in prompts], device=frames.device
        )
        own: Tensor = scores.gather(1, wanted[:, None])[:, 0]
        return own.exp() if self.as_probability else own

    def label_of(self, prompt: str) -> str:
        """The label that videos of this prompt are scored on."""
        return self.action or nearest_labels(prompt, tuple(self.labels))[0][0]

    def prepare(self, frames: Frames) -> Float[Tensor, "batch num_frames 3 size size"]:
        """What the network sees."""
        if self.preprocessing == "vader":
            frames = frames[:, ::2]
        frames = frames[:, evenly(frames.shape[1], self.network.config.num_frames)]
        if self.preprocessing == "published":
            return self.processor(frames)
        return normalise(squash(frames, self.processor.size, "bilinear"), IMAGENET_MEAN, IMAGENET_STD)


def evenly(num_frames: int, wanted: int) -> list[int]:
    """``wanted`` indices at equal distances from the first frame to the last, halves rounded up; repeated where too few."""
    gaps = max(wanted - 1, 1)
    return [(2 * place * (num_frames - 1) + gaps) // (2 * gaps) for place in range(wanted)]


def find_label(action: str, labels: Sequence[str]) -> str:
    """The label that ``action`` means.

    Raises:
        ConfigError: none is close; suggests the nearest.
    """
    ranked = nearest_labels(action, tuple(labels))
    if ranked[0][1] >= CLOSE:
        return ranked[0][0]
    suggestions = ", ".join(repr(label) for label, _ in ranked[:NUM_SUGGESTIONS])
    raise ConfigError(
        f"no label of the {len(labels)} is close to action={action!r}; the nearest are {suggestions}"
    )


@lru_cache(maxsize=4096)
def nearest_labels(text: str, labels: tuple[str, ...]) -> list[tuple[str, float]]:
    """The labels from the nearest to the farthest, each with the share of its words that the text has."""
    said = _words(text)

    def rank(label: str) -> tuple[bool, float, int, float]:
        words = _words(label)
        found = sum(any(_same(word, other) for other in said) for word in words)
        return (
            words == said,
            found / max(len(words), 1),
            found,
            SequenceMatcher(None, text.lower(), label.lower()).ratio(),
        )

    ranked = sorted(((label, rank(label)) for label in labels), key=lambda item: item[1], reverse=True)
    return [(label, similarity[1]) for label, similarity in ranked]


def _words(text: str) -> list[str]:
    """The words of a text without their endings; fillers only where there is nothing else."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [_stem(word) for word in words if word not in FILLERS] or words


def _stem(word: str) -> str:
    """running, runs and run alike; riding, rides and ride alike."""
    for ending in ("ing", "ed", "es", "s", "e"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            return stem[:-1] if ending in ("ing", "ed") and stem[-1] == stem[-2] else stem
    return word


def _same(word: str, other: str) -> bool:
    return word == other or SequenceMatcher(None, word, other).ratio() >= SAME_WORD


def load_network(folder: Path) -> VideoMAEForVideoClassification:
    """The classifier, every weight of the file in its place."""
    network = VideoMAEForVideoClassification(VideoMAEConfig.from_pretrained(folder))
    load_folder(network, folder, renamed=_published(network.state_dict()))
    return network


def _published(names: Iterable[str]) -> dict[str, str]:
    """The published name of each weight that has another one today, and today's."""
    return {
        name.replace(now, before): name for before, now in RENAMED.items() for name in names if now in name
    }
