"""Rows that are drawn by weight, as a `WeightedRandomSampler` has it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Weighted(Dataset[Any]):
    """So many draws from map-style rows in each epoch, the same on any ranks: they depend on (seed, epoch) alone.

    Args:
        rows: map-style.
        weights: of the rows, shape [rows]; only their proportions count.
        number: of draws in an epoch.
        replacement: whether a row may be drawn again in the same epoch.
        seed: of the job.
        epoch: from 0.
    """

    def __init__(self, rows: Any, weights: Tensor, number: int, replacement: bool, seed: int, epoch: int = 0) -> None:
        self._rows, self._weights, self._number, self._replacement = rows, weights, number, replacement
        self._seed, self._epoch = seed, epoch

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, place: int) -> Any:
        return self._rows[int(self._drawn[place])]

    def at_epoch(self, epoch: int) -> Weighted:
        """The rows of another epoch, from 0."""
        rows = self._rows.at_epoch(epoch) if hasattr(self._rows, "at_epoch") else self._rows
        return Weighted(rows, self._weights, self._number, self._replacement, self._seed, epoch)

    @cached_property
    def _drawn(self) -> Tensor:
        """Which row stands at each place, shape [number]."""
        key = int(np.random.SeedSequence([self._seed, self._epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        generator = torch.Generator().manual_seed(key)
        return torch.multinomial(self._weights, self._number, self._replacement, generator=generator)
