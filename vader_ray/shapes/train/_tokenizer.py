"""The tokenizer of the embedded shapes: CLIP's byte pair encoding over its few words; other words fall into
letters."""

from collections.abc import Sequence
from itertools import pairwise
from string import ascii_lowercase, digits, punctuation

from transformers import CLIPTokenizer

from vader_ray.shapes.data import ATTRIBUTES

CONTEXT_LENGTH = 16
"""Tokens per prompt, with start and end; the longest caption has eleven."""


def build_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer in which every word of a caption is one token and the end token has the highest
    number."""
    words = ["a", "moving", "past", *(word for words in ATTRIBUTES.values() for word in words if word)]
    merges = merges_of([[*word[:-1], f"{word[-1]}</w>"] for word in words])
    letters = [*ascii_lowercase, *digits, *punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT_LENGTH)


def merges_of(words: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Merges that make one token of each word, given as its pieces; always the same ones: `tokenizers`' own
    trainer breaks ties by chance."""
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = list(word)
        while len(pieces) > 1:
            known = [pair for pair in pairwise(pieces) if pair in merges]
            left, right = min(known, key=merges.index) if known else (pieces[0], pieces[1])
            if not known:
                merges.append((left, right))
            place = list(pairwise(pieces)).index((left, right))
            pieces[place : place + 2] = [left + right]
    return merges
