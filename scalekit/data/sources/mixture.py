"""Several data sets in proportion: which row of which part stands at a place of an epoch, without a list of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from scalekit.data.sampling.permutation import shuffled
from scalekit.errors import ColumnError, ConfigError, EmptyDataError


@dataclass(frozen=True)
class Mixture:
    """Data that is mixed of several.

    Args:
        parts: pairs of data, as `scalekit.fit` takes it, and its weight, above 0: a part of weight 0.6 beside one of 0.2 gives
            three rows of four.

    Raises:
        ConfigError: no parts, or a weight that is none.
    """

    parts: Sequence[tuple[Any, float]]

    def __post_init__(self) -> None:
        if not all(isinstance(part, (tuple, list)) and len(part) == 2 for part in self.parts):
            raise ConfigError("a mixture is made of pairs: Mixture([(data, weight), ...])")
        object.__setattr__(self, "parts", tuple((data, weight) for data, weight in self.parts))
        check_weights([weight for _, weight in self.parts])


def check_weights(weights: Sequence[Any]) -> None:
    """Refuses what cannot be a mixture's weights.

    Raises:
        ConfigError: none at all, or one that is no number above 0.
    """
    if not weights:
        raise ConfigError("a mixture has no parts: give it at least one")
    for weight in weights:
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not (number and 0 < weight < math.inf):
            raise ConfigError(f"weight {weight!r} of a mixture's part must be a number above 0")


@final
class Mixed(Dataset[Any]):
    """Rows of several parts, map-style.

    An epoch has N rows, and part j gives n_j of them by its weight. They are the places e * n_j onwards, in epoch e, of an
    endless run through the part, whose every pass is a permutation of its own; so each row of a part comes once before any
    comes twice, over epochs too. Parts stand one after the other here: the job's order shuffles the places.

    Args:
        parts: map-style rows, each with a length.
        weights: one above 0 a part; only their proportions count. A part gets at least one row where N allows.
        seed: of the permutations.
        length: N; the parts' lengths together by default.

    Raises:
        ConfigError: weights or a length that cannot be.
        EmptyDataError: a part without rows.
        ColumnError: parts of different columns.
    """

    def __init__(self, parts: Sequence[Any], weights: Sequence[float], seed: int, length: int | None = None) -> None:
        check_weights(weights)
        if len(parts) != len(weights):
            raise ConfigError(f"a mixture of {len(parts)} parts and {len(weights)} weights: give each part one")
        if length is not None and length < 1:
            raise ConfigError(f"length={length} is no number of rows: an epoch has at least 1")
        self.parts, self.weights, self.seed = tuple(parts), tuple(weights), seed
        self._lengths = [len(part) for part in parts]
        if 0 in self._lengths:
            raise EmptyDataError(f"part {self._lengths.index(0)} of the mixture has no rows")
        _check_columns(self.parts)
        self._epoch = 0
        self._length = sum(self._lengths) if length is None else length
        self._counts = _counts(self.weights, self._length)
        self._ends = np.array(list(accumulate(self._counts)), np.int64)
        self._seeds = [
            int(np.random.SeedSequence([seed, j]).generate_state(1, np.uint64)[0]) for j in range(len(parts))
        ]

    @property
    def column_names(self) -> list[str]:
        """The columns of the parts, where they have names."""
        return list(self.parts[0].column_names)

    def __len__(self) -> int:
        return self._length

    def at_epoch(self, epoch: int) -> Mixed:
        """The rows of another epoch, from 0."""
        other = Mixed(self.parts, self.weights, self.seed, self._length)
        other._epoch = epoch
        return other

    def locate(self, i: int) -> tuple[int, int]:
        """Which part a place's row is from, and which row of it."""
        parts, rows = self._located([i])
        return int(parts[0]), int(rows[0])

    def __getitem__(self, i: int) -> Any:
        part, row = self.locate(i)
        return self.parts[part][row]

    def __getitems__(self, places: Sequence[int]) -> list[Any]:
        """A micro-batch at once, which a `DataLoader` asks for: its places are reckoned together."""
        parts, rows = self._located(places)
        return [self.parts[part][row] for part, row in zip(parts.tolist(), rows.tolist(), strict=True)]

    def _located(self, places: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Parts and their rows, shape [places] each."""
        for place in places:
            if not -self._length <= place < self._length:
                raise IndexError(f"there is no place {place}: the epoch has {self._length} rows")
        within = np.array(places, np.int64) % self._length
        parts = np.searchsorted(self._ends, within, side="right")
        rows = np.empty_like(within)
        for part in np.unique(parts).tolist():
            here = np.flatnonzero(parts == part)
            count, length = self._counts[part], self._lengths[part]
            passes, draws = np.divmod(self._epoch * count + within[here] - (self._ends[part] - count), length)
            for one_pass in np.unique(passes).tolist():
                drawn = passes == one_pass
                rows[here[drawn]] = shuffled(draws[drawn], length, self._seeds[part], one_pass)
        return parts, rows


def _counts(weights: Sequence[float], length: int) -> list[int]:
    """Rows of each part in an epoch: the largest remainders get what rounding down leaves, and no part goes empty."""
    total = sum(Fraction(weight) for weight in weights)
    exact = [length * Fraction(weight) / total for weight in weights]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda j: counts[j] - exact[j])
    for j in by_remainder[: length - sum(counts)]:
        counts[j] += 1
    while 0 in counts and max(counts) > 1:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts


def _check_columns(parts: Sequence[Any]) -> None:
    columns = [sorted(part.column_names) for part in parts if hasattr(part, "column_names")]
    for other in columns[1:]:
        if other != columns[0]:
            raise ColumnError(
                f"the parts of the mixture have different columns: {', '.join(columns[0])} and {', '.join(other)}. Give all "
                "of them the same"
            )
