"""Streams: every row exactly once an epoch, in the same batches on any ranks and workers, and after any resume."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset, interleave_datasets
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import get_worker_info

from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.loading.stream_shards import OneShard, ShardReader, pack_window, shards
from scalekit.data.loading.stream_states import merge
from scalekit.data.sampling.stream_order import ShardCursor, StreamOrder
from scalekit.errors import BatchSizeError, ConfigError, EmptyDataError, NoLabelError, RowError, StreamError
from scalekit.objectives.normalization import MicroBatch
from tests.support.streams import as_it_is, count_rows, pieces_of, rows_of, stream

LENGTHS = (1, 7, 100)
SHARDS = (1, 3, 8, 24)


class Together:
    """Ranks in threads, with a sum that waits for them all."""

    def __init__(self, world_size: int) -> None:
        self._barrier = threading.Barrier(world_size)
        self._parts: list[torch.Tensor] = [torch.zeros(0)] * world_size

    def run(self, work: Callable[[int, Callable[[torch.Tensor], torch.Tensor]], Any]) -> list[Any]:
        found: list[Any] = [None] * len(self._parts)

        def rank(number: int) -> None:
            try:
                found[number] = work(number, partial(self._sum, number))
            except Exception as error:
                found[number] = error
                self._barrier.abort()

        threads = [threading.Thread(target=rank, args=(number,)) for number in range(len(self._parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for error in found:
            if isinstance(error, Exception) and not isinstance(error, threading.BrokenBarrierError):
                raise error
        return found

    def _sum(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        self._parts[number] = tensor
        self._barrier.wait(60)
        total = torch.stack(self._parts).sum(0)
        self._barrier.wait(60)
        return total


Run = list[tuple[MicroBatch, list[Any]]]
"""What is known of each micro-batch of a rank, and its rows."""


def documents(rows: list[dict[str, int]]) -> list[dict[str, list[int]]]:
    """Token lists of 1 to 5 tokens that hold the row's id."""
    return [{"input_ids": [row["id"]] * (1 + row["id"] % 5)} for row in rows]


def loader_of(rows: Any, order: StreamOrder, rank: int = 0, **options: Any) -> StreamLoader:
    options = {"encode": as_it_is, "collate": as_it_is, "count_items": count_rows, **options}
    return StreamLoader(rows, order=order, rank=rank, **options)


def take(loader: StreamLoader, steps: int | None = None) -> Run:
    """A pass; or as many as it takes to come to a step, the last of them broken off there."""
    run: Run = []
    while True:
        for batch in loader:
            run.append((loader.consume(), batch))
            if run[-1][0].last and run[-1][0].step == steps:
                return run
        if steps is None:
            return run


def ranks_of(rows: Any, order: StreamOrder, passes: int = 1, **options: Any) -> list[Run]:
    def work(rank: int, sum_over_ranks: Any) -> Run:
        loader = loader_of(rows, order, rank, sum_over_ranks=sum_over_ranks, **options)
        return [each for _ in range(passes) for each in take(loader)]

    return Together(order.world_size).run(work)


def ids(batch: list[Any]) -> list[int]:
    """Of a batch, packed or not."""
    if batch and "document_lengths" in batch[0]:
        return [
            int(row["input_ids"][start])
            for row in batch
            for start in np.cumsum(row["document_lengths"]) - row["document_lengths"]
        ]
    return [int(row["id"]) for row in batch]


def micro_batches(runs: list[Run]) -> dict[tuple[int, int], list[int]]:
    """The rows of each micro-batch by its step and index, over all ranks."""
    found = {(micro.step, micro.index): ids(batch) for run in runs for micro, batch in run if micro.items}
    assert len(found) == sum(micro.items > 0 for run in runs for micro, _ in run)
    return found


def global_batches(runs: list[Run]) -> list[set[int]]:
    found: dict[int, set[int]] = {}
    for (step, _), own in sorted(micro_batches(runs).items()):
        found.setdefault(step, set()).update(own)
    return list(found.values())


def known(runs: list[Run]) -> list[Any]:
    """Everything of them that does not depend on the world."""
    micro = [(m.step, m.index, m.rows, m.samples, ids(b)) for run in runs for m, b in run if m.items]
    return sorted(micro)


def flat(runs: list[Run]) -> list[int]:
    return sorted(i for own in micro_batches(runs).values() for i in own)


# -- the order ----------------------------------------------------------------------------------------------------------


