"""Streams to read in tests, and what a loader needs beside them."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import IterableDataset


def rows_of(pieces: list[range]) -> Iterator[dict[str, int]]:
    for piece in pieces:
        for i in piece:
            yield {"id": i}


def pieces_of(length: int, count: int) -> list[range]:
    """Uneven ones, some of them empty."""
    ends = np.sort(np.random.default_rng(length + count).integers(0, length + 1, count - 1)).tolist()
    return [range(a, b) for a, b in itertools.pairwise([0, *ends, length])]


def stream(length: int, count: int) -> IterableDataset:
    return IterableDataset.from_generator(rows_of, gen_kwargs={"pieces": pieces_of(length, count)})


def as_it_is(rows: list[Any]) -> list[Any]:
    return list(rows)


def count_rows(batch: Any, rows: int) -> float:
    return rows
