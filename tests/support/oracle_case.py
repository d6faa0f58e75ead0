"""The job of the oracle: a run that is never interrupted, against which all others are held."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import parity_cases as parity
from tests.support.legs import used

STEPS = 20
GLOBAL_BATCH = 12
"""Which 1, 2, 3 and 4 ranks can share. An epoch's last global batch has 2 rows of 50, less than some have ranks."""

STEPS_PER_EPOCH = 5


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parity.causal_rows()
    return found[:50]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """What a run did, step by step."""
    kept = ("step", "loss", "grad_norm", "learning_rate", "samples", "items")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: record[name] for name in kept} for record in map(json.loads, lines)]


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The weights, and their average."""
    last = folder / "checkpoints" / f"step-{STEPS:08d}"
    found = {kind: load_file(last / kind / "model.safetensors") for kind in ("model", "average")}
    return {f"{kind}/{name}": tensor for kind, tensors in found.items() for name, tensor in tensors.items()}


def same(folder: Path, other: Path, tolerance: float) -> None:
    """Two runs did the same at every step, and came to the same.

    Raises:
        AssertionError: they did not.
    """
    found, expected = metrics(folder), metrics(other)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert used(folder) == used(other)
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, rel=tolerance, abs=0)
    for name, value in final(other).items():
        torch.testing.assert_close(final(folder)[name], value, rtol=tolerance, atol=tolerance)