@given(
    shard_count=st.integers(1, 60),
    most_readers=st.integers(1, 64),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 6),
    world_size=st.integers(1, 8),
    workers=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_every_row_of_a_global_batch_is_in_one_micro_batch_of_a_rank_and_worker_that_reads_its_reader(
    shard_count: int, most_readers: int, micro: int, accumulation: int, world_size: int, workers: int, data: Any
) -> None:
    order = StreamOrder(shard_count, micro * accumulation * world_size, micro, world_size, most_readers=most_readers)
    assert order.count <= most_readers
    counts = data.draw(st.lists(st.integers(0, order.per_reader), min_size=order.count, max_size=order.count))
    rows = {reader: [(reader, turn) for turn in range(count)] for reader, count in enumerate(counts)}
    everywhere = order.deal(rows, range(order.accumulation * world_size))
    assert sorted(row for part in everywhere for row in part) == sorted(row for own in rows.values() for row in own)
    assert all(len(part) <= micro for part in everywhere)
    for rank, worker in itertools.product(range(world_size), range(workers)):
        readers = order.read_by(rank, worker, workers)
        own = range(worker * world_size + rank, len(everywhere), workers * world_size)
        assert {reader for index in own for reader, _ in everywhere[index]} <= set(readers)
        assert order.deal({reader: rows[reader] for reader in readers}, own) == [everywhere[index] for index in own]
    read = [reader for rank in range(world_size) for reader in order.read_by(rank)]
    assert sorted(read) == sorted([*range(order.count)] * order.copies())
    assert (order.copies() == 1) == (order.count % world_size == 0)
    if shard_count <= most_readers or world_size == most_readers:
        assert (order.copies() == 1) == (shard_count % world_size == 0)


@pytest.mark.parametrize(
    ("shard_count", "batch", "readers"), [(1024, 4096, 64), (96, 960, 48), (7, 8, 1), (24, 36, 12)]
)
def test_there_are_not_more_readers_than_files_that_may_be_open(shard_count: int, batch: int, readers: int) -> None:
    assert StreamOrder(shard_count, batch, 1, 1).count == readers


@given(shard_count=st.integers(1, 60), batch=st.integers(1, 60), epoch=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_shard_is_read_by_one_reader(shard_count: int, batch: int, epoch: int) -> None:
    order = StreamOrder(shard_count, batch, 1, 1, seed=3)
    read = [shard for reader in range(order.count) for shard in order.shards_of(reader, epoch)]
    assert sorted(read) == list(range(shard_count))


@given(lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4), block=st.integers(1, 7), data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_reader_goes_on_from_any_of_its_places(lengths: list[int], block: int, data: Any) -> None:
    ends = [0, *itertools.accumulate(lengths)]
    pieces = [range(a, b) for a, b in itertools.pairwise(ends)]
    source = shards(IterableDataset.from_generator(rows_of, gen_kwargs={"pieces": pieces}))
    order = StreamOrder(len(lengths), 1, 1, 1, seed=2, shuffle_rows=block)

    def rest(reader: ShardReader) -> list[int]:
        return [read.row["id"] for read in reader.take(1000)]

    whole = rest(ShardReader(0, order, source, 1, ShardCursor()))
    assert sorted(whole) == list(range(sum(lengths)))
    cuts = data.draw(st.lists(st.integers(1, 9), max_size=4))
    reader, given = ShardReader(0, order, source, 1, ShardCursor()), 0
    for cut in cuts:
        given += len(reader.take(cut))
        reader = ShardReader(0, order, source, 1, reader.place)  # and again, in a row
    assert rest(reader) == whole[given:]


def test_a_batch_that_cannot_be_split_names_the_nearest() -> None:
    with pytest.raises(BatchSizeError, match="the nearest that can: 8, 12"):
        StreamOrder(3, 10, 2, 2)


# -- exactly once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shard_count", SHARDS)
@pytest.mark.parametrize("capacity", [None, 8])
def test_each_row_once_an_epoch(length: int, shard_count: int, capacity: int | None) -> None:
    packing = {} if capacity is None else {"capacity": capacity, "encode": documents}
    for world_size, accumulation in itertools.product((1, 2, 3, 5, 8), (1, 3)):
        order = StreamOrder(shard_count, 2 * world_size * accumulation, 2, world_size, seed=5, shuffle_rows=10)
        runs = ranks_of(stream(length, shard_count), order, **packing)
        assert flat(runs) == list(range(length)), (world_size, accumulation)
        assert {len(run) for run in runs} == {len(runs[0])}
        steps = {micro.step: micro.samples for micro, _ in runs[0]}
        assert list(steps) == list(range(1, len(steps) + 1))
        assert len(runs[0]) == accumulation * len(steps)
        for step, samples in steps.items():
            assert samples == sum(len(batch) for run in runs for m, batch in run if m.step == step and m.items)


@pytest.mark.parametrize("shard_count", [8, 7])
def test_each_row_of_a_longer_stream_once_an_epoch(shard_count: int) -> None:
    rows = Dataset.from_dict({"id": list(range(10_007))}).to_iterable_dataset(num_shards=shard_count)
    assert flat(ranks_of(rows, StreamOrder(shard_count, 48, 4, 4, seed=1))) == list(range(10_007))


@pytest.mark.parametrize("shard_count", SHARDS)
@pytest.mark.parametrize("capacity", [None, 8])
def test_global_batches_and_micro_batches_do_not_depend_on_the_world(shard_count: int, capacity: int | None) -> None:
    packing = {} if capacity is None else {"capacity": capacity, "encode": documents}

    @cache
    def of(world_size: int) -> list[Run]:
        order = StreamOrder(shard_count, 24, 1, world_size, seed=5, shuffle_rows=20)
        return ranks_of(stream(311, shard_count), order, **packing)

    for world_size in (2, 3, 4, 6, 8):
        assert known(of(world_size)) == known(of(1))
        assert global_batches(of(world_size)) == global_batches(of(1))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 12])
