"""A stream's shards, read from any row on, and the readers that share them out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, final

import numpy as np

from scalekit.data.encoders.base import refused, tried
from scalekit.data.packing.bins import best_fit
from scalekit.data.sampling.stream_order import ShardCursor, StreamOrder
from scalekit.data.sources.data_part import Skipped
from scalekit.data.sources.provenance import is_of_datasets
from scalekit.errors import RowError, StreamError
from scalekit.objectives.counts import IGNORED

_AT_ONCE = 100

Row = dict[str, Any]
Encode = Callable[[list[Any]], list[Any]]


class Shards(ABC):
    """A stream in parts that are read independently of one another.

    Attributes:
        count: of the parts.
        whole: why there is but one, where that is not for want of files; None otherwise.
        splits: whether the stream would split itself over the workers of a torch DataLoader that read it.
        jumps: whether it gives the same rows each time, so that it can be resumed.
    """

    count: int = 1
    whole: str | None = None
    splits: bool = False
    jumps: bool = True

    @abstractmethod
    def read(self, shard: int, start: int = 0) -> Iterator[Any]:
        """The rows of a shard, the first `start` left out."""

    def name(self, shard: int, row: int) -> str:
        """A row, in words."""
        return f"row {row} of the stream" if self.count == 1 else f"row {row} of the stream's shard {shard}"


def shards(rows: Any) -> Shards:
    """Opens a stream.

    Args:
        rows: a `datasets.IterableDataset`, a torch `IterableDataset`, or anything else that gives its rows again each time
            that it is iterated. Every rank must be given all of them.

    Raises:
        StreamError: it is split over ranks already, gives no rows but tables, or can be read once only.
    """
    return HuggingFaceShards(rows) if is_of_datasets(rows, "IterableDataset") else OneShard(rows)


@final
class HuggingFaceShards(Shards):
    """A `datasets.IterableDataset`: by its own shards, unless it counts rows over all of them."""

    def __init__(self, rows: Any) -> None:
        if getattr(rows, "_distributed", None) is not None:
            raise StreamError(
                "the stream has been split over ranks already, by split_dataset_by_node: pass it whole, ScaleKit splits it"
            )
        self._rows = rows
        # Each shard would take, or skip, a part of the number: other rows than those meant, and not as many.
        counts = {"TakeExamplesIterable", "SkipExamplesIterable"} & set(_kinds(rows.state_dict()))
        if counts and rows.num_shards > 1:
            self.whole = "take() and skip() count the rows of all shards, which are therefore read as one"
        self.count = 1 if counts else int(rows.num_shards)

    def read(self, shard: int, start: int = 0) -> Iterator[Any]:
        # A copy of its own even of the only shard: two passes over one stream would count in the same state.
        rows = self._rows.shard(num_shards=self.count, index=shard)
        rows = rows.skip(start) if start else rows
        # By batches: several times as fast, and the only way on which the data set does not split itself over the workers
        # of a torch DataLoader. Rows of unknown columns need not have the same ones.
        for batch in rows.iter(batch_size=_AT_ONCE if rows.features else 1):
            if not isinstance(batch, Mapping):
                raise StreamError(
                    f"the stream gives its rows as {type(batch).__name__}: set another format, as in stream.with_format(None)"
                )
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def _kinds(state: Any) -> Iterator[str]:
    """The steps that a Hugging Face stream consists of, by the types in its state."""
    if isinstance(state, Mapping):
        if isinstance(state.get("type"), str):
            yield state["type"]
        state = state.values()
    elif not isinstance(state, list):
        return
    for each in state:
        yield from _kinds(each)


@final
class OneShard(Shards):
    """Any other iterable."""

    splits = True
    jumps = False

    def __init__(self, rows: Iterable[Any]) -> None:
        if isinstance(rows, Iterator):
            raise StreamError(
                f"a stream of type {type(rows).__name__} can be read once only: give one that starts again each time it is "
                "iterated, such as datasets.IterableDataset.from_generator(function)"
            )
        self._rows = rows

    def read(self, shard: int, start: int = 0) -> Iterator[Any]:
        return islice(iter(self._rows), start, None)


@dataclass(frozen=True)
class Read:
    """A row as it was read, and where."""

    shard: int
    number: int
    row: Any


@final
class Encoding:
    """Encodes rows as they are read, and refuses those that cannot be used or leaves them out.

    Args:
        encode: given rows, gives as many; of one that cannot be used it raises a RowError when it is given that one alone.
        name: a row in words, by its shard and number.
        skip: whether rows are left out and listed in `skipped`.
        capacity: tokens that an encoded row may have at most; None for any rows.
    """

    def __init__(
        self, encode: Encode, name: Callable[[int, int], str], skip: bool, capacity: int | None = None
    ) -> None:
        self._encode, self._name, self._skip, self._capacity = encode, name, skip, capacity
        self.skipped: list[Skipped] = []

    def __call__(self, read: Sequence[Read]) -> list[Any]:
        """The rows encoded; None for each that is left out.

        Raises:
            RowError: one that cannot be used; it is named.
        """
        try:
            return self._checked([each.row for each in read]) if read else []
        except Exception:  # one of them is at fault: which, shows one by one
            return [self._alone(each) for each in read]

    def _checked(self, rows: list[Any]) -> list[Any]:
        encoded = list(self._encode(rows))
        if self._capacity is not None:
            for row in encoded:
                _check_length(len(row["input_ids"]), self._capacity)
        return encoded

    def _alone(self, read: Read) -> Any:
        made, problem = tried(self._checked, read.row)
        if problem is None:
            return made
        where = self._name(read.shard, read.number)
        if not self._skip:
            raise refused(where, problem) from None
        self.skipped.append(Skipped(where, str(problem)))
        return None


def _check_length(tokens: int, capacity: int) -> None:
    if tokens < 1:
        raise RowError("it has no tokens")
    if tokens > capacity:
        raise RowError(f"it has {tokens} tokens, and a packed row holds {capacity}: cut it, or raise sequence_length")


def pack_window(documents: Sequence[Row], capacity: int) -> list[Row]:
    """Packs documents into rows of at most `capacity` tokens.

    Args:
        documents: with ``input_ids`` and, unless they are the same, ``labels``; none longer than a row.

    Returns:
        Rows of ``input_ids``, ``labels`` and ``document_lengths``; a document's first label is -100, since a causal model
        would learn it from the document before.
    """
    lengths = np.array([len(document["input_ids"]) for document in documents], np.int64)
    bins = best_fit(lengths, capacity)
    return [_joined([documents[i] for i in bins.documents[a:b].tolist()]) for a, b in pairwise(bins.bounds.tolist())]


def _joined(documents: list[Row]) -> Row:
    lengths = np.array([len(document["input_ids"]) for document in documents], np.int64)
    labels = np.concatenate([np.asarray(each.get("labels", each["input_ids"]), np.int64) for each in documents])
    labels[np.cumsum(lengths) - lengths] = IGNORED
    return {
        "input_ids": np.concatenate([np.asarray(each["input_ids"], np.int64) for each in documents]),
        "labels": labels,
        "document_lengths": lengths,
    }


@final
class ShardReader:
    """Reads some of the shards, one after another.

    It reads a block at a time: `shuffle_rows` rows, or what there still is, which it permutes. A block that is packed is
    encoded first, and its packed rows are permuted.

    Args:
        number: which reader.
        order: of the stream.
        shards: that it reads.
        epoch: from 0.
        place: where it resumes.
        packed: makes packed rows of a block; None gives the rows as they are read.
    """

    def __init__(
        self,
        number: int,
        order: StreamOrder,
        shards: Shards,
        epoch: int,
        place: ShardCursor,
        packed: Callable[[list[Read]], list[Any]] | None = None,
    ) -> None:
        self.number = number
        self._order, self._shards, self._epoch, self._packed = order, shards, epoch, packed
        self._own = order.shards_of(number, epoch)
        self._rows = self._read(place)
        self._next = place._replace(given=0)
        self._block: list[Any] = []
        self._here = place  # of the current block
        if place.given:
            self._turn_to_next_block()
            self._here = place

    @property
    def place(self) -> ShardCursor:
        """How far it has been read: from here, another reader of the same number continues with the rows that come next."""
        return self._here if self._here.given < len(self._block) else self._next

    def take(self, count: int) -> list[Any]:
        """The next rows: so many, or fewer where there are no more."""
        taken: list[Any] = []
        while len(taken) < count:
            given = self._here.given
            part = self._block[given : given + count - len(taken)]
            taken += part
            self._here = self._here._replace(given=given + len(part))
            if not part and not self._turn_to_next_block():
                break
        return taken

    def _turn_to_next_block(self) -> bool:
        """Whether there is one."""
        read = list(islice(self._rows, self._order.shuffle_rows))
        self._here, self._block = self._next, []
        if len(read) < self._order.shuffle_rows:
            self._next = ShardCursor(shard=len(self._own), block=self._here.block + bool(read))
        else:
            shard, last = read[-1]
            self._next = ShardCursor(shard, last.number + 1, self._here.block + 1)
        if not read:
            return False
        rows = [row for _, row in read]
        block: list[Any] = rows if self._packed is None else self._packed(rows)
        order = self._order.block_order(self.number, self._here.block, len(block), self._epoch)
        self._block = [block[i] for i in order.tolist()]
        return True

    def _read(self, place: ShardCursor) -> Iterator[tuple[int, Read]]:
        start = place.row
        for index in range(place.shard, len(self._own)):
            shard = self._own[index]
            for number, row in enumerate(self._shards.read(shard, start), start=start):
                yield index, Read(shard, number, row)
            start = 0
