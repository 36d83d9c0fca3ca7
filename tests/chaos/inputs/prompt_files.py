"""Files that hold no prompts, with a piece of the sentence: what is wrong, where, and the remedy.

A dict is the columns of a Parquet file.
"""

from __future__ import annotations

from typing import Any

UTF8 = "is not text in UTF-8; save it with this encoding"
SUFFIX = "is not known to be a file of prompts by its suffix"
EMPTY = "holds no prompt; give a .txt file with one prompt per line or a .csv, .jsonl, .parquet file"
NUL = "has a NUL character or half of a UTF-16 pair; remove it"

REFUSED: list[tuple[str, Any, str]] = [
    ("a.txt", b"", EMPTY),
    ("a.txt", b"\n \n\t\n", EMPTY),
    ("a.txt", b"\xef\xbb\xbf", EMPTY),
    ("a.txt", "café".encode("latin-1"), UTF8),
    ("a.txt", "a star".encode("utf-16"), UTF8),
    ("a.txt", "a star".encode("utf-16-le"), "holds NUL characters, which no text has"),
    ("a.txt", "a star".encode("utf-32"), UTF8),
    ("a.txt", bytes(range(256)), UTF8),
    ("a.txt", b"a star\0\n", "holds NUL characters, which no text has"),
    ("a.txt", b"\x89PNG\r\n\x1a\n", UTF8),
    (
        "a.txt",
        b"a\n" + b"x" * 1_000_000,
        "line 2: a prompt has 1000000 characters; shorten it to at most 10000",
    ),
    ("a.txt", b"x " * 500_000, "shorten it to at most 10000"),
    ("a.txt", b"no.png | a dog", "no.png does not exist; write `path/to/image.png | text`"),
    ("a", b"a star", SUFFIX),
    ("a.png", b"\x89PNG", SUFFIX),
    ("a.json", b'["a star"]', SUFFIX),
    ("a.yaml", b"- a star", SUFFIX),
    ("a.tsv", b"prompt\na star", SUFFIX),
    ("a.xlsx", b"PK\x03\x04", SUFFIX),
    ("a.txt.gz", b"\x1f\x8b", SUFFIX),
    ("a.pdf", b"%PDF", SUFFIX),
    ("a.csv", b"", "must have exactly one column 'prompt' and has none"),
    (
        "a.csv",
        b"a star\na dog\n",
        "must have exactly one column 'prompt' and has 'a star'; set prompts.column",
    ),
    ("a.csv", b"prompt,prompt\na,b\n", "must have exactly one column 'prompt' and has 'prompt', 'prompt'"),
    ("a.csv", b"Prompt\na star\n", "must have exactly one column 'prompt' and has 'Prompt'"),
    ("a.csv", b"prompt;id\na star;1\n", "must have exactly one column 'prompt' and has 'prompt;id'"),
    ("a.csv", b"prompt\n", EMPTY),
    ("a.csv", b"prompt\na cat, running\n", ", line 2 has more cells than the first line has columns"),
    ("a.csv", b"prompt,id\na cat,1\n ,2\n", ", line 3: the column 'prompt' is empty; write a prompt there"),
    ("a.csv", b"id,prompt\n1,a cat\n2\n", ", line 3: the column 'prompt' is empty"),
    ("a.csv", b'prompt\n"a cat" runs"\n', "is not CSV after its line 1 ("),
    ("a.csv", b'prompt\n"a cat\n', "is not CSV after its line 1 (unexpected end of data)"),
    (
        "a.csv",
        b'prompt\n"' + b"x" * 200_000 + b'"\n',
        "is not CSV after its line 1 (field larger than field limit",
    ),
    ("a.csv", "prompt\ncafé\n".encode("latin-1"), UTF8),
    ("a.csv", "prompt\na star\n".encode("utf-16"), UTF8),
    ("a.csv", b"prompt\na\0b\n", "holds NUL characters, which no text has"),
    ("a.jsonl", b"", EMPTY),
    ("a.jsonl", b"a star\n", ', line 1 is not a JSON object; write one {"prompt": "…"} per line'),
    ("a.jsonl", b'["a star"]\n', ", line 1 is not a JSON object"),
    ("a.jsonl", b'"a star"\n', ", line 1 is not a JSON object"),
    ("a.jsonl", b"null\n", ", line 1 is not a JSON object"),
    ("a.jsonl", b'[\n{"prompt": "a"}\n]', ", line 1 is not a JSON object"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', ", line 2 is not a JSON object"),
    ("a.jsonl", b'{"text": "a"}\n', ", line 1 must have exactly one column 'prompt' and has 'text'"),
    ("a.jsonl", b"{}\n", ", line 1 must have exactly one column 'prompt' and has none"),
    ("a.jsonl", b'{"prompt": null}\n', ", line 1: the column 'prompt' is empty"),
    ("a.jsonl", b'{"prompt": ""}\n', ", line 1: the column 'prompt' is empty"),
    ("a.jsonl", b'{"prompt": 3}\n', ", line 1: the column 'prompt' holds a value of type int; give text"),
    ("a.jsonl", b'{"prompt": ["a"]}\n', "holds a value of type list; give text"),
    ("a.jsonl", b'{"prompt": {"a": 1}}\n', "holds a value of type dict; give text"),
    ("a.jsonl", b'{"prompt": true}\n', "holds a value of type bool; give text"),
    ("a.jsonl", b'{"prompt": "a\\u0000b"}\n', f"line 1: a prompt {NUL}"),
    ("a.jsonl", b'{"prompt": "a\\ud800b"}\n', f"line 1: a prompt {NUL}"),
    ("a.jsonl", b'{"prompt": ' + b"[" * 100_000, ", line 1 is not a JSON object"),
    ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", ", line 1 is not a JSON object"),
    ("a.jsonl", '{"prompt": "café"}'.encode("latin-1"), UTF8),
    ("a.parquet", b"", "is not a sound Parquet file (ArrowInvalid); write it again"),
    ("a.parquet", b"a star\n", "is not a sound Parquet file (ArrowInvalid); write it again"),
    ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", "cannot read the prompt file"),
    (
        "a.parquet",
        {"text": ["a"]},
        "must have exactly one column 'prompt' and has 'text'; set prompts.column",
    ),
    ("a.parquet", {"prompt": []}, EMPTY),
    ("a.parquet", {"prompt": ["a", None]}, ", row 2: the column 'prompt' is empty"),
    ("a.parquet", {"prompt": ["a"] * 2000 + [""]}, ", row 2001: the column 'prompt' is empty"),
    ("a.parquet", {"prompt": [1.5]}, ", row 1: the column 'prompt' holds a value of type float; give text"),
    ("a.parquet", {"prompt": [b"a"]}, ", row 1: the column 'prompt' holds a value of type bytes; give text"),
    ("a.parquet", {"prompt": [["a"]]}, "holds a value of type list; give text"),
    ("a.parquet", {"prompt": [{"a": 1}]}, "holds a value of type dict; give text"),
    ("a.parquet", {"prompt": ["a\0b"]}, f"row 1: a prompt {NUL}"),
    ("a.parquet", {"prompt": ["x" * 20_000]}, "row 1: a prompt has 20000 characters; shorten it"),
]

ACCEPTED: list[tuple[str, Any, tuple[str, ...]]] = [
    ("a.txt", b"a star", ("a star",)),
    ("a.TXT", b"a star\r\na dog\r\n", ("a star", "a dog")),
    ("a.txt", b"\xef\xbb\xbfa star\n\n\n  a dog  \n", ("a star", "a dog")),
    ("a.txt", "café, 星, 🌟\n".encode(), ("café, 星, 🌟",)),
    ("a.txt", b"a star\na star\n", ("a star", "a star")),
    ("a.txt", b"x" * 10_000, ("x" * 10_000,)),
    ("a.txt", b'a | b, "c" {d}: [e] #f\n', ('a | b, "c" {d}: [e] #f',)),
    ("a.csv", b'id,prompt\n1,a star\n2,"a dog, running"\n', ("a star", "a dog, running")),
    ("a.csv", b'prompt\n"two\nlines"\n', ("two\nlines",)),
    ("a.csv", b'prompt\n"a ""quoted"" word"\n', ('a "quoted" word',)),
    ("a.csv", "prompt\ncafé\n".encode("utf-8-sig"), ("café",)),
    ("a.jsonl", b'{"prompt": "a star", "id": 1}\n\n{"prompt": " a dog "}', ("a star", "a dog")),
    ("a.jsonl", b'{"prompt": "caf\\u00e9"}', ("café",)),
    ("a.parquet", {"id": [1], "prompt": ["a star"]}, ("a star",)),
    ("a.parquet", {"prompt": ["a star"] * 3000}, ("a star",) * 3000),
]
