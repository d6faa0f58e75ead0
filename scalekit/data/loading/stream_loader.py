"""The loader for streams: a rank's micro-batches in order, exactly once an epoch and the same on any ranks and workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from scalekit.data.loading.stream_batches import MicroBatchReader, ReadMicroBatch, Rows, State
from scalekit.data.loading.stream_shards import Encode, shards
from scalekit.data.loading.stream_states import understood
from scalekit.data.sampling.stream_order import ShardCursor, StreamOrder
from scalekit.data.sources.data_part import Skipped
from scalekit.distributed.process import exit_on_parent_signal
from scalekit.errors import ConfigError, EmptyDataError, NoLabelError, StreamError
from scalekit.objectives.normalization import MicroBatch


@final
class StreamLoader:
    """Yields a rank's micro-batches of one epoch of a stream, from its state on; the next pass is the next epoch.

    Each global batch has `accumulation` micro-batches on every rank. Where a rank has no rows for one, it repeats a batch
    that weighs nothing, and the ranks agree on each global batch, so that they run out together. What is known of a batch is
    handed over by `consume`, once a batch and in order. A row that is left out leaves its place empty: no other row moves.

    Args:
        rows: the stream; see `shards.shards`. Every rank is given all of it.
        encode: makes rows as they are batched of rows as they are read, as many; of one that cannot be used it raises a
            RowError when it is given that one alone.
        collate: makes a batch of a list of encoded rows.
        order: of the stream, which has `shards.shards(rows).count` shards.
        rank: whose part.
        count_items: the items of a batch, given the batch and its rows' number.
        workers: processes that read and encode micro-batches of their own; 0: this one does. Each holds a block of every
            reader that it has. A stream that is not Hugging Face's is read by one at most: it might split itself over them.
        pin_memory: whether batches are put where a GPU copies from without waiting.
        state: of a job that is resumed, on any number of ranks: what `merge` made of all ranks' `state()`.
        on_bad_row: ``"error"`` ends the job at a row that cannot be used, ``"skip"`` leaves it out and lists it.
        capacity: packs the documents of a block, and has the order count packed rows of so many tokens instead. Every
            process then encodes all rows that it reads, not just those that it batches.
        sum_over_ranks: adds up an int64 tensor on the CPU over all ranks; needed where there are several.
        draw: an encoded row as it is batched in an epoch, where something about it is random.

    Attributes:
        order: as given.
        skipped: rows that this rank has left out.
        waited_seconds: how long it has waited for rows so far, or read them itself.

    Raises:
        ConfigError: several ranks and no `sum_over_ranks`, or an order for another stream.
        StreamError: a stream that cannot be used, or cannot be resumed from this state.
    """

    def __init__(
        self,
        rows: Any,
        encode: Encode,
        collate: Callable[[list[Any]], Any],
        order: StreamOrder,
        rank: int,
        count_items: Callable[[Any, int], float],
        workers: int = 0,
        pin_memory: bool = False,
        state: Mapping[str, Any] | None = None,
        on_bad_row: str = "error",
        capacity: int | None = None,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
        draw: Callable[[Any, int], Any] | None = None,
    ) -> None:
        if order.world_size > 1 and sum_over_ranks is None:
            raise ConfigError(f"{order.world_size} ranks end an epoch together only where sum_over_ranks is given")
        self.order = order
        self.waited_seconds = 0.0
        self._shards = shards(rows)
        if self._shards.count != order.shards:
            raise ConfigError(f"the order is for {order.shards} shards, and the stream has {self._shards.count}")
        self._rows = Rows(self._shards, encode, collate, order, rank, on_bad_row == "skip", capacity, draw)
        self._count_items, self._pin_memory, self._sum = count_items, pin_memory, sum_over_ranks
        self._workers = min(workers, 1) if self._shards.splits else workers
        self._skipped: dict[str, Skipped] = {}
        self._pending: deque[tuple[MicroBatch, State]] = deque()
        self._ended: tuple[int, int] | None = None
        self._stand_in: Any = None
        self._mark: int | None = None
        self._checked = False
        self._state = State() if state is None else self._restored(understood(state))

    def describe(self) -> str:
        """In a sentence, how the stream is split, and why."""
        order, ranks, copies = self.order, self.order.world_size, self.order.copies()
        whole = f" ({self._shards.whole})" if self._shards.whole else ""
        found = f"the stream's {order.shards} shards" if order.shards > 1 else f"the stream's one shard{whole}"
        if ranks == 1:
            said = f"{found}, {order.count} read side by side"
        elif copies == 1:
            said = f"{found} are split over {ranks} ranks, and each reads {order.count // ranks} side by side"
        else:
            fix = (
                f"as many shards as a multiple of {ranks}"
                if order.shards % ranks
                else f"{order.most_readers} ranks at most"
            )
            said = (
                f"{found} cannot be shared by {ranks} ranks: every row is read by {copies} of them and taken by one; with "
                f"{fix} it would be read once"
            )
        again = order.copies(max(self._workers, 1)) // copies
        return said + (
            f"; of a rank's workers, {again} read the same rows and share their encoding" if again > 1 else ""
        )

    # -- consuming --------------------------------------------------------------------------------------------------

    def next_known(self) -> MicroBatch:
        """What is known of the batch that is run next."""
        return self._pending[0][0]

    def consume(self) -> MicroBatch:
        """The same, once a batch: the next one comes after it."""
        micro, state = self._pending.popleft()
        if micro.last:
            self._state = state
        return micro

    @property
    def position(self) -> int:
        """Samples used so far, over all epochs and ranks."""
        return self._state.samples

    @property
    def micro_batches_done(self) -> int:
        """Micro-batches of this epoch that this rank has run, fillers included; 0 where it is through."""
        return self._now().batches * self.order.accumulation

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return tuple(self._skipped.values())

    def state(self) -> dict[str, Any]:
        """What this rank has consumed, as JSON has it; `merge` joins the ranks' own."""
        state = self._now()
        return {
            "order": self._order_settings(),
            "mark": self._mark,
            **{name: getattr(state, name) for name in ("epoch", "batches", "step", "samples")},
            "readers": {str(reader): list(place) for reader, place in state.readers.items()},
        }

    def _now(self) -> State:
        """The state, which is the next epoch's beginning where the last one is through."""
        through = self._ended == (self._state.epoch, self._state.batches)
        return self._state.next_epoch() if through else self._state

    def _order_settings(self) -> dict[str, Any]:
        """What the order of rows depends on."""
        names = ("shards", "global_batch_size", "seed", "shuffle", "shuffle_rows", "most_readers")
        return {**{name: getattr(self.order, name) for name in names}, "capacity": self._rows.capacity}

    def _restored(self, state: Mapping[str, Any]) -> State:
        for name, value in self._order_settings().items():
            if state["order"][name] != value:
                raise StreamError(
                    f"the stream cannot be resumed under {name}={value}: its state was saved under "
                    f"{state['order'][name]}, and which rows come next depends on it. Set it back, or start again"
                )
        if state["readers"] and not self._shards.jumps:
            raise StreamError(
                "the stream cannot be resumed in the middle: it is not known to give the same rows again. Give a "
                "datasets.IterableDataset, such as IterableDataset.from_generator(function), or start again"
            )
        readers = {int(reader): ShardCursor(*place) for reader, place in state["readers"].items()}
        missing = sorted(set(self._rows.readers()) - set(readers)) if readers else []
        if missing:
            raise StreamError(
                f"the stream's state lacks the readers {missing[:8]}: it is one rank's. Give what `merge` makes of all ranks'"
            )
        self._mark = state["mark"]
        return State(state["epoch"], state["batches"], state["step"], state["samples"], readers)

    # -- reading ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        self._pending.clear()
        if not self._checked:
            self._check_stream()
        state = self._now()
        came = yield from self._epoch(state)
        if not came and state.batches:  # the state was saved at the very end of an epoch
            came = yield from self._epoch(state.next_epoch())
        if not came:
            why = "; ".join(f"{each.where}: {each.why}" for each in self.skipped[:3])
            raise EmptyDataError(f"no row of the stream can be used: {why}" if why else "the stream has no rows")

    def _epoch(self, state: State) -> Generator[Any, None, bool]:
        """An epoch's batches from a state on; returns whether there were any."""
        batches = iter(
            DataLoader(
                MicroBatchReader(self._rows, state),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=self._workers,
                pin_memory=self._pin_memory,
                worker_init_fn=exit_on_parent_signal,
            )
        )
        readers: dict[int, ShardCursor] = {}
        came, k = False, state.batches
        while True:
            part = [self._next(batches) for _ in range(self.order.accumulation)]
            read, usable = self._agreed([sum(held.read for _, held in part), sum(len(held.places) for _, held in part)])
            if not read:
                self._ended = (state.epoch, state.batches)
                return came
            k += 1
            for _, held in part:
                readers.update(held.readers)
            if usable:
                came = True
                state = State(state.epoch, k, state.step + 1, state.samples + usable, dict(readers))
                yield from self._release(part, usable, state)

    def _next(self, batches: Iterator[Any]) -> tuple[Any, ReadMicroBatch]:
        started = time.perf_counter()
        batch, held = next(batches)
        self.waited_seconds += time.perf_counter() - started
        if held.error is not None:
            raise held.error
        self._skipped.update((each.where, each) for each in held.skipped)
        return batch, held

    def _agreed(self, numbers: list[int]) -> list[int]:
        """Summed over all ranks."""
        tensor = torch.tensor(numbers)
        return (tensor if self._sum is None else self._sum(tensor)).tolist()

    def _release(self, part: list[tuple[Any, ReadMicroBatch]], samples: int, state: State) -> Iterator[Any]:
        items = [self._items(batch, held, state) for batch, held in part]
        real = [batch for batch, held in part if held.places]
        if real or self._stand_in is None:
            self._stand_in = real[-1] if real else self._rows.first()
        for i, ((batch, held), own) in enumerate(zip(part, items, strict=True)):
            micro = MicroBatch(
                items=own,
                local_items=sum(items),
                samples=samples,
                is_whole=samples == self.order.global_batch_size,
                rows=self._row_numbers(held, state),
                seed=self.order.seed,
                step=state.step,
                index=i * self.order.world_size + self._rows.rank,
                first=i == 0,
                last=i == len(part) - 1,
            )
            self._pending.append((micro, state))
            yield batch if held.places else self._stand_in

    def _items(self, batch: Any, held: ReadMicroBatch, state: State) -> float:
        if not held.places:
            return 0
        items = self._count_items(batch, len(held.places))
        if items <= 0:
            rows = list(self._row_numbers(held, state))
            raise NoLabelError(
                f"the rows {rows} of epoch {state.epoch + 1} have nothing that the loss counts: all labels are masked"
            )
        return items

    def _row_numbers(self, held: ReadMicroBatch, state: State) -> tuple[int, ...]:
        """The places of a batch's rows in the epoch."""
        return tuple((state.batches - 1) * self.order.global_batch_size + place for place in held.places)

    def _check_stream(self) -> None:
        """Whether the ranks read the same stream, and the one that the state was saved from; as far as its first row tells.

        Raises:
            StreamError: it differs.
        """
        first = self._rows.mark()
        known, total, squares = self._agreed([0, 0, 0] if first is None else [1, first, first**2])
        if known == self.order.world_size and known * squares != total**2:
            raise StreamError(
                "the ranks read different streams: each must be given the same rows in the same order, all of them. Do not "
                "split the stream by rank, and give shuffle() a seed"
            )
        if first is not None and self._mark is not None and first != self._mark:
            raise StreamError(
                "the stream begins with another row than when its state was saved, so where to resume cannot be told. Give the "
                "same data in the same order (shuffle() needs a seed), or start again"
            )
        self._mark, self._checked = first, True


def _as_it_is(item: Any) -> Any:
    return item
