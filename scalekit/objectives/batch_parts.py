"""A few rows as one batch, and as batches of one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scalekit.objectives.counts import ItemCount, candidates, tensors_of

_MOST_ROWS = 4


@dataclass(frozen=True)
class Parts:
    """Rows as one batch, and one by one.

    Attributes:
        whole: the batch.
        each: batches of one row; slices of the whole one where a collator draws, since it would not draw the same again.
        samples: rows of each part; one by default.
    """

    whole: Any
    each: list[Any]
    samples: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Any], collate: Callable[[list[Any]], Any], config: Any, likely: ItemCount) -> Parts:
        """Of the rows, some that differ in what could be counted."""
        alone = [collate([row]) for row in rows]
        counts = candidates(alone[0], config, likely)
        known: dict[tuple[float, ...], int] = {}
        for place, batch in enumerate(alone):
            known.setdefault(tuple(count.of(batch, 1) for count in counts), place)
        places = list(known.values())
        spread = {places[round(i * (len(places) - 1) / max(_MOST_ROWS - 1, 1))] for i in range(_MOST_ROWS)}
        chosen = sorted([*spread, *(place for place in range(len(rows)) if place not in spread)][:_MOST_ROWS])
        whole, again = (collate([rows[place] for place in chosen]) for _ in range(2))
        if _is_same(whole, again):
            return cls(whole, [alone[place] for place in chosen])
        return cls(whole, [_row(whole, number, len(chosen)) for number in range(len(chosen))])

    @classmethod
    def in_two(cls, rows: Sequence[Any], collate: Callable[[list[Any]], Any]) -> Parts:
        """Of all rows, in two parts of different lengths, as far as two rows or more are needed for a loss."""
        first = max(2, len(rows) // 4) if len(rows) > 3 else 1
        each = [collate(list(part)) for part in (rows[:first], rows[first:])]
        return cls(collate(list(rows)), each, (first, len(rows) - first))


def _is_same(one: Any, other: Any) -> bool:
    pairs = zip(tensors_of(one), tensors_of(other), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for (_, a), (_, b) in pairs)


def _row(batch: Any, number: int, samples: int) -> Any:
    """One row of a batch, as a batch."""

    def part(value: Any) -> Any:
        return value[number : number + 1] if isinstance(value, Tensor) and value.shape[:1] == (samples,) else value

    if isinstance(batch, Mapping):
        return {name: part(value) for name, value in batch.items()}
    return tuple(map(part, batch)) if isinstance(batch, (tuple, list)) else part(batch)
