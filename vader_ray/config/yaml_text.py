"""Read YAML that people write: no duplicate keys, and no small file that expands to a huge document."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

MAX_BYTES = 16 * 2**20
"""Largest recipe file."""
MAX_NODES = 1_000_000
"""Largest number of values of a document, each alias counted with all that it stands for."""


class _Loader(yaml.SafeLoader):
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


def parse_yaml(text: str) -> Any:
    """Return the document as plain Python values.

    Raises:
        yaml.YAMLError: the text is no YAML, repeats a key, is nested too deeply, or expands to more than
            `MAX_NODES` values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if (num_nodes := _expanded(node, {}, set())) > MAX_NODES:
            raise yaml.YAMLError(f"its aliases expand to {num_nodes} values; at most {MAX_NODES} are read")
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except ValueError as error:  # a date or a number that Python refuses
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


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
