"""The loader: a rank's micro-batches in order, and beside each what the loss contract needs to know of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from typing import Any, final

from torch.utils.data import DataLoader, Dataset

from scalekit.data.sampling.batch_order import BatchOrder, MicroBatchIndex
from scalekit.distributed.process import exit_on_parent_signal
from scalekit.errors import NoLabelError
from scalekit.objectives.normalization import MicroBatch
from scalekit.utils.randomness import keyed


@final
class Loader:
    """Yields a rank's micro-batches of one epoch, from the position on.

    It collates a global batch's part ahead, so that its items are counted before its first backward pass. What it knows
    of a batch it hands over by `consume`, once a batch and in order; the batches themselves are as the collator made them.
    `waited_seconds` is how long it has waited for rows so far, or read them itself.

    Args:
        rows: map-style data; where it is another one each epoch it has `at_epoch`.
        collate: makes a batch of a list of rows.
        order: which rows, when and where.
        rank: whose part.
        count_items: the items of a batch, given the batch and its rows' number.
        workers: processes that read rows; 0 reads in this one.
        pin_memory: whether batches are put where a GPU copies from without waiting.
        position: samples used so far; advanced by `consume` where `advances`.
        advances: whether a pass over the data moves the position on, as training does.
        draws: whether `collate` may draw random numbers, as one of the user's.
    """

    def __init__(
        self,
        rows: Any,
        collate: Callable[[list[Any]], Any],
        order: BatchOrder,
        rank: int,
        count_items: Callable[[Any, int], float],
        workers: int = 0,
        pin_memory: bool = False,
        position: int = 0,
        advances: bool = True,
        draws: bool = True,
    ) -> None:
        self._draws = draws
        self.order = order
        self.position = position
        self.waited_seconds = 0.0
        self._rows, self._collate, self._rank, self._count_items = rows, collate, rank, count_items
        self._workers, self._pin_memory, self._advances = workers, pin_memory, advances
        self._pending: deque[MicroBatch] = deque()

    def __len__(self) -> int:
        return self.order.micro_batches_per_epoch

    @property
    def micro_batches_done(self) -> int:
        """Micro-batches of this epoch that lie before the position, fillers included."""
        return self.position % self.order.epoch_samples // self.order.global_batch_size * self.order.accumulation

    def __iter__(self) -> Iterator[Any]:
        self._pending.clear()
        rows = self._rows
        epoch = self.position // self.order.epoch_samples if self._advances else 0
        if hasattr(rows, "at_epoch"):
            rows = rows.at_epoch(epoch)
        # As they are needed: an epoch's list of them would outgrow the memory.
        places, ahead = tee(self.order.micro_batches(self._rank, self.position))
        batches = DataLoader(
            _Placed(rows) if self._draws else rows,
            batch_sampler=(list(place.rows) for place in ahead),
            collate_fn=_Collate(self._collate, self.order.seed, epoch) if self._draws else self._collate,
            num_workers=self._workers,
            pin_memory=self._pin_memory,
            worker_init_fn=exit_on_parent_signal,
        )
        part: list[tuple[MicroBatchIndex, Any]] = []
        for place, batch in zip(places, self._timed(batches), strict=True):
            part.append((place, batch))
            if place.last:
                yield from self._release(part)
                part = []

    def _timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        started = time.perf_counter()
        for batch in batches:
            self.waited_seconds += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def next_known(self) -> MicroBatch:
        """What is known of the batch that is run next."""
        return self._pending[0]

    def consume(self) -> MicroBatch:
        """The same, once a batch: the next one comes after it."""
        micro = self._pending.popleft()
        if micro.last and self._advances:
            self.position += micro.samples
        return micro

    def _release(self, part: list[tuple[MicroBatchIndex, Any]]) -> Iterator[Any]:
        items = [self._items(place, batch) for place, batch in part]
        for (place, batch), own in zip(part, items, strict=True):
            micro = MicroBatch(
                items=own,
                local_items=sum(items),
                samples=place.samples,
                is_whole=place.samples == self.order.global_batch_size,
                rows=place.rows,
                seed=self.order.seed,
                step=place.step,
                index=place.index,
                first=place.first,
                last=place.last,
            )
            self._pending.append(micro)
            yield batch

    def _items(self, place: MicroBatchIndex, batch: Any) -> float:
        if place.filler:
            return 0
        items = self._count_items(batch, len(place.rows))
        if items <= 0:
            raise NoLabelError(f"the rows {list(place.rows)} have nothing that the loss counts: all labels are masked")
        return items


class _Batch(list[Any]):
    """Rows, and the places that they were read from."""

    def __init__(self, rows: Iterable[Any], places: Sequence[int]) -> None:
        super().__init__(rows)
        self.places = places


class _Placed(Dataset[Any]):
    """Map-style rows, whose micro-batches know their places."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __getitems__(self, places: list[int]) -> _Batch:
        found = getattr(self._rows, "__getitems__", None)
        return _Batch(found(places) if found else [self._rows[place] for place in places], places)


class _Collate:
    """What makes a batch, with random draws that depend on (seed, epoch, rows) alone, in any process."""

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int, epoch: int) -> None:
        self._collate, self._seed, self._epoch = collate, seed, epoch

    def __call__(self, batch: Any) -> Any:
        """Takes a `_Batch`."""
        with keyed(self._seed, self._epoch, *batch.places):
            return self._collate(list(batch))
