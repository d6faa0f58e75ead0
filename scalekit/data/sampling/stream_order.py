"""Which rows of a stream make a global batch, and which rank runs which of its micro-batches: a pure function of numbers.

A stream has no places to pick rows from: its shards are read from their beginnings, side by side. Each of a fixed number of
readers reads some of the shards one after another, and gives every global batch the same number of rows. How many readers there
are follows from the shards and the global batch size alone, so that a global batch holds the same rows on any ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from scalekit.data.sampling.permutation import shuffled
from scalekit.errors import BatchSizeError, ConfigError, EmptyDataError

T = TypeVar("T")

_NONE: Any = object()


class ShardCursor(NamedTuple):
    """How far a reader has been read.

    Attributes:
        shard: where the current block starts, counted within the reader's own shards; their number, if they are read.
        row: of that shard.
        block: the block's number in the reader.
        given: rows of the block that have been given, in the block's own order.
    """

    shard: int = 0
    row: int = 0
    block: int = 0
    given: int = 0


@dataclass(frozen=True)
class StreamOrder:
    """The order of a stream's samples.

    Reader j reads the shards j, j + count, j + 2 * count, ... of an epoch's permutation of them, and shuffles its rows in
    blocks. Global batch k is the k-th `per_reader` rows of every reader; one that has run out gives fewer, and an epoch ends
    when all have. Micro-batch i holds rows of the readers j with j = i modulo `classes`, and runs on rank i modulo
    `world_size`.

    Args:
        shards: of the stream.
        global_batch_size: samples an optimizer step, over all ranks.
        micro_batch_size: samples that one rank runs at once.
        world_size: ranks.
        seed: of the permutations, together with the epoch.
        shuffle: whether there are any.
        shuffle_rows: rows of a block; so many are in memory for each reader that is read.
        most_readers: there may be. A reader keeps a file open, and in memory what is read of it at once, which is a whole row
            group of a Parquet file; more ranks than readers read the same rows.
    """

    shards: int
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    seed: int = 0
    shuffle: bool = True
    shuffle_rows: int = 1000
    most_readers: int = 64

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise EmptyDataError("the stream has no shards")
        for name in ("shuffle_rows", "most_readers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        round_size = self.micro_batch_size * self.world_size
        if self.global_batch_size < 1 or self.global_batch_size % round_size:
            raise BatchSizeError.unsplittable(self.global_batch_size, self.micro_batch_size, self.world_size)

    @cached_property
    def count(self) -> int:
        """Readers: the most that divide shards and global batch."""
        both = math.gcd(self.shards, self.global_batch_size)
        return next(count for count in range(min(both, self.most_readers), 0, -1) if both % count == 0)

    @property
    def per_reader(self) -> int:
        """Rows that a reader gives to a global batch."""
        return self.global_batch_size // self.count

    @property
    def accumulation(self) -> int:
        """Micro-batches an optimizer step and rank."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    @property
    def classes(self) -> int:
        """Into how many parts a global batch falls whose micro-batches share no reader."""
        return math.gcd(self.count, self.global_batch_size // self.micro_batch_size)

    def read_by(self, rank: int, worker: int = 0, workers: int = 1) -> range:
        """The readers whose rows can be in a rank's micro-batches w, w + workers, w + 2 * workers, ...

        A worker among `workers` is as a rank among `workers * world_size`.
        """
        apart = math.gcd(self.world_size * workers, self.classes)
        return range((worker * self.world_size + rank) % apart, self.count, apart)

    def copies(self, workers: int = 1) -> int:
        """How many processes read a row."""
        return self.world_size * workers // math.gcd(self.world_size * workers, self.classes)

    def shards_of(self, reader: int, epoch: int) -> list[int]:
        """The shards that a reader reads, in order."""
        places = np.arange(reader, self.shards, self.count)
        own = shuffled(places, self.shards, self.seed, epoch) if self.shuffle else places
        return [int(shard) for shard in own]

    def block_order(self, reader: int, block: int, length: int, epoch: int) -> NDArray[np.int64]:
        """The order of a block's rows, shape [length]."""
        places = np.arange(length)
        if not self.shuffle or not length:
            return places
        seed = np.random.SeedSequence([self.seed, reader, block]).generate_state(1, np.uint64)
        return shuffled(places, length, int(seed[0]), epoch)

    def deal(self, rows: Mapping[int, Sequence[T]], indices: Iterable[int]) -> list[list[T]]:
        """Some micro-batches of a global batch.

        Args:
            rows: what each reader gives to it; of the readers that the micro-batches do not need, nothing.
            indices: of the micro-batches, over all ranks.
        """
        dealt: dict[int, list[T]] = {}
        parts = []
        for index in indices:
            start, own = divmod(index, self.classes)
            if own not in dealt:
                dealing = zip_longest(
                    *(rows[reader] for reader in range(own, self.count, self.classes)), fillvalue=_NONE
                )
                dealt[own] = [row for round_ in dealing for row in round_ if row is not _NONE]
            parts.append(dealt[own][start * self.micro_batch_size : (start + 1) * self.micro_batch_size])
        return parts
