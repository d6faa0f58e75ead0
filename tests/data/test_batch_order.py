"""Every sample once an epoch, and the same global batches on any ranks."""

import pytest

from scalekit.data.sampling.batch_order import BatchOrder
from scalekit.errors import BatchSizeError, EmptyDataError


@pytest.mark.parametrize("length", [1, 7, 100, 10_007])
@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("accumulation", [1, 3])
def test_each_row_once_an_epoch(length: int, world_size: int, accumulation: int) -> None:
    order = BatchOrder(length, 2 * world_size * accumulation, 2, world_size, seed=5)
    seen: list[int] = []
    for rank in range(world_size):
        found = list(order.micro_batches(rank, position=0))
        assert len(found) == order.micro_batches_per_epoch
        assert found[-1].step == order.steps_per_epoch
        seen += [row for micro in found if not micro.filler for row in micro.rows]
    assert sorted(seen) == list(range(length))


def test_micro_batches_do_not_depend_on_the_world() -> None:
    def micro_batches(world_size: int) -> dict:
        order = BatchOrder(50, 12, 1, world_size, seed=5)
        found = [micro for rank in range(world_size) for micro in order.micro_batches(rank, 0) if not micro.filler]
        return {(micro.step, micro.index): micro.rows for micro in found}

    assert micro_batches(1) == micro_batches(2) == micro_batches(3) == micro_batches(4)


def test_a_position_is_where_the_order_goes_on() -> None:
    order = BatchOrder(50, 8, 2, 2, seed=5)
    whole = list(order.micro_batches(1, 0))
    assert list(order.micro_batches(1, 16)) == [micro for micro in whole if micro.step > 2]
    assert next(order.micro_batches(1, 50)).step == order.steps_per_epoch + 1


def test_epochs_differ_and_seeds_differ() -> None:
    first = [t.rows for t in BatchOrder(50, 8, 8, 1, seed=5).micro_batches(0, 0)]
    assert first != [t.rows for t in BatchOrder(50, 8, 8, 1, seed=5).micro_batches(0, 50)]
    assert first != [t.rows for t in BatchOrder(50, 8, 8, 1, seed=6).micro_batches(0, 0)]


def test_a_batch_that_cannot_be_split_names_the_nearest() -> None:
    with pytest.raises(BatchSizeError, match="the nearest that can: 8, 12"):
        BatchOrder(50, 10, 2, 2)


def test_no_rows() -> None:
    with pytest.raises(EmptyDataError):
        BatchOrder(0, 2, 1, 1)
