"""Which documents share a row: best-fit decreasing."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalekit.errors import ConfigError, EmptyDataError, RowError

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """Which documents share a row; row r holds ``documents[bounds[r] : bounds[r + 1]]``.

    Attributes:
        documents: their numbers, row by row, ascending within a row, shape [documents].
        bounds: shape [rows + 1].
    """

    documents: Numbers
    bounds: Numbers

    def __len__(self) -> int:
        return len(self.bounds) - 1


def best_fit(lengths: Numbers, capacity: int) -> Bins:
    """Deals documents to rows by best-fit decreasing.

    Of equally long documents the one of the lower number goes first; of rows with equally much space, it takes the one that
    has had it longest. Rows stand in the order in which they were opened.

    Args:
        lengths: of the documents in tokens, shape [documents].
        capacity: of a row, in tokens.

    Raises:
        ConfigError: a document is longer than a row.
        RowError: a document is empty.
    """
    _check_lengths(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    ends = np.flatnonzero(np.diff(lengths[order], append=0)) + 1
    rows = np.empty(len(lengths), np.int64)
    open_rows = _OpenRows(capacity)
    start = 0
    for end in ends.tolist():
        length = int(lengths[order[start]])
        while start < end:
            # A row stays the tightest for as long as it holds another document of this length, so it takes all that it can.
            space = open_rows.tightest(length)
            each = space // length
            taken = open_rows.take(space, -(-(end - start) // each))
            number = min(len(taken) * each, end - start)
            rows[order[start : start + number]] = np.repeat(taken, each)[:number]
            full, rest = divmod(number, each)
            open_rows.put(space - each * length, taken[:full])
            open_rows.put(space - rest * length, taken[full:])
            start += number
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows))]).astype(np.int64)
    return Bins(np.argsort(rows, kind="stable"), bounds)


def fill(lengths: Numbers, capacity: int) -> float:
    """The share of the rows' places that documents fill once they are packed."""
    if not len(lengths):
        raise EmptyDataError("there are no documents to pack")
    return int(lengths.sum()) / (len(best_fit(lengths, capacity)) * capacity)


def _check_lengths(lengths: Numbers, capacity: int) -> None:
    if (lengths > capacity).any():
        document = int(np.argmax(lengths > capacity))
        raise ConfigError(
            f"document {document} has {lengths[document]} tokens, and a row holds {capacity}: cut or split it, or raise "
            "sequence_length"
        )
    if (lengths < 1).any():
        raise RowError(f"document {int(np.argmax(lengths < 1))} has no tokens: drop it")


class _OpenRows:
    """Rows by how much space they have left, in groups, oldest first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._groups: dict[int, deque[Numbers]] = defaultdict(deque)
        self._spaces = 0  # bit s is set where rows have a space of s: finds the least without a search
        self._opened = 0

    def tightest(self, length: int) -> int:
        """The least space of a row that holds so much: a new row's, where none does."""
        above = self._spaces >> length
        return length + (above & -above).bit_length() - 1 if above else self._capacity

    def take(self, space: int, number: int) -> Numbers:
        """At least one row of this space, and at most so many."""
        if space == self._capacity:
            self._opened += number
            return np.arange(self._opened - number, self._opened)
        groups = self._groups[space]
        rows = groups.popleft()
        if len(rows) > number:
            groups.appendleft(rows[number:])
        if not groups:
            self._spaces ^= 1 << space
        return rows[:number]

    def put(self, space: int, rows: Numbers) -> None:
        if space and len(rows):
            self._groups[space].append(rows)
            self._spaces |= 1 << space
