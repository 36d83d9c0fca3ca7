"""Read YAML that people write: no duplicate keys, and no small file that expands to a huge document."""

from __future__ import annotations

import stat
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 16 * 2**20
"""Largest file."""
MAX_NODES = 200_000
"""Largest number of values of a document, each alias counted with all that it stands for."""
MAX_DEPTH = 100
"""Largest number of lists and mappings around a value."""


class _Loader(yaml.CSafeLoader):
    """YAML's plain types, without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = dict[Hashable, int]()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            line = key_node.start_mark.line + 1
            if isinstance(key, Hashable) and key in seen:
                raise yaml.YAMLError(f"{key!r} is given in line {seen[key]} and again in line {line}")
            if isinstance(key, Hashable):
                seen[key] = line
        return super().construct_mapping(node, deep=deep)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        OSError: the file cannot be read, has more than `MAX_BYTES`, or is a device, a named pipe or a folder.
        UnicodeDecodeError: it is not text in UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(f"it has {status.st_size} bytes; at most {MAX_BYTES} are read")
    return path.read_text(encoding="utf-8")


def parse_yaml(text: str) -> Any:
    """Return the only document of a text as plain Python values.

    Raises:
        yaml.YAMLError: the text is no YAML, has several documents, repeats a key, is nested too deeply, or
            expands to more than `MAX_NODES` values.
    """
    documents = parse_documents(text)
    if len(documents) > 1:
        raise yaml.YAMLError(f"it has {len(documents)} documents; one is read")
    return documents[0] if documents else None


def parse_documents(text: str) -> list[Any]:
    """Return all documents of a text as plain Python values.

    Raises:
        yaml.YAMLError: as `parse_yaml`.
    """
    try:
        _check_size(text)
        return list(_construct(_Loader(text)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that Python refuses
        raise yaml.YAMLError(" ".join(str(error).replace('"<unicode string>", ', "").split())) from None


def _construct(loader: _Loader) -> Iterator[Any]:
    while loader.check_node():
        node: Any = loader.get_node()
        if (num_nodes := _expanded(node, {}, set())) > MAX_NODES:
            raise yaml.YAMLError(f"its aliases expand to {num_nodes} values; at most {MAX_NODES} are read")
        yield loader.construct_document(node)  # type: ignore[no-untyped-call]


def _check_size(text: str) -> None:
    """Refuse a text that is nested too deeply or has too many values, before a tree of it is in memory."""
    depth = num_nodes = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):  # type: ignore[no-untyped-call]
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        num_nodes += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError("it is nested too deeply")
        if num_nodes > MAX_NODES:
            raise yaml.YAMLError(f"it has too many values; at most {MAX_NODES} are read")


def _expanded(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Number of values of a node, with aliases expanded."""
    if id(node) in open_nodes:
        raise yaml.YAMLError("an alias contains itself")
    if id(node) not in known:
        open_nodes.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_expanded(child, known, open_nodes) for child in children)
        open_nodes.discard(id(node))
    return known[id(node)]
