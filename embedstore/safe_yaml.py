"""Reading YAML that holds values, never code: safe tags only, no aliases, no duplicate keys, a size limit."""

from __future__ import annotations

import math
import re as _re
from pathlib import Path
from typing import Any

import yaml

from embedstore.errors import HostileInputError
from embedstore.files import read_file

__all__ = ["parse_yaml", "read_yaml"]

MAX_YAML_BYTES = 1 << 20


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader without aliases, duplicate keys, and YAML 1.1's surprises in plain scalars."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", None)
        # Even safe tags make values that no JSON has (bytes, sets, dates), and !!merge goes round the key check.
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.constructor.ConstructorError(None, None, "tags are not allowed", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is no plain text", node.start_mark)
        keys = [key.value for key, _ in node.value]
        if len(set(keys)) != len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        number = float(node.value)
        if not math.isfinite(number):
            raise yaml.constructor.ConstructorError(None, None, "a number is not finite", node.start_mark)
        return number


_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)


# Ids such as `007`, `1_000` and `NO` stay text: only JSON's own numbers, true, false and null are resolved.
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"^-?(?:0|[1-9][0-9]*)$", "-0123456789"),
    ("tag:yaml.org,2002:float", r"^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)(?:[eE][+-]?[0-9]+)?$", "-0123456789"),
):
    _StrictLoader.add_implicit_resolver(_tag, _re.compile(_pattern), list(_first))


def parse_yaml(payload: bytes, *, source: str) -> Any:
    """Parse one YAML document.

    Raises
    ------
    HostileInputError
        It has tags, aliases, duplicate keys or broken syntax, or is too large; the message names ``source``.

    Examples
    --------
    >>> parse_yaml(b"id: 007\\nred: NO\\nn: 3", source="example")
    {'id': '007', 'red': 'NO', 'n': 3}
    """
    if len(payload) > MAX_YAML_BYTES:
        raise HostileInputError(f"{source} is larger than {MAX_YAML_BYTES} bytes, too large for YAML")
    try:
        return yaml.load(payload, Loader=_StrictLoader)
    # ValueError: text that is no UTF-8, and numbers of more digits than Python reads.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise HostileInputError(f"{source} is no plain YAML: {reason}") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file strictly."""
    return parse_yaml(read_file(path, max_bytes=MAX_YAML_BYTES), source=str(path))
