"""Folders with weights as people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.corpus.case import Case, padded
from tests.corpus.models import llama
from tests.corpus.texts import LABELS, ROWS, masked_rows


def plain(model: Any, place: Path) -> None:
    model.save_pretrained(place)


def sharded(model: Any, place: Path) -> None:
    model.save_pretrained(place, max_shard_size="4KB")
    assert len(list(place.glob("*.safetensors"))) > 2


def halved(model: Any, place: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(place)


def unnamed(model: Any, place: Path) -> None:
    """Without its class, as older tools write a configuration."""
    model.save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    del config["architectures"]
    (place / "config.json").write_text(json.dumps(config))


def rounded() -> nn.Module:
    """In float32, with the values that bfloat16 keeps."""
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    return model


def folder(saved: Any, build: Any = llama, **others: Any) -> Case:
    return Case(build, masked_rows, lambda: padded(ROWS, LABELS), saved=saved, **others)


CASES: dict[str, Case] = {
    "one file": folder(plain),
    "several files": folder(sharded),
    "an untied head in a file": folder(plain, lambda: llama(tied=False)),
    "weights in bfloat16": folder(halved, rounded),
    "a configuration without its class": folder(unnamed, settings={"task": "causal-lm"}),
    "a configuration without its class or a task": folder(
        unnamed, refused="does not say which class it is: give `task`"
    ),
}
