"""An order of any length is a permutation that is computed place by place, and looks like chance."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekit.data.sampling.batch_order import BatchOrder
from scalekit.data.sampling.permutation import shuffled

LENGTHS = st.one_of(st.integers(1, 50), st.integers(1, 10**12))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 17, 100, 10_007, 1_000_003])
def test_every_row_once(length):
    assert np.array_equal(np.sort(shuffled(np.arange(length), length, 3, 1)), np.arange(length))


@given(length=LENGTHS, seed=st.integers(0, 2**32), epoch=st.integers(0, 10**6), start=st.integers(0, 10**12))
def test_places_are_distinct_rows_whatever_is_asked_beside_them(length, seed, epoch, start):
    places = (start + np.arange(min(length, 300))) % length
    rows = shuffled(places, length, seed, epoch)
    assert len(set(rows.tolist())) == len(places)
    assert rows.min() >= 0
    assert rows.max() < length
    assert shuffled(places[-1:], length, seed, epoch)[0] == rows[-1]


@given(length=LENGTHS, seed=st.integers(0, 1000), k=st.integers(0, 10**9), ranks=st.integers(1, 8))
def test_a_global_batch_is_the_same_rows_on_any_ranks(length, seed, k, ranks):
    size = 840  # which 1 to 8 ranks can share
    k %= -(-length // size)

    def batch(world_size: int) -> list[int]:
        order = BatchOrder(length, size, 1 if size % (105 * world_size) else 105, world_size, seed=seed)
        found: dict[int, int] = {}
        for rank in range(world_size):
            for micro in order.micro_batches(rank, k * size):
                if micro.step > k + 1:
                    break
                if not micro.filler:
                    found |= {micro.index * order.micro_batch_size + i: row for i, row in enumerate(micro.rows)}
        return [found[place] for place in sorted(found)]

    expected = shuffled(np.arange(k * size, min((k + 1) * size, length)), length, seed, 0)
    assert batch(ranks) == expected.tolist()


@pytest.mark.parametrize("length", [2, 3, 4])
def test_every_order_of_few_rows_is_as_likely(length):
    draws = 12_000
    counted = Counter(tuple(shuffled(np.arange(length), length, seed, 0)) for seed in range(draws))
    expected = draws / math.factorial(length)
    degrees = math.factorial(length) - 1
    off = sum((counted[order] - expected) ** 2 / expected for order in counted)
    assert len(counted) == math.factorial(length)
    assert off < degrees + 5 * math.sqrt(2 * degrees)  # chi-squared, five deviations above its mean


def test_neighbours_are_no_neighbours_afterwards():
    rows = shuffled(np.arange(10**6), 10**6, 0, 0)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.005
    assert abs(np.corrcoef(np.arange(10**6), rows)[0, 1]) < 0.005


def test_epochs_and_seeds_differ():
    orders = {tuple(shuffled(np.arange(50), 50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25
