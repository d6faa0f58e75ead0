"""A part of a source: its rows, what they are called, and what was left out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scalekit.data.sources import provenance


def is_stream(rows: Any) -> bool:
    """Whether rows have no places to pick them from."""
    from torch.utils.data import IterableDataset

    return isinstance(rows, IterableDataset) or provenance.is_of_datasets(rows, "IterableDataset")


@dataclass(frozen=True)
class Skipped:
    """A row that was left out.

    Attributes:
        where: its file and line.
        why: what is wrong with it.
    """

    where: str
    why: str


@dataclass(frozen=True)
class DataPart:
    """Rows of one kind.

    Attributes:
        rows: a `datasets.Dataset`, a map-style torch `Dataset` or a sequence; or a stream: a `datasets.IterableDataset` or a
            torch `IterableDataset`.
        weight: its share of a mixture, relative to the others'; None where there is no mixture, and of the validation set.
        name: for messages and metrics.
        name_row: where row i came from, such as ``"dialogues.jsonl, row 12 (line 13)"``; of a stream, in the order of its
            files.
    """

    rows: Any
    weight: float | None = None
    name: str = "data"
    name_row: Callable[[int], str] = provenance.in_list

    @property
    def is_stream(self) -> bool:
        """Whether the rows can only be read one after the other."""
        return is_stream(self.rows)
