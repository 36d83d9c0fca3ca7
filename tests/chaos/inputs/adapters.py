"""Settings of a saved adapter (``adapter_config.json``), with a piece of the sentence; ``SOUND`` is accepted."""

from __future__ import annotations

import json
from typing import Any

SOUND: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q"]}
RANK, ALPHA, TARGETS = "its setting r is ", "its setting lora_alpha is ", "its setting target_modules is "
NO_RANK, NO_ALPHA = ", not a whole number of at least 1", ", not a number above 0"
NO_TARGETS = ", not a list of names"
BAD_FILE = "is damaged ("


def _with(**changes: Any) -> bytes:
    return json.dumps(SOUND | changes).encode()


def _without(name: str) -> bytes:
    return json.dumps({key: value for key, value in SOUND.items() if key != name}).encode()


REFUSED: list[tuple[bytes, str]] = [
    (b"", BAD_FILE),
    (b"a star", BAD_FILE),
    (b"{", BAD_FILE),
    (b"\xff\xfe{}", BAD_FILE),
    (_with()[:-1], BAD_FILE),
    (_with() + b"{}", BAD_FILE),
    (json.dumps(SOUND).encode("utf-16"), BAD_FILE),
    (b'\xef\xbb\xbf{"r": 2}', BAD_FILE),
    (b"[" * 100_000, BAD_FILE),
    (b'{"r": ' * 100_000, BAD_FILE),
    (b'{"r": ' + b"9" * 5000 + b"}", BAD_FILE),
    (b"[]", "its settings are a list, not a table"),
    (b"null", "its settings are a NoneType, not a table"),
    (b"3", "its settings are a int, not a table"),
    (b'"r"', "its settings are a str, not a table"),
    (b"{}", f"{RANK}missing{NO_RANK}"),
    (_without("r"), f"{RANK}missing{NO_RANK}"),
    (_with(r=None), f"{RANK}missing{NO_RANK}"),
    (_with(r="8"), f"{RANK}'8'{NO_RANK}"),
    (_with(r=0), f"{RANK}0{NO_RANK}"),
    (_with(r=-1), f"{RANK}-1{NO_RANK}"),
    (_with(r=1.5), f"{RANK}1.5{NO_RANK}"),
    (_with(r=True), f"{RANK}True{NO_RANK}"),
    (_with(r=[8]), f"{RANK}[8]{NO_RANK}"),
    (_with(r={"to_q": 8}), f"{RANK}{{'to_q': 8}}{NO_RANK}"),
    (_with(r=float("nan")), f"{RANK}nan{NO_RANK}"),
    (_with(r=float("inf")), f"{RANK}inf{NO_RANK}"),
    (_with(r=10**12), "rank: Input should be less than or equal to"),
    (_with(r=10**400), f"{RANK}1000000"),
    (_with(r=3), "which is not of rank 3"),
    (_without("lora_alpha"), f"{ALPHA}missing{NO_ALPHA}"),
    (_with(lora_alpha=None), f"{ALPHA}missing{NO_ALPHA}"),
    (_with(lora_alpha="4"), f"{ALPHA}'4'{NO_ALPHA}"),
    (_with(lora_alpha=0), f"{ALPHA}0{NO_ALPHA}"),
    (_with(lora_alpha=-4), f"{ALPHA}-4{NO_ALPHA}"),
    (_with(lora_alpha=False), f"{ALPHA}False{NO_ALPHA}"),
    (_with(lora_alpha=[4]), f"{ALPHA}[4]{NO_ALPHA}"),
    (_with(lora_alpha=float("nan")), f"{ALPHA}nan{NO_ALPHA}"),
    (_with(lora_alpha=float("inf")), f"{ALPHA}inf{NO_ALPHA}"),
    (_with(lora_alpha=10**400), f"{ALPHA}1000000"),
    (_without("target_modules"), f"{TARGETS}missing{NO_TARGETS}"),
    (_with(target_modules=None), f"{TARGETS}missing{NO_TARGETS}"),
    (_with(target_modules=[]), f"{TARGETS}[]{NO_TARGETS}"),
    (_with(target_modules="all-linear"), f"{TARGETS}'all-linear'{NO_TARGETS}"),
    (_with(target_modules=[1]), f"{TARGETS}[1]{NO_TARGETS}"),
    (_with(target_modules=[None]), f"{TARGETS}[None]{NO_TARGETS}"),
    (_with(target_modules=[["to_q"]]), f"{TARGETS}[['to_q']]{NO_TARGETS}"),
    (_with(target_modules={"to_q": 1}), f"{TARGETS}{{'to_q': 1}}{NO_TARGETS}"),
    (_with(target_modules=3), f"{TARGETS}3{NO_TARGETS}"),
    (_with(target_modules=["\ud800"]), "target_modules.0: Input should be a valid string"),
    (_with(use_dora=True), "has use_dora=True, which is not supported"),
    (_with(use_rslora=1), "has use_rslora=1, which is not supported"),
    (_with(rank_pattern={"to_q": 4}), "has rank_pattern={'to_q': 4}, which is not supported"),
    (_with(alpha_pattern=[1]), "has alpha_pattern=[1], which is not supported"),
]

ACCEPTED: list[bytes] = [
    _with(),
    _with(r=2.0),
    _with(lora_alpha=0.5),
    _with(target_modules=["to_q", "to_q"]),
    _with(use_dora=False, use_rslora=None, rank_pattern={}),
    _with(peft_type=3, base_model_name_or_path=["x"], unknown={"a": [None]}),
    b'{"r": 99, ' + _with()[1:],
]
