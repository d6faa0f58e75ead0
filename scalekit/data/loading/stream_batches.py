"""What one worker of a stream's loader does: it reads its readers' rows, and makes micro-batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, final

from torch.utils.data import IterableDataset, get_worker_info

from scalekit.data.encoders.base import checksum
from scalekit.data.loading.stream_shards import Encode, Encoding, Read, ShardReader, Shards, pack_window
from scalekit.data.sampling.stream_order import ShardCursor, StreamOrder
from scalekit.data.sources.data_part import Skipped
from scalekit.errors import EmptyDataError, ScaleKitError

_MARK_BITS = 0xFFFFFF  # the ranks' marks are squared and summed


@dataclass(frozen=True)
class State:
    """What has been consumed.

    Attributes:
        epoch: from 0.
        batches: global batches of the epoch, with those that had no row to use.
        step: optimizer steps over all epochs.
        samples: rows used over all epochs and ranks.
        readers: how far those that this rank reads have been read; nothing at an epoch's start.
    """

    epoch: int = 0
    batches: int = 0
    step: int = 0
    samples: int = 0
    readers: Mapping[int, ShardCursor] = field(default_factory=dict)

    def next_epoch(self) -> State:
        return State(self.epoch + 1, 0, self.step, self.samples)


@dataclass(frozen=True)
class ReadMicroBatch:
    """What a reading process knows of a micro-batch.

    Attributes:
        places: of its rows in their global batch.
        read: how many rows it is made of, with those that are left out.
        readers: how far the process has read its own once the global batch is through.
        skipped: rows that were left out since the micro-batch before.
        error: that ended the reading.
    """

    places: tuple[int, ...] = ()
    read: int = 0
    readers: Mapping[int, ShardCursor] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    error: ScaleKitError | None = None


@final
@dataclass(frozen=True)
class Rows:
    """How a rank's rows are read and batched; for the arguments, see `StreamLoader`."""

    shards: Shards
    encode: Encode
    collate: Callable[[list[Any]], Any]
    order: StreamOrder
    rank: int
    skip: bool
    capacity: int | None
    draw: Callable[[Any, int], Any] | None

    def batch(self, rows: list[Any], epoch: int) -> Any:
        return self.collate(rows if self.draw is None else [self.draw(row, epoch) for row in rows])

    def readers(self, worker: int = 0, workers: int = 1) -> range:
        return self.order.read_by(self.rank, worker, workers)

    def encoding(self, skip: bool) -> Encoding:
        return Encoding(self.encode, self.shards.name, skip, self.capacity)

    def packed(self, encoding: Encoding) -> Callable[[list[Read]], list[Any]] | None:
        """What a reader makes of a block where rows are packed."""
        capacity = self.capacity
        if capacity is None:
            return None
        return lambda read: pack_window([row for row in encoding(read) if row is not None], capacity)

    def first(self) -> Any:
        """A batch of the first row that can be used, for a rank that has had none."""
        encoding = self.encoding(skip=True)
        make = self.packed(encoding) or encoding
        for shard in range(self.shards.count):
            for number, row in enumerate(self.shards.read(shard)):
                made = [each for each in make([Read(shard, number, row)]) if each is not None]
                if made:
                    return self.batch(made, epoch=0)
        raise EmptyDataError("the stream has no rows")

    def mark(self) -> int | None:
        """What tells the stream from others: a checksum of its first row; None where that is not the same each time."""
        first, again = (checksum(list(islice(self.shards.read(0), 1))) & _MARK_BITS for _ in range(2))
        return first if first == again else None


@final
class MicroBatchReader(IterableDataset[tuple[Any, ReadMicroBatch]]):
    """A rank's micro-batches from a state on, without an end: past the stream's end they are empty.

    Read by several workers, each makes its own of them, in the order in which torch asks for them.
    """

    def __init__(self, rows: Rows, state: State) -> None:
        self._rows, self._state = rows, state

    def __iter__(self) -> Iterator[tuple[Any, ReadMicroBatch]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        try:
            yield from self._read(worker, workers)
        except ScaleKitError as error:  # an error that torch brings over carries a traceback in its message
            yield None, ReadMicroBatch(error=error)

    def _read(self, worker: int, workers: int) -> Iterator[tuple[Any, ReadMicroBatch]]:
        rows, order, known = self._rows, self._rows.order, self._state.readers
        encoding = rows.encoding(rows.skip)
        packed = rows.packed(encoding)
        readers = [
            ShardReader(number, order, rows.shards, self._state.epoch, known.get(number, ShardCursor()), packed)
            for number in rows.readers(worker, workers)
        ]
        for start in count(0, order.accumulation):
            given = {reader.number: reader.take(order.per_reader) for reader in readers}
            own = [i for i in range(order.accumulation) if (start + i) % workers == worker]
            indices = [i * order.world_size + rows.rank for i in own]
            places = {reader.number: reader.place for reader in readers}
            for index, micro in zip(indices, order.deal(given, indices), strict=True):
                yield self._batch(index, micro, encoding, places)

    def _batch(
        self, index: int, micro: list[Any], encoding: Encoding, readers: Mapping[int, ShardCursor]
    ) -> tuple[Any, ReadMicroBatch]:
        encoded = micro if self._rows.capacity is not None else encoding(micro)
        first = index * self._rows.order.micro_batch_size
        places = tuple(first + i for i, row in enumerate(encoded) if row is not None)
        usable = [row for row in encoded if row is not None]
        skipped = tuple(encoding.skipped)
        encoding.skipped.clear()
        return self._rows.batch(usable, self._state.epoch) if usable else None, ReadMicroBatch(
            places, len(micro), readers, skipped
        )
