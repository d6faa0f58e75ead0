"""Which rows make a global batch, and which rank runs which of its micro-batches: a pure function of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalekit.data.sampling.permutation import shuffled
from scalekit.errors import BatchSizeError, EmptyDataError


@dataclass(frozen=True)
class MicroBatchIndex:
    """One micro-batch of one rank.

    Attributes:
        rows: indices into the data; for a filler, rows that stand in.
        step: the optimizer step, from 1, over all epochs.
        index: the micro-batch's place in its global batch, over all ranks.
        samples: the rows of the global batch, over all ranks.
        filler: whether this rank only keeps the others company, because the global batch has no rows left for it.
        first, last: whether it opens or closes this rank's part of the global batch.
    """

    rows: tuple[int, ...]
    step: int
    index: int
    samples: int
    filler: bool
    first: bool
    last: bool


@dataclass(frozen=True)
class BatchOrder:
    """The order of a job's samples.

    Global batch k of an epoch is rows k * global_batch_size onwards of the epoch's permutation; an epoch's last one may be
    shorter, and no row is ever repeated to fill it. Its micro-batches are dealt to the ranks one by one, so that micro-batch i
    holds the same rows whatever the world size.

    Args:
        length: rows in the data.
        global_batch_size: samples an optimizer step, over all ranks.
        micro_batch_size: samples that one rank runs at once.
        world_size: ranks.
        seed: of the permutation, together with the epoch.
        shuffle: whether there is a permutation at all.
        limit: global batches of an epoch's order that are run, where these are fewer than all.
    """

    length: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    seed: int = 0
    shuffle: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise EmptyDataError("the data has no rows")
        round_size = self.micro_batch_size * self.world_size
        if self.global_batch_size < 1 or self.global_batch_size % round_size:
            raise BatchSizeError.unsplittable(self.global_batch_size, self.micro_batch_size, self.world_size)

    @property
    def epoch_samples(self) -> int:
        """Rows that an epoch runs."""
        return self.length if self.limit is None else min(self.length, self.limit * self.global_batch_size)

    @property
    def accumulation(self) -> int:
        """Micro-batches an optimizer step and rank."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch, the shorter last one included."""
        return -(-self.epoch_samples // self.global_batch_size)

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches an epoch and rank, fillers included."""
        last = self.epoch_samples - (self.steps_per_epoch - 1) * self.global_batch_size
        return (self.steps_per_epoch - 1) * self.accumulation + self._rounds(last)

    def micro_batches(self, rank: int, position: int) -> Iterator[MicroBatchIndex]:
        """A rank's micro-batches from a position (samples used so far) to the end of that epoch."""
        epoch, done = divmod(position, self.epoch_samples)
        for k in range(done // self.global_batch_size, self.steps_per_epoch):
            batch = self._batch(epoch, k)
            yield from self._deal(batch, rank, step=epoch * self.steps_per_epoch + k + 1)

    def _batch(self, epoch: int, k: int) -> NDArray[np.int64]:
        start = k * self.global_batch_size
        places = np.arange(start, min(start + self.global_batch_size, self.epoch_samples))
        return shuffled(places, self.length, self.seed, epoch) if self.shuffle else places

    def _deal(self, batch: NDArray[np.int64], rank: int, step: int) -> Iterator[MicroBatchIndex]:
        rounds = self._rounds(len(batch))
        for i in range(rounds):
            index = i * self.world_size + rank
            rows = batch[index * self.micro_batch_size : (index + 1) * self.micro_batch_size]
            filler = len(rows) == 0
            yield MicroBatchIndex(
                rows=tuple(int(row) for row in (batch[: self.micro_batch_size] if filler else rows)),
                step=step,
                index=index,
                samples=len(batch),
                filler=filler,
                first=i == 0,
                last=i == rounds - 1,
            )

    def _rounds(self, samples: int) -> int:
        return -(-samples // (self.micro_batch_size * self.world_size))
