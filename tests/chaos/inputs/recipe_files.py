"""Texts that are no recipe, with a piece of the sentence: what is wrong, and where."""

from __future__ import annotations

from tests.helpers.recipe import MINIMAL

LAUGHS = "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8))

REFUSED: list[tuple[str | bytes, str]] = [
    ("", "must hold a mapping of settings, not NoneType"),
    ("# nothing", "must hold a mapping of settings, not NoneType"),
    ("a star", "must hold a mapping of settings, not str"),
    ("3", "must hold a mapping of settings, not int"),
    ("[1, 2]", "must hold a mapping of settings, not list"),
    ("a: 1\n---\nb: 2", "cannot be read as YAML: it has 2 documents; one is read"),
    ("a: [", "cannot be read as YAML: while parsing a flow node"),
    ("a: b: c", "cannot be read as YAML: mapping values are not allowed"),
    ("\ta: 1", "cannot be read as YAML: while scanning for the next token found character that cannot start"),
    ("a: 'x", "cannot be read as YAML: while scanning a quoted scalar in line 1, column 4 found unexpected"),
    ("a: *b", "cannot be read as YAML: found undefined alias"),
    ("a: &a [*a]", "cannot be read as YAML: an alias contains itself"),
    (LAUGHS, "its aliases expand to 23456798 values; at most 200000 are read"),
    ("a: [" + "1," * 200_001 + "]", "it has too many values; at most 200000 are read"),
    ("a: {DEEP}", "cannot be read as YAML: while increasing flow level exceeded maximum nesting depth"),
    ("- " * 5000, "cannot be read as YAML: it is nested too deeply"),
    ("a: {DIGITS}", "cannot be read as YAML: Exceeds the limit (4300 digits) for integer string conversion"),
    ("a: 2020-99-99", "cannot be read as YAML: month must be in 1..12"),
    ("a: !!python/object:os.system x", "could not determine a constructor for the tag"),
    ("a: !!binary x", "cannot be read as YAML: failed to decode base64 data"),
    ("? [a]\n: 1", "cannot be read as YAML: while constructing a mapping"),
    ("a: \0", "cannot be read as YAML: unacceptable character #x0000"),
    (b"name: \xe9", "cannot be read as YAML: 'utf-8' codec can't decode byte 0xe9"),
    (bytes(range(256)), "cannot be read as YAML: 'utf-8' codec can't decode byte"),
    ("name: a".encode("utf-16"), "cannot be read as YAML: 'utf-8' codec can't decode byte"),
    ("seed: 1\nseed: 2", "cannot be read as YAML: 'seed' is given in line 1 and again in line 2"),
    ("model: {family: a, family: b}", "'family' is given in line 1 and again in line 1"),
    ("a: 1", "num_steps: is required"),
    ("a: 1", "a: there is no such setting; here are adapter, algorithm"),
    ("1: 2", "1: Keys should be strings, not 1"),
    ("null: 2", "None: Keys should be strings, not None"),
    (MINIMAL + "nmae: x", "nmae: there is no such setting; did you mean 'name'?"),
    (MINIMAL + "name: other", "'name' is given in line 2 and again in line 9"),
    (MINIMAL + "seed: 0x1ffffffffffffffff", "seed: Input should be less than 9223372036854775808"),
    (MINIMAL + "seed: 1:30:00:00:00:00:00:00:00:00:00:00:00", "seed: Input should be less than"),
    (
        MINIMAL + "description: 2020-01-01",
        "description: Input should be a valid string, not datetime.date(2020",
    ),
    (MINIMAL + "description: yes", "description: true is no value of this setting; give a number or a text"),
    (MINIMAL + "adapter: {rank: !!float 8.5}", "adapter.rank: Input should be a valid integer"),
    (MINIMAL + "adapter: {rank: !!set {8}}", "adapter.rank: Input should be a valid integer, not {8}"),
    (
        MINIMAL + "guard: {metrics: [" + "1," * 100_000 + "]}",
        "99980 more settings are refused; correct these",
    ),
    (
        MINIMAL + "optimizer: {" + ", ".join(f"k{i}: 1" for i in range(50)) + "}",
        "30 more settings are refused",
    ),
    (MINIMAL.replace("[a]", "[b]"), "1 prompts are in both train and validation ('b', …)"),
    (
        MINIMAL.replace("width: 8", "width: 8.5"),
        "sampling.width: Input should be a valid integer, got a number",
    ),
]
