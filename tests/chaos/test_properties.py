"""Properties of what people write, on inputs that hypothesis makes: a result, or our one error.

Each property is tried on a few inputs, always the same ones; ``make chaos`` tries many more.
"""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tests.chaos.inputs.adapters import SOUND
from tests.helpers.adapter_files import write_adapter
from tests.helpers.recipe import MINIMAL
from vader_ray.config import flatten, load, validate
from vader_ray.config.yaml_text import parse_yaml
from vader_ray.errors import UserError
from vader_ray.models import adapter_shape
from vader_ray.prompt_files import read_prompt_file

Check = Callable[..., None]
FEW, MANY = 30, 1000
FULL: dict[str, Any] = load("shapes_hps").model_dump(mode="json") | {
    "prompts": {"column": "prompt", "train": ["a"], "validation": ["b"]}
}
"""A recipe with every field."""
some_or_all = pytest.mark.parametrize(
    "num_examples", [FEW, pytest.param(MANY, marks=[pytest.mark.chaos, pytest.mark.timeout(3600)])]
)


def _try(num_examples: int, check: Check, *strategies: Any) -> None:
    """Try a check on examples, the same ones in every session."""
    suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large]
    profile = settings(
        max_examples=num_examples, derandomize=True, deadline=None, suppress_health_check=suppressed
    )
    profile(given(*strategies)(check))()  # type: ignore[no-untyped-call]


def _error_of(call: Callable[[], object], kind: type[Exception]) -> str | None:
    """The message of an error of this kind, None if there was none; any other error ends the test."""
    try:
        call()
    except kind as error:
        return str(error)
    return None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        ["auto", "none", "", "shapes:hps", "/dev/null", "~x/y", "a\0b", -1, 0, 1, 10**12, 2**64]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)
addresses = st.sampled_from(sorted({*flatten(FULL), *FULL}))
mutations = st.lists(
    st.tuples(addresses, st.sampled_from(["set", "delete", "add"]), values), min_size=1, max_size=3
)


def _mutated(changes: list[tuple[str, str, Any]]) -> dict[str, Any]:
    """The full recipe with values replaced, deleted, or new keys added beside them."""
    document = copy.deepcopy(FULL)
    for address, kind, value in changes:
        *parents, last = address.split(".")
        node: Any = document
        for key in parents:
            if isinstance(node, dict):
                node = node.get(key)
            elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
        if isinstance(node, dict):
            node[str(value)[:9] if kind == "add" else last] = value
            if kind == "delete":
                node.pop(last)
    return document


@some_or_all
def test_a_changed_recipe_is_loaded_or_refused_with_the_address(num_examples: int) -> None:
    def check(changes: list[tuple[str, str, Any]]) -> None:
        document = _mutated(changes)
        try:
            config = validate(document)
        except UserError as error:
            lines = str(error).split("\n")
            assert all(line.partition(":")[2] or "more settings are refused" in line for line in lines)
            known = {*document, *FULL, "recipe"}
            assert all(line.startswith(tuple(map(str, known))) or line[0].isdigit() for line in lines)
        else:
            crossed = json.dumps(config.model_dump(mode="json"))  # as it goes to another process
            assert json.dumps(validate(json.loads(crossed)).model_dump(mode="json")) == crossed

    _try(num_examples, check, mutations)


@some_or_all
def test_a_recipe_with_any_override_is_loaded_or_refused(num_examples: int) -> None:
    def check(address: str, value: str) -> None:
        message = _error_of(lambda: load("shapes_hps", [f"{address}={value}"]), UserError)
        assert message is None or message.strip()

    _try(num_examples, check, addresses | st.text(max_size=30), st.text(max_size=30))


@some_or_all
def test_any_text_is_yaml_or_refused_in_one_line(num_examples: int) -> None:
    def check(text: str) -> None:
        message = _error_of(lambda: parse_yaml(text), yaml.YAMLError)
        assert message is None or "\n" not in message

    pieces = st.lists(
        st.sampled_from([*"[]{}&*!|>-?:#%@`'\"\n \t,", "a", "1", "<<", "---", "\0", "é"]), max_size=40
    )
    _try(num_examples, check, pieces.map("".join) | st.text(max_size=60) | st.just(MINIMAL))


prompts = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), min_size=1, max_size=80)
    .map(str.strip)
    .filter(bool)
    .filter(lambda text: "|" not in text),
    min_size=1,
    max_size=20,
)


def _write_as(suffix: str, texts: list[str], path: Path) -> None:
    if suffix == "txt":
        path.write_text("\n".join(texts), encoding="utf-8")
    elif suffix == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["id", "prompt"], *enumerate(texts)])
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts), encoding="utf-8")
    else:
        parquet.write_table(pa.table({"prompt": texts}), path)


@some_or_all
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "parquet"])
def test_written_prompts_are_read_back(tmp_path: Path, suffix: str, num_examples: int) -> None:
    path = tmp_path / f"prompts.{suffix}"

    def check(texts: list[str]) -> None:
        _write_as(suffix, texts, path)
        assert read_prompt_file(path) == tuple(texts)

    _try(num_examples, check, prompts)


@some_or_all
@pytest.mark.parametrize("suffix", ["txt", "csv", "jsonl", "parquet"])
def test_any_bytes_are_prompts_or_refused(tmp_path: Path, suffix: str, num_examples: int) -> None:
    path = tmp_path / f"prompts.{suffix}"
    _write_as(suffix, ["a star", "a dog, running"], path)
    sound = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        found = list[str]()
        message = _error_of(lambda: found.extend(read_prompt_file(path)), ValueError)
        assert message is None if found else str(path) in str(message)
        assert all(isinstance(text, str) and text.strip() for text in found)

    damages = st.tuples(st.integers(0, len(sound)), st.binary(max_size=4), st.integers(0, len(sound)))
    damaged = damages.map(lambda damage: sound[: damage[0]] + damage[1] + sound[damage[2] :])
    _try(num_examples, check, st.binary(max_size=60) | damaged)


@some_or_all
def test_any_settings_of_an_adapter_are_read_or_refused(tmp_path: Path, num_examples: int) -> None:
    def check(settings: Any) -> None:
        content = settings if isinstance(settings, bytes) else json.dumps(settings).encode()
        write_adapter(tmp_path, content)
        message = _error_of(lambda: adapter_shape(tmp_path), UserError)
        assert message is None or message.startswith(f"the adapter in {tmp_path}")
        assert message is None or "\n" not in message

    names = st.sampled_from([*SOUND, "use_dora", "rank_pattern", "peft_type"])
    numbers = st.integers() | st.floats() | st.just(10**400)
    changed = st.dictionaries(names, values | numbers, min_size=1, max_size=3).map(lambda new: SOUND | new)
    _try(num_examples, check, changed | values | st.binary(max_size=60))
