"""How long rows are before they are packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalekit.data.preprocessing import Prepared
from scalekit.data.sampling.permutation import shuffled

_LOOKED_AT = 4096
_USUAL_MICRO_BATCH = 8


@dataclass(frozen=True)
class Lengths:
    """How long the rows are before they are packed.

    Attributes:
        tokens: of each row, shape [rows].
        cut_rows, lost_tokens: by `sequence_length`.
    """

    tokens: NDArray[np.int64]
    cut_rows: int
    lost_tokens: int

    @property
    def total(self) -> int:
        """Tokens of all rows."""
        return int(self.tokens.sum())


def lengths_of(parts: Sequence[Prepared]) -> Lengths | None:
    """Of the rows of all parts; None where no row has one."""
    lengths = np.concatenate([each.lengths for each in parts]) if parts else np.zeros(0, np.int64)
    if not len(lengths):
        return None
    return Lengths(lengths, sum(each.cut for each in parts), sum(each.lost_tokens for each in parts))


def padding_share(lengths: NDArray[np.int64], seed: int) -> float:
    """Of padding in micro-batches of the usual size, were the rows not packed."""
    count = min(len(lengths), _LOOKED_AT) // _USUAL_MICRO_BATCH * _USUAL_MICRO_BATCH
    if not count:
        return 0.0
    drawn = lengths[shuffled(np.arange(count), len(lengths), seed, 0)].reshape(-1, _USUAL_MICRO_BATCH)
    return float(1 - drawn.sum() / (drawn.max(axis=1).sum() * _USUAL_MICRO_BATCH))