def test_global_batches_do_not_depend_on_the_micro_batches(micro_batch_size: int) -> None:
    runs = ranks_of(stream(100, 3), StreamOrder(3, 12, micro_batch_size, 1, seed=5))
    assert global_batches(runs) == global_batches(ranks_of(stream(100, 3), StreamOrder(3, 12, 1, 1, seed=5)))


@pytest.mark.parametrize(
    ("workers", "shard_count", "accumulation"), [(1, 1, 1), (2, 6, 3), (3, 6, 3), (3, 1, 1), (3, 8, 4)]
)
@pytest.mark.parametrize("capacity", [None, 8])
def test_workers_change_nothing(workers: int, shard_count: int, accumulation: int, capacity: int | None) -> None:
    packing = {} if capacity is None else {"capacity": capacity, "encode": documents}

    def whole(workers: int) -> tuple[Any, Any]:
        order = StreamOrder(shard_count, 2 * accumulation, 2, 1, seed=5, shuffle_rows=10)
        loader = loader_of(stream(60, shard_count), order, workers=workers, **packing)
        run = take(loader) + take(loader, steps=loader.state()["step"] + 3)
        return [(micro, ids(batch)) for micro, batch in run], loader.state()

    assert whole(workers) == whole(0)
    assert whole(0)[1]["readers"]


def test_workers_read_rows_from_files(tmp_path: Any) -> None:
    for i in range(4):
        Dataset.from_dict({"id": list(range(50 * i, 50 * i + 50))}).to_parquet(str(tmp_path / f"{i}.parquet"))
    rows = datasets.load_dataset("parquet", data_dir=str(tmp_path), split="train", streaming=True)
    assert shards(rows).count == 4
    loader = loader_of(rows, StreamOrder(4, 8, 2, 1), workers=2)
    assert flat([take(loader)]) == list(range(200))


def test_epochs_differ_and_seeds_differ() -> None:
    first, second = (ranks_of(stream(60, 3), StreamOrder(3, 6, 2, 1, seed=seed), passes=2) for seed in (5, 6))
    steps = len(first[0]) // 2 // 3
    batches = global_batches(first)
    assert batches[:steps] != batches[steps:]
    assert sorted(i for batch in batches[steps:] for i in batch) == list(range(60))
    assert batches != global_batches(second)


def test_an_order_that_is_not_shuffled_is_the_stream_s_own() -> None:
    runs = ranks_of(stream(60, 1), StreamOrder(1, 6, 2, 3, shuffle=False), passes=2)
    assert [micro_batches(runs)[key] for key in sorted(micro_batches(runs))] == 2 * [
        [i, i + 1] for i in range(0, 60, 2)
    ]


