"""The tokenizer of the embedded world: CLIP's byte pair encoding over its few words; other words fall into letters."""

import json
from string import ascii_lowercase, digits, punctuation

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from vader_ray.world.data import COLOURS, DIRECTIONS, SHAPES

CONTEXT_LENGTH = 16
"""Tokens per prompt, with start and end; the longest caption has ten."""


def build_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer in which every word of a caption is one token and the end token has the highest number."""
    words = ["a", "moving", "past", "box", *SHAPES, *COLOURS, *DIRECTIONS]
    trained = Tokenizer(BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = Whitespace()
    trained.train_from_iterator(words * 2, BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(merge) for merge in json.loads(trained.to_str())["model"]["merges"]]
    letters = [*ascii_lowercase, *digits, *punctuation]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CONTEXT_LENGTH)
