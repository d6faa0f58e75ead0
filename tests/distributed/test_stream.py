"""Streams on real ranks: they run out together, and a job that was killed goes on on another number of them."""

import json
from pathlib import Path

import pytest

from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.sampling.stream_order import StreamOrder
from tests.support.processes import ProcessesError, torchrun
from tests.support.streams import as_it_is, count_rows, stream

ROWS, BATCH = 211, 12

Seen = dict[tuple[int, int], list]
"""Samples of the global batch, places and rows of each micro-batch, by its step and index."""


def alone(shards: int) -> Seen:
    """Two epochs on one rank."""
    loader = StreamLoader(
        stream(ROWS, shards),
        as_it_is,
        as_it_is,
        StreamOrder(shards, BATCH, 1, 1, seed=5, shuffle_rows=20),
        0,
        count_rows,
    )
    found: Seen = {}
    for _ in range(2):
        for own in loader:
            micro = loader.consume()
            if micro.items:
                found[micro.step, micro.index] = [micro.samples, list(micro.rows), [row["id"] for row in own]]
    return found


def seen(folder: Path) -> Seen:
    """What ranks have run; every time that a micro-batch was run, it was the same."""
    found: Seen = {}
    for path in folder.glob("seen-*"):
        for line in path.read_text().splitlines():
            step, index, *rest = json.loads(line)
            assert found.setdefault((step, index), rest) == rest
    return found


@pytest.mark.parametrize(("shards", "ranks"), [(1, 2), (6, 3), (8, 3)])
def test_ranks_run_out_together_and_have_run_each_row_once(shards: int, ranks: int, tmp_path: Path) -> None:
    torchrun("stream", tmp_path, ROWS, shards, BATCH, nproc=ranks, timeout_seconds=120)
    expected = alone(shards)
    assert seen(tmp_path) == expected
    assert sorted(row for _, _, own in expected.values() for row in own) == sorted([*range(ROWS), *range(ROWS)])


def test_a_job_that_is_killed_twice_goes_on_on_other_ranks(tmp_path: Path) -> None:
    for ranks, stop in ((2, 4), (3, 21)):
        with pytest.raises(ProcessesError, match="SIGKILL"):
            torchrun("stream", tmp_path, ROWS, 8, BATCH, stop, nproc=ranks, timeout_seconds=120)
    torchrun("stream", tmp_path, ROWS, 8, BATCH, nproc=2, timeout_seconds=120)
    assert seen(tmp_path) == alone(8)
    resumed = {int(path.name.split("-")[2]) for path in tmp_path.glob("seen-*")}
    assert resumed == {0, 3, 20}