def test_a_shuffled_block_is_of_the_size_given() -> None:
    found = [
        ids(batch) for _, batch in take(loader_of(stream(60, 1), StreamOrder(1, 10, 10, 1, seed=1, shuffle_rows=20)))
    ]
    blocks = [first + second for first, second in zip(found[::2], found[1::2], strict=True)]
    assert [sorted(block) for block in blocks] == [list(range(i, i + 20)) for i in (0, 20, 40)]
    orders = {tuple(i % 20 for i in block) for block in blocks}
    assert len(orders) == 3
    assert tuple(range(20)) not in orders


# -- sharing out --------------------------------------------------------------------------------------------------------


def test_ranks_that_divide_the_shards_read_their_own_alone() -> None:
    read: list[list[int]] = [[], []]

    def work(rank: int, sum_over_ranks: Any) -> Run:
        loader = loader_of(stream(80, 8), StreamOrder(8, 16, 2, 2), rank, sum_over_ranks=sum_over_ranks)
        taken = loader._rows.shards.read
        loader._rows.shards.read = lambda shard, start=0: read[rank].append(shard) or taken(shard, start)
        return take(loader)

    runs = Together(2).run(work)
    own = [set(each[2:]) for each in read]  # after two looks at the first row
    assert not own[0] & own[1]
    assert flat(runs) == list(range(80))


def test_it_says_how_the_stream_is_shared_out_and_why() -> None:
    def said(count: int, world_size: int, workers: int = 0, rows: Any = None, most_readers: int = 64) -> str:
        order = StreamOrder(count, 24, 1, world_size, most_readers=most_readers)
        summed = None if world_size == 1 else lambda tensor: tensor
        return loader_of(rows or stream(99, count), order, workers=workers, sum_over_ranks=summed).describe()

    assert said(8, 4) == "the stream's 8 shards are split over 4 ranks, and each reads 2 side by side"
    assert said(7, 2) == (
        "the stream's 7 shards cannot be shared by 2 ranks: every row is read by 2 of them and taken by one; with as many "
        "shards as a multiple of 2 it would be read once"
    )
    assert "every row is read by 2 of them" in said(4, 8)
    assert said(24, 24, most_readers=12).endswith("taken by one; with 12 ranks at most it would be read once")
    assert said(3, 1) == "the stream's 3 shards, 3 read side by side"
    assert said(1, 1, workers=4).endswith("; of a rank's workers, 4 read the same rows and share their encoding")
    assert "workers" not in said(8, 2, workers=4)
    assert "the stream's one shard (take() and skip() count" in said(1, 2, rows=stream(99, 3).take(50))


# -- what rows come from ------------------------------------------------------------------------------------------------


def own_rows(rows: Any) -> list[int]:
    source = shards(rows)
    return [row["id"] for shard in range(source.count) for row in source.read(shard)]


ARROW = Dataset.from_dict({"id": list(range(23))})


@pytest.mark.parametrize(
    "rows",
    [
        ARROW.to_iterable_dataset(num_shards=4),
        ARROW.to_iterable_dataset(num_shards=4).with_format("torch"),
        ARROW.to_iterable_dataset(num_shards=4).with_format("numpy"),
        stream(23, 4),
        stream(23, 4).map(lambda row: {"id": row["id"]}),
        stream(23, 4).filter(lambda row: row["id"] % 2 == 0),
        stream(23, 4).take(10),
        stream(23, 4).skip(7),
        stream(23, 4).skip(3).take(9).map(lambda row: {"id": row["id"]}),
        ARROW.to_iterable_dataset(num_shards=4).take(10),
        interleave_datasets([stream(23, 4), stream(9, 2)], stopping_strategy="all_exhausted_without_replacement"),
        datasets.concatenate_datasets([stream(23, 4), stream(9, 2)]),
        stream(23, 4).shuffle(seed=1, buffer_size=5),
        ARROW.to_iterable_dataset(num_shards=4).shuffle(seed=1, buffer_size=5),
        stream(23, 1),
    ],
)
def test_shards_hold_the_rows_of_the_stream_and_are_read_from_any_row_on(rows: IterableDataset) -> None:
    source = shards(rows)
    assert sorted(own_rows(rows)) == sorted(int(row["id"]) for row in rows)
    for shard in range(source.count):
        whole = list(source.read(shard))
        for start in range(len(whole) + 2):
            assert list(source.read(shard, start)) == whole[start:]


def test_rows_keep_the_columns_that_they_have() -> None:
    rows = IterableDataset.from_generator(lambda: iter([{"id": 1}, {"id": 2, "more": None}]))
    assert list(shards(rows).read(0)) == [{"id": 1}, {"id": 2, "more": None}]


