"""A case of the corpus: a model, data as somebody keeps them, and the batch that bare transformers would train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

FILES = Path(__file__).parent / "files"
VOCABULARY = 80


@dataclass(frozen=True)
class Case:
    """What is trained, and what its first loss must be.

    Attributes:
        build: makes the model, after a seed.
        data: for `fit`; makes what it needs in a folder.
        batch: what the model is given by bare transformers; its loss is the expected one.
        loss: of the model's output and the batch, where that is not the model's own.
        settings: others of `fit`.
        refused: what is said where the case cannot be trained.
        saved: saves the model in a folder, which `fit` is given then.
    """

    build: Callable[[], nn.Module]
    data: Callable[[Path], Any]
    batch: Callable[[], dict[str, Any]] = dict
    loss: Callable[[nn.Module, dict[str, Any]], Any] = lambda model, batch: model(**batch).loss
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    saved: Callable[[nn.Module, Path], Any] | None = None

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build()

    @property
    def rows(self) -> int:
        return len(self.batch()["labels"] if "labels" in self.batch() else self.batch()["input_ids"])

    def expected(self) -> float:
        """The loss of the whole batch."""
        with torch.no_grad():
            return float(self.loss(self.model().eval(), self.batch()))

    def given(self, folder: Path) -> Any:
        """The model as `fit` is given it."""
        if self.saved is None:
            return self.build
        place = folder / "model"
        if not place.exists():
            self.saved(self.model(), place)
        return str(place)


def padded(rows: list[list[int]], labels: list[list[int]] | None = None, pad: int = 0) -> dict[str, torch.Tensor]:
    """Rows of tokens as a batch; labels are the tokens by default, -100 on padding."""
    longest = max(map(len, rows))
    fill = lambda row, value: [*row, *[value] * (longest - len(row))]  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(row, pad) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row), 0) for row in rows]),
        "labels": torch.tensor([fill(row, -100) for row in (rows if labels is None else labels)]),
    }
