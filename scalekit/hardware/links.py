"""What gloo's collectives take among processes on this machine's CPU, measured once and kept.

The ranks are threads of this process, each with a group of its own: they talk over the same sockets as processes do, and share
the cores and the memory with each other as those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from statistics import median
from typing import Any

from scalekit.hardware.measure import kept

COLLECTIVES = ("all_reduce", "all_gather", "collective")
"""all_reduce, all_gather: bytes a second that each rank sends in a ring (Patarasuk and Yuan 2009). collective: seconds of one
of a few numbers in the middle of work, since ranks are never there at the same moment."""

ASSUMED = {"all_reduce": 1e9, "all_gather": 4e8, "collective": 1e-3}
"""Where gloo cannot be tried out: about what was seen over loopback on servers."""

_MOST_RANKS = 8
_NUMBERS = 2**20
_LARGE_TURNS, _SMALL_TURNS = 5, 40
_TIMEOUT = timedelta(seconds=30)


@lru_cache
def collective_rates(threads: int, processes: int) -> Mapping[str, float]:
    """`COLLECTIVES` among so many processes of this machine, with torch's number of threads."""
    try:
        return kept("links", COLLECTIVES, threads, lambda: _time_collectives(min(processes, _MOST_RANKS)), processes)
    except (RuntimeError, OSError, ImportError):  # no gloo in this build of torch, or no sockets
        return ASSUMED


def _time_collectives(ranks: int) -> Mapping[str, float]:
    from torch.distributed import HashStore  # type: ignore[attr-defined]

    store = HashStore()
    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(lambda rank: _rank(store, rank, ranks), range(ranks)))
    return found[0]


def _rank(store: Any, rank: int, ranks: int) -> Mapping[str, float]:
    import torch
    from torch.distributed import ProcessGroupGloo

    group: Any = ProcessGroupGloo(store, rank, ranks, _TIMEOUT)
    numbers = torch.zeros(_NUMBERS * ranks, dtype=torch.float32, device="cpu")
    few, square = numbers[:4].clone(), torch.ones(256, 256, dtype=torch.float32, device="cpu")
    gathered = [[torch.empty_like(part) for part in numbers.chunk(ranks)]]
    own = numbers.chunk(ranks)[rank]

    def work() -> None:
        torch.mm(square, square)

    def work_and_meet() -> None:
        work()
        group.allreduce([few]).wait()

    reduce = _usual(lambda: group.allreduce([numbers]).wait(), _LARGE_TURNS)
    gather = _usual(lambda: group.allgather(gathered, [own]).wait(), _LARGE_TURNS)
    meeting = _usual(work_and_meet, _SMALL_TURNS) - _usual(work, _SMALL_TURNS)
    sent_bytes = (ranks - 1) / ranks * numbers.nbytes
    return {
        "all_reduce": 2 * sent_bytes / reduce,
        "all_gather": sent_bytes / gather,
        "collective": max(meeting, 1e-5),
    }


def _usual(run: Callable[[], object], turns: int) -> float:
    run()
    found = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)