def test_two_passes_over_one_shard_do_not_disturb_each_other() -> None:
    source = shards(stream(5, 1))
    one, two = source.read(0), source.read(0)
    found = [next(one), next(one), next(two), *one, *two]
    assert sorted(row["id"] for row in found) == sorted([*range(5), *range(5)])


class Numbers(torch.utils.data.IterableDataset):
    """Splits itself over workers, as torch's manual has it."""

    def __iter__(self) -> Iterator[dict[str, int]]:
        info = get_worker_info()
        own = slice(None) if info is None else slice(info.id, None, info.num_workers)
        return iter([{"id": i} for i in range(50)][own])


@pytest.mark.parametrize("workers", [0, 3])
def test_a_torch_stream_is_read_whole(workers: int) -> None:
    loader = loader_of(Numbers(), StreamOrder(1, 6, 2, 1), workers=workers)
    assert flat([take(loader)]) == flat([take(loader)]) == list(range(50))
    assert flat(ranks_of(Numbers(), StreamOrder(1, 6, 2, 3))) == list(range(50))


def test_a_stream_that_was_split_already_is_refused() -> None:
    with pytest.raises(StreamError, match="pass it whole"):
        shards(split_dataset_by_node(stream(23, 4), rank=0, world_size=2))


def test_a_stream_that_can_be_read_once_is_refused() -> None:
    with pytest.raises(StreamError, match="can be read once only"):
        shards(iter([{"id": 1}]))


def test_a_stream_of_tables_is_refused() -> None:
    with pytest.raises(StreamError, match="with_format"):
        take(loader_of(ARROW.to_iterable_dataset().with_format("arrow"), StreamOrder(1, 1, 1, 1)))


def test_ranks_that_read_different_streams_are_told() -> None:
    """Each rank's script shuffles without a seed."""

    def work(rank: int, sum_over_ranks: Any) -> Run:
        rows = stream(100, 10).shuffle(seed=rank)
        return take(loader_of(rows, StreamOrder(10, 4, 1, 2), rank, sum_over_ranks=sum_over_ranks))

    with pytest.raises(StreamError, match="the ranks read different streams"):
        Together(2).run(work)


def test_rows_that_are_random_by_themselves_are_none_of_its_business() -> None:
    draws = itertools.count()
    rows = stream(10, 1).map(lambda row: {"draw": next(draws)})
    assert flat(ranks_of(rows, StreamOrder(1, 4, 1, 2))) == list(range(10))


def test_no_rows() -> None:
    with pytest.raises(EmptyDataError, match="the stream has no rows"):
        take(loader_of(stream(9, 3).filter(lambda row: False), StreamOrder(3, 3, 1, 1)))


def test_several_ranks_need_a_way_to_agree() -> None:
    with pytest.raises(ConfigError, match="sum_over_ranks"):
        loader_of(stream(9, 3), StreamOrder(3, 4, 1, 2))
    with pytest.raises(ConfigError, match="the order is for 2 shards, and the stream has 3"):
        loader_of(stream(9, 3), StreamOrder(2, 4, 1, 1))


# -- rows that cannot be used -------------------------------------------------------------------------------------------


def picky(rows: list[dict[str, int]]) -> list[dict[str, Any]]:
    if any(row["id"] % 10 == 3 for row in rows):
        raise RowError("it ends in 3")
    return documents(rows)


def test_a_bad_row_is_refused_by_its_shard_and_number() -> None:
    pieces = pieces_of(100, 3)
    place, shard = min((next(place for place, i in enumerate(own) if i % 10 == 3), k) for k, own in enumerate(pieces))
    for workers in (0, 1):
        loader = loader_of(stream(100, 3), StreamOrder(3, 3, 3, 1, shuffle=False), encode=picky, workers=workers)
        with pytest.raises(RowError) as told:
            take(loader)
        assert str(told.value) == (
            f"row {place} of the stream's shard {shard}: it ends in 3. Fix it, or leave such rows out: on_bad_row='skip'"
        )


