"""A checkpoint's files.

step-00000100/
  model/          what `from_pretrained` opens, in the precision of the master weights
  optimizer/      each rank's part of the optimizer's state: rank-00000.json and rank-00000.safetensors
  state.json      step, position, schedules, loops, callbacks; tensors among them in state.safetensors
  MANIFEST.json   every file with its size and checksum; written last
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from scalekit.errors import CheckpointError

MANIFEST = "MANIFEST.json"


def checkpoint_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:08d}"


def published(checkpoints: Path) -> list[Path]:
    """The complete checkpoints in a folder, oldest first."""
    return sorted(path.parent for path in checkpoints.glob(f"step-*/{MANIFEST}"))


def write_tree(tree: Any, path: Path) -> None:
    """Writes nested mappings, lists, numbers and tensors as ``path.json`` and ``path.safetensors``.

    Raises:
        CheckpointError: something else is among them; it is named.
    """
    tensors: dict[str, Tensor] = {}
    document = _encode(tree, tensors, path.name)
    path.with_suffix(".json").write_text(json.dumps(document, indent=1))
    if tensors:
        save_file(tensors, path.with_suffix(".safetensors"))


def read_tree(path: Path) -> Any:
    """The reverse of `write_tree`."""
    tensors_path = path.with_suffix(".safetensors")
    tensors = load_file(tensors_path) if tensors_path.is_file() else {}
    return _decode(json.loads(path.with_suffix(".json").read_text()), tensors)


def write_manifest(folder: Path) -> None:
    """Lists every file of a folder with its size and SHA-256."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1))


def verify(folder: Path) -> None:
    """Compares a checkpoint's files with its manifest.

    Raises:
        CheckpointError: a file is missing or differs; it is named.
    """
    for name, entry in json.loads((folder / MANIFEST).read_text())["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, which the checkpoint's manifest lists")
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{path} is damaged: it differs from the checkpoint's manifest")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
