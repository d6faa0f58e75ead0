"""The frozen base of an adapter, which no checkpoint holds: by a fingerprint, so that another one under its name shows."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from scalekit.checkpoint.load import state
from scalekit.distributed.shards import TensorShard
from scalekit.errors import CheckpointError

_CHUNK = 1 << 22
_MODULUS = 1 << 64
_STRIDE = 0x9E3779B97F4A7C15 - _MODULUS  # the golden ratio's bits, which spread an element's place over all of 64


def fingerprints(parts: Iterable[TensorShard]) -> dict[str, int]:
    """Of each tensor a number, which those of its parts add up to by `together`: the same however it is sharded.

    Elements count in bfloat16, so that it is the same in any precision.
    """
    found: Counter[str] = Counter()
    for part in parts:
        flat, seed = part.data.detach().reshape(-1), zlib.crc32(part.name.encode())
        for first in range(0, len(flat), _CHUNK):
            found[part.name] += _of(flat[first : first + _CHUNK], part.start + first, seed)
    return {name: number % _MODULUS for name, number in found.items()}


def together(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Those of all ranks as one."""
    found: Counter[str] = Counter()
    for part in parts:
        found.update(part)
    return {name: number % _MODULUS for name, number in found.items()}


def check_base(checkpoint: Path, found: Mapping[str, int]) -> None:
    """Whether a base is the one that a checkpoint's adapter was trained on, in all tensors that both have.

    Args:
        checkpoint: of the adapter.
        found: fingerprints of the base that is there.

    Raises:
        CheckpointError: it is another, under the same name.
    """
    saved = state(checkpoint)["scalekit"].get("base", {})
    changed = next((name for name, number in saved.items() if found.get(name, number) != number), None)
    if changed is not None:
        raise CheckpointError(
            f"{checkpoint} was trained on another base model than the one that is found under its name now: {changed} differs. "
            "Put the old one back, or start again"
        )


def _of(elements: Tensor, start: int, seed: int) -> int:
    """Each element's bits times an odd number of its place's own, added up modulo 2**64."""
    bits = elements.to(torch.bfloat16).view(torch.int16).to(torch.int64)
    places = torch.arange(start, start + len(elements), dtype=torch.int64, device=elements.device)
    return int((bits * ((places * _STRIDE + seed) | 1)).sum())