def test_a_row_that_the_encoder_stumbles_over_is_a_bad_row() -> None:
    def stumbles(rows: list[dict[str, int]]) -> list[Any]:
        return [1 // (row["id"] - 5) for row in rows]

    with pytest.raises(RowError, match="row 5 of the stream: it cannot be encoded: ZeroDivisionError"):
        take(loader_of(stream(10, 1), StreamOrder(1, 2, 2, 1), encode=stumbles))


def has_ids(rows: list[dict[str, Any]]) -> list[int]:
    return [row["input_ids"][0] for row in rows]


def test_a_bad_row_that_is_skipped_moves_no_other_row() -> None:
    def runs(world_size: int, encode: Any) -> tuple[dict[tuple[int, int], list[int]], set[str], list[int]]:
        order = StreamOrder(3, 12, 2, world_size, seed=5)

        def work(rank: int, sum_over_ranks: Any) -> Any:
            loader = loader_of(
                *(stream(100, 3), order, rank),
                **{"encode": encode, "collate": has_ids, "sum_over_ranks": sum_over_ranks, "on_bad_row": "skip"},
            )
            return take(loader), loader.skipped

        found = Together(world_size).run(work)
        named = [skipped.where for _, own in found for skipped in own]
        assert len(named) == len(set(named))
        micro = {(m.step, m.index): batch for run, _ in found for m, batch in run if m.items}
        return micro, set(named), [m.samples for m, _ in found[0][0] if m.first]

    good, none_left_out, _ = runs(1, documents)
    bad, left_out, samples = runs(1, picky)
    assert not none_left_out
    assert len(left_out) == 10
    assert sum(samples) == 90
    expected = {key: [i for i in batch if i % 10 != 3] for key, batch in good.items()}
    assert bad == {key: batch for key, batch in expected.items() if batch}
    assert runs(2, picky) == runs(3, picky) == (bad, left_out, samples)


def test_a_global_batch_of_bad_rows_alone_is_no_step() -> None:
    def encode(rows: list[dict[str, int]]) -> list[dict[str, int]]:
        if any(row["id"] < 4 for row in rows):
            raise RowError("too small")
        return rows

    order = StreamOrder(1, 2, 1, 2, shuffle=False)
    runs = ranks_of(stream(10, 1), order, encode=encode, on_bad_row="skip", passes=2)
    assert sorted({micro.step for run in runs for micro, _ in run}) == [1, 2, 3, 4, 5, 6]
    assert flat(runs) == sorted([*range(4, 10), *range(4, 10)])
    with pytest.raises(EmptyDataError, match=r"no row of the stream can be used: row \d of the stream: too small"):
        ranks_of(stream(4, 1), order, encode=encode, on_bad_row="skip")


def test_a_document_longer_than_a_packed_row_is_a_bad_row() -> None:
    def encode(rows: list[dict[str, int]]) -> list[dict[str, list[int]]]:
        return [{"input_ids": [row["id"]] * row["id"]} for row in rows]

    order = StreamOrder(1, 2, 1, 1)
    with pytest.raises(RowError, match=r"row 0 of the stream: it has no tokens"):
        take(loader_of(stream(12, 1), order, encode=encode, capacity=10))
    loader = loader_of(stream(12, 1), order, encode=encode, capacity=10, on_bad_row="skip")
    assert flat([take(loader)]) == list(range(1, 11))
    assert [each.why[:20] for each in loader.skipped] == ["it has no tokens", "it has 11 tokens, an"]


def test_a_row_without_labels_is_refused() -> None:
    loader = loader_of(stream(12, 1), StreamOrder(1, 4, 2, 1), count_items=lambda batch, rows: 0)
    with pytest.raises(NoLabelError, match=r"the rows .* of epoch 1 have nothing that the loss counts"):
        take(loader)


# -- packing ------------------------------------------------------------------------------------------------------------


def test_documents_are_packed_by_best_fit_and_kept_apart() -> None:
    rows = pack_window(
        [{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5], "labels": [-100, 7, 8]}, {"input_ids": [6]}], capacity=4
    )
    assert [{name: values.tolist() for name, values in row.items()} for row in rows] == [
        {"input_ids": [3, 4, 5, 6], "labels": [-100, 7, 8, -100], "document_lengths": [3, 1]},
        {"input_ids": [1, 2], "labels": [-100, 2], "document_lengths": [2]},
    ]
    assert pack_window([], 4) == []


def test_packed_rows_are_full() -> None:
    run = take(loader_of(stream(1000, 4), StreamOrder(4, 8, 2, 1), encode=documents, capacity=16))
    used = [len(row["input_ids"]) for _, batch in run for row in batch]
    assert sum(used) / (16 * len(used)) > 0.97
    assert max(used) <= 16


