"""Inputs as large as the limits allow: they are read, or refused by a sentence, and never without end.

No test asserts seconds; ``pytest --durations 0`` prints them, and docs/reliability.md has those that were
measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from vader_ray.config import load
from vader_ray.config.yaml_text import MAX_BYTES, MAX_NODES
from vader_ray.errors import UserError
from vader_ray.prompt_files import MAX_BYTES as MAX_PROMPT_BYTES
from vader_ray.prompt_files import MAX_LINES, MAX_PROMPTS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

TEXT = "a red star moving up " + "x" * (MAX_PROMPT_BYTES // MAX_PROMPTS - 50)
FORMATS: dict[str, tuple[str, Callable[[str], str]]] = {
    "txt": ("", "{}\n".format),
    "csv": ("prompt\n", '"{}"\n'.format),
    "jsonl": ("", lambda prompt: json.dumps({"prompt": prompt}) + "\n"),
}


@pytest.mark.parametrize("suffix", [*FORMATS, "parquet"])
def test_the_largest_file_of_prompts_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts.{suffix}"
    prompts = (f"{TEXT}{number}" for number in range(MAX_PROMPTS))
    if suffix == "parquet":
        parquet.write_table(pa.table({"prompt": list(prompts)}), path)
    else:
        header, row = FORMATS[suffix]
        with path.open("w") as file:
            file.write(header)
            file.writelines(map(row, prompts))
    assert len(load("shapes_hps", {"prompts.train": str(path)}).prompts.train) == MAX_PROMPTS


@pytest.mark.parametrize(
    ("name", "start", "repeated", "times", "sentence"),
    [
        ("one_line.txt", "", "a", MAX_PROMPT_BYTES, "shorten it to at most"),
        ("blank.txt", "", "\n", MAX_LINES, "holds no prompt"),
        ("quote.csv", 'prompt\n"', "a", MAX_PROMPT_BYTES - 10, "is not CSV"),
        ("brackets.jsonl", '{"prompt": ', "[", MAX_PROMPT_BYTES - 20, "is not a JSON object"),
    ],
    ids=["one line", "blank lines", "open quote", "nesting"],
)
def test_the_largest_file_without_prompts_is_refused(
    name: str, start: str, repeated: str, times: int, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(start + repeated * times)
    with pytest.raises(UserError, match=sentence):
        load("shapes_hps", {"prompts.train": str(path)})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: "name: [" + "1," * (MAX_NODES - 10) + "1]\n", "name: Input should be a valid string"),
        (lambda: "name:\n" + "- 1\n" * (MAX_NODES - 10), "name: Input should be a valid string"),
        (lambda: "".join(f"k{n}: 1\n" for n in range(MAX_NODES // 2 - 10)), "k0: there is "),
        (lambda: "x: [" + "1," * (MAX_BYTES // 2 - 10) + "1]\n", "it has too many values"),
        (lambda: "name: " + "a" * (MAX_BYTES - 10), "at most 200 characters"),
        (lambda: "#\n" * (MAX_BYTES // 2 - 10), "must hold a mapping of settings"),
        (lambda: "x: " + "[" * (MAX_BYTES - 10), "exceeded maximum nesting depth"),
    ],
    ids=["flow list", "block list", "mapping", "too many values", "one string", "comments", "nesting"],
)
def test_the_largest_recipe_file_is_refused(make: Callable[[], str], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(make())
    with pytest.raises(UserError, match=sentence):
        load(str(path))
