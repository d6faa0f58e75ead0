"""YAML as users write it: a key that stands twice is refused, where YAML's own reader would take the last."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from scalekit.errors import ConfigError, shown

_MERGE = "tag:yaml.org,2002:merge"


def read_mapping(path: str | Path, kind: str, rule: str) -> tuple[dict[str, Any], str]:
    """The mapping that a file holds, and the file's text.

    Args:
        path: of the file.
        kind: what it is, for messages, such as ``"job"``.
        rule: what it must be.

    Raises:
        ConfigError: it cannot be read, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the {kind} {path}: {error.strerror}") from error
    except ValueError as error:  # bytes that are no text, or a path that is none
        raise ConfigError(f"cannot read the {kind} {shown(str(path))}: {error}") from error
    block = parse_yaml(text, str(path))
    if not isinstance(block, dict):
        raise ConfigError(f"{path} holds no {kind}: it must be {rule}")
    return block, text


def parse_yaml(text: str, name: str) -> Any:
    """What a text says in YAML.

    Args:
        text: to read.
        name: of what it stands for, for messages.

    Raises:
        ConfigError: it is no YAML, or has a key twice.
    """
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except Exception as error:  # not YAML's own errors alone: a date that is none is a ValueError
        said = " ".join(str(error).split())
        raise ConfigError(f"{name} is not YAML: {said or type(error).__name__}") from error


def lines_of(text: str) -> dict[str, int]:
    """The line of each key of a text that is a mapping, from 1.

    Args:
        text: YAML, which `parse_yaml` has read.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    return {key.value: key.start_mark.line + 1 for key, _ in getattr(node, "value", ()) if isinstance(key.value, str)}


class _Loader(yaml.SafeLoader):
    """Of plain values, whose mappings have each key once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in getattr(node, "value", ()) if key.tag != _MERGE]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