# -- fillers ------------------------------------------------------------------------------------------------------------


def test_a_rank_without_rows_repeats_a_batch_that_weighs_nothing() -> None:
    runs = ranks_of(stream(1, 8), StreamOrder(8, 16, 1, 4))
    assert [sum(micro.items for micro, _ in run) for run in runs].count(1) == 1
    for micro, batch in (each for run in runs for each in run):
        assert micro.samples == 1
        assert ids(batch) == [0]
        assert (micro.items, len(micro.rows)) in ((0, 0), (1, 1))


def test_micro_batches_know_where_they_stand() -> None:
    (run,) = ranks_of(stream(20, 1), StreamOrder(1, 8, 2, 1, seed=7, shuffle=False), passes=2)
    assert [micro.first for micro, _ in run] == [True, False, False, False] * 6
    assert [micro.last for micro, _ in run] == [False, False, False, True] * 6
    assert [micro.index for micro, _ in run] == [0, 1, 2, 3] * 6
    assert [micro.step for micro, _ in run] == [step for step in range(1, 7) for _ in range(4)]
    assert [micro.local_items for micro, _ in run] == ([8] * 8 + [4] * 4) * 2
    assert [row for micro, _ in run for row in micro.rows] == [*range(20), *range(20)]
    assert {micro.seed for micro, _ in run} == {7}


# -- resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [None, 8])
@pytest.mark.parametrize("shard_count", [1, 3, 8])
def test_a_resume_at_any_step_and_on_any_world_gives_the_rest_and_twice_in_a_row(
    shard_count: int, capacity: int | None
) -> None:
    options: dict[str, Any] = {} if capacity is None else {"capacity": capacity, "encode": documents}
    worlds = itertools.cycle((1, 2, 3, 4, 6))

    def part(state: Any, steps: int) -> tuple[list[Run], dict[str, Any]]:
        order = StreamOrder(shard_count, 12, 1, next(worlds), seed=5, shuffle_rows=9)

        def work(rank: int, sum_over_ranks: Any) -> Any:
            rows = stream(100, shard_count)
            loader = loader_of(rows, order, rank, state=state, sum_over_ranks=sum_over_ranks, **options)
            return take(loader, steps), loader.state(), loader.position

        found = Together(order.world_size).run(work)
        merged = json.loads(json.dumps(merge([state for _, state, _ in found])))
        assert {position for _, _, position in found} == {merged["samples"]}
        return [run for run, _, _ in found], merged

    steps = 2 * len(
        global_batches(ranks_of(stream(100, shard_count), StreamOrder(shard_count, 12, 1, 1, seed=5), **options))
    )
    whole, end = part(None, steps)
    for cut in range(1, steps - 1):
        runs, state = part(None, cut)
        middle, state = part(state, cut + 1)
        last, state = part(state, steps)
        assert known(runs + middle + last) == known(whole), cut
        assert state == end


def test_a_state_of_before_the_readers_had_their_name() -> None:
    order = StreamOrder(3, 10, 2, 1, seed=5)
    loader = loader_of(stream(20, 3), order)
    take(loader, steps=3)
    state = loader.state()
    old = {"lanes" if name == "readers" else name: value for name, value in state.items()}
    old["order"] = {"most_lanes" if name == "most_readers" else name: value for name, value in state["order"].items()}
    found, expected = (known([take(loader_of(stream(20, 3), order, state=each), steps=4)]) for each in (old, state))
    assert found == expected


def test_a_state_at_the_very_end_of_an_epoch_goes_on_with_the_next() -> None:
    order = StreamOrder(3, 10, 2, 1, seed=5)
    loader = loader_of(stream(20, 3), order)
    batches = iter(loader)
    for _ in range(10):
        next(batches)
        loader.consume()
    before_the_end_is_known = loader.state()
    assert next(batches, None) is None
    assert loader.state() != before_the_end_is_known
    expected = known([take(loader)])
    for state in (before_the_end_is_known, loader_of(stream(20, 3), order, state=before_the_end_is_known).state()):
        assert known([take(loader_of(stream(20, 3), order, state=state))]) == expected


def test_what_was_read_ahead_is_not_consumed() -> None:
    """Lightning takes a batch before it runs the one before, and stops in the middle of a global batch."""
    order = StreamOrder(3, 6, 2, 1, seed=5)
    loader = loader_of(stream(60, 3), order)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    for _ in range(4):
        loader.consume()
    assert (loader.position, loader.state()["step"]) == (6, 1)
    again = take(loader)  # a new pass goes on from what was consumed
    assert min(micro.step for micro, _ in again) == 2
    assert len({i for _, batch in again for i in ids(batch)}) == 54


