"""Nested mappings, lists, numbers, texts and tensors as JSON and safetensors: what others pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from scalekit.errors import CheckpointError


def written(tree: Any, name: str) -> dict[str, bytes]:
    """A tree as ``NAME.json``, and ``NAME.safetensors`` where there are tensors in it.

    Raises:
        CheckpointError: something else is among them; it is named.
    """
    tensors: dict[str, Tensor] = {}
    document = _encode(tree, tensors, name)
    files = {f"{name}.json": json.dumps(document, indent=1).encode()}
    return {**files, f"{name}.safetensors": save(tensors)} if tensors else files


def read(folder: Path, name: str) -> Any:
    """The reverse of `written`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / f"{name}.json"
    try:
        tensors = load_file(path.with_suffix(".safetensors")) if path.with_suffix(".safetensors").is_file() else {}
        return _decode(json.loads(path.read_text()), tensors)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def as_text(tree: Any, name: str) -> tuple[Any, list[str]]:
    """A tree in which everything that `written` refuses stands by its text alone, and where that is."""
    if tree is None or isinstance(tree, (bool, int, float, str, Path, Tensor)):
        return tree, []
    if isinstance(tree, (list, tuple)):
        parts = [as_text(value, f"{name}[{i}]") for i, value in enumerate(tree)]
        return type(tree)(value for value, _ in parts) if type(tree) in (list, tuple) else [v for v, _ in parts], [
            place for _, places in parts for place in places
        ]
    if isinstance(tree, dict):
        found = {key: as_text(value, f"{name}.{key}" if name else str(key)) for key, value in tree.items()}
        plain = {
            key if isinstance(key, (bool, int, float, str)) else repr(key): value for key, (value, _) in found.items()
        }
        return plain, [place for _, places in found.values() for place in places]
    return repr(tree), [name]


def _encode(node: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, Path):
        return str(node)
    if isinstance(node, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(node, (list, tuple)):
        kind = "tuple" if isinstance(node, tuple) else "list"
        return {kind: [_encode(value, tensors, f"{where}[{i}]") for i, value in enumerate(node)]}
    if isinstance(node, dict):
        pairs = ([_encode(k, tensors, where), _encode(v, tensors, f"{where}.{k}")] for k, v in node.items())
        return {"dict": list(pairs)}
    raise CheckpointError(
        f"{where} is a {type(node).__name__}, which a checkpoint does not hold: it takes numbers, text, lists, mappings "
        "and tensors, and never a pickle"
    )


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value}
    items = [_decode(item, tensors) for item in value]
    return tuple(items) if kind == "tuple" else items
