"""Micro-batches from the order, whatever the length of the data and the number of workers."""

import time
import tracemalloc
from functools import cache

import datasets
import numpy as np
import pytest
from torch.utils.data import Dataset

from scalekit.callbacks.metrics import data_warning
from scalekit.data.loading.map_loader import Loader
from scalekit.data.packing.packing import pack
from scalekit.data.sampling.batch_order import BatchOrder


class Numbers(Dataset):
    """Rows that are their own indices."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        return index


def rows_of(loader: Loader) -> list[int]:
    found: list[int] = []
    for batch in loader:
        micro = loader.consume()
        assert list(micro.rows) == batch
        found += batch if micro.items else []
    return found


@pytest.mark.parametrize("length", [1, 7, 100, 10_007])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_each_row_once_an_epoch(length: int, workers: int) -> None:
    order = BatchOrder(length, 120, 5, 8, seed=1)
    found = [rows_of(Loader(Numbers(length), list, order, rank, lambda b, n: n, workers=workers)) for rank in range(8)]
    assert sorted(row for rows in found for row in rows) == list(range(length))


@pytest.mark.parametrize("length", [1, 7, 100, 10_007])
@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("accumulation", [1, 3])
def test_each_document_once_in_an_epoch_of_packed_rows(length: int, world_size: int, accumulation: int) -> None:
    packed = packed_documents(length)
    order = BatchOrder(len(packed), 2 * world_size * accumulation, 2, world_size, seed=1)
    loaders = [Loader(packed, list, order, rank, lambda b, n: n) for rank in range(world_size)]
    found = []
    for loader in loaders:
        for batch in loader:
            if loader.consume().items:
                found += [document for row in batch for document in row["documents"]]
    assert sorted(found) == list(range(length))


@cache
def packed_documents(length: int) -> list[dict]:
    lengths = np.random.default_rng(0).integers(2, 30, length)
    tokens = datasets.Dataset.from_dict({"input_ids": [[1] * n for n in lengths], "labels": [[1] * n for n in lengths]})
    return pack(tokens, 64).to_list()


def test_an_epoch_of_a_billion_rows_starts_at_once_and_in_the_middle() -> None:
    length = 10**9
    tracemalloc.start()
    loader = Loader(Numbers(length), list, BatchOrder(length, 8, 4, 1, seed=1), 0, lambda b, n: n, position=8 * 10**7)
    batches = iter(loader)
    first = next(batches)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()
    assert loader.consume().step == 10**7 + 1
    assert first == list(next(loader.order.micro_batches(0, 8 * 10**7)).rows)


def test_it_knows_how_long_it_has_waited_and_what_the_steps_took_is_not_in_it(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slowly(rows: list[int]) -> list[int]:
        now[0] += 0.02
        return rows

    loader = Loader(Numbers(40), slowly, BatchOrder(40, 8, 4, 1, seed=1), 0, lambda b, n: n)
    for _ in loader:
        loader.consume()
        now[0] += 0.05
    assert loader.waited_seconds == pytest.approx(10 * 0.02)


@pytest.mark.parametrize(("waited", "warned"), [(0.04, False), (0.1, True)])
def test_steps_that_wait_for_rows_are_warned_of(waited: float, warned: bool) -> None:
    history = [{"step_seconds": 9.0, "data_seconds": 9.0}] + [{"step_seconds": 1.0, "data_seconds": waited}] * 5
    free, full = data_warning(history, spare_cores=2), data_warning(history, spare_cores=0)
    assert (free is not None) == (full is not None) == warned
    assert free is None or ("10% of the time" in free and "`num_workers`" in free)
    assert full is None or ("10% of the time" in full and "`num_workers`" not in full)