def test_going_on_starts_at_the_block_and_not_at_the_beginning() -> None:
    rows, order = stream(1000, 1), StreamOrder(1, 10, 10, 1, seed=5, shuffle_rows=50)
    loader = loader_of(rows, order)
    take(loader, steps=73)
    assert loader.state()["readers"] == {"0": [0, 700, 14, 30]}
    encoded: list[int] = []

    def encode(rows: list[dict[str, int]]) -> list[dict[str, int]]:
        encoded.extend(row["id"] for row in rows)
        return rows

    take(loader_of(rows, order, encode=encode, state=loader.state()), steps=74)
    assert len(encoded) == 10


def test_a_state_of_another_order_is_refused() -> None:
    loader = loader_of(stream(60, 3), StreamOrder(3, 6, 2, 1, seed=5))
    take(loader, steps=2)
    state = loader.state()
    for name, order in {
        "global_batch_size=12": StreamOrder(3, 12, 2, 1, seed=5),
        "seed=6": StreamOrder(3, 6, 2, 1, seed=6),
        "shuffle=False": StreamOrder(3, 6, 2, 1, seed=5, shuffle=False),
        "shuffle_rows=9": StreamOrder(3, 6, 2, 1, seed=5, shuffle_rows=9),
    }.items():
        with pytest.raises(StreamError, match=f"cannot be resumed under {name}: its state was saved under"):
            loader_of(stream(60, 3), order, state=state)
    with pytest.raises(StreamError, match="under capacity=8"):
        loader_of(stream(60, 3), StreamOrder(3, 6, 2, 1, seed=5), state=state, capacity=8)
    with pytest.raises(StreamError, match="under shards=2"):
        loader_of(stream(60, 2), StreamOrder(2, 6, 2, 1, seed=5), state=state)
    with pytest.raises(StreamError, match="begins with another row"):
        take(loader_of(stream(60, 3).map(lambda row: {"id": row["id"] + 1}), loader.order, state=state))


def test_states_of_different_steps_or_of_too_few_ranks_are_refused() -> None:
    def work(rank: int, sum_over_ranks: Any) -> list[Any]:
        loader = loader_of(stream(60, 2), StreamOrder(2, 6, 1, 2), rank, sum_over_ranks=sum_over_ranks)
        states = []
        for _ in loader:
            if loader.consume().last:
                states.append(loader.state())
        return states

    one, two = Together(2).run(work)
    assert merge([one[3], two[3]])["readers"].keys() == {"0", "1"}
    with pytest.raises(StreamError, match="the ranks' states differ in batches, step, samples"):
        merge([one[3], two[4]])
    with pytest.raises(StreamError, match=r"lacks the readers \[1\]"):
        loader_of(stream(60, 2), StreamOrder(2, 6, 1, 1), state=one[3])


def test_a_torch_stream_is_gone_on_with_at_the_beginning_of_an_epoch_alone() -> None:
    loader = loader_of(Numbers(), StreamOrder(1, 10, 5, 1, seed=5))
    run = take(loader)
    following = known([take(loader_of(Numbers(), loader.order, state=loader.state()))])
    assert min(step for step, *_ in following) == run[-1][0].step + 1
    assert sorted(i for *_, own in following for i in own) == list(range(50))
    take(loader, steps=7)
    with pytest.raises(StreamError, match=r"not known to give the same rows again. Give a datasets.IterableDataset"):
        loader_of(Numbers(), loader.order, state=loader.state())


def test_it_knows_how_long_it_has_waited() -> None:
    import time

    def slowly(rows: list[Any]) -> list[Any]:
        time.sleep(0.02)
        return rows

    loader = loader_of(stream(20, 1), StreamOrder(1, 4, 2, 1), encode=slowly)
    for _ in loader:
        loader.consume()
        time.sleep(0.02)
    assert 10 * 0.02 <= loader.waited_seconds < 10 * 0.02 + 0.1


def test_a_stream_of_one_shard_is_any_iterable() -> None:
    assert isinstance(shards([{"id": 1}]), OneShard)
    assert flat([take(loader_of([{"id": i} for i in range(9)], StreamOrder(1, 2, 1, 1)))]) == list(range(9))
