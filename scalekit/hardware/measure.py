"""Rates that are measured on this machine, and what is kept of them in its cache for the next process.

A rate is the usual one of several repetitions, as a step meets it; of processes that share the machine, while all compute the
same. It is kept for a day, and for minutes where the processor was shared with others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from threading import Barrier, Event
from typing import Any

from scalekit.utils.files import atomic_write_text, exclusive_lock
from scalekit.utils.paths import cache_folder

PRODUCT_TYPES = ("float32", "bfloat16")
"""What products are timed in; float16 is left out, since nothing trains in it on a CPU."""

KEPT_SECONDS = 24 * 3600.0
"""How long a rate is good for: a machine's clock, its neighbours and its limits change."""

DISTURBED_SECONDS = 600.0
"""How long one is that was measured while others used the processor."""

QUIET_SHARE = 0.9
"""Of the time that a measurement took, the share that its thread must have run for."""

_SIZES = (256, 512, 1024)
_LONGEST_SECONDS = 0.1
_TURN_SECONDS = 0.025
_MEMORY_NUMBERS = 16 * 2**20
_CPU_INFO = Path("/proc/cpuinfo")
_CONTEXTS = "contexts.json"
_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")

Rates = Mapping[str, float]
Run = Callable[[], object]
Runs = Mapping[str, Run]


# -- what is measured -------------------------------------------------------------------------------------------------


@lru_cache
def product_flops(threads: int, processes: int = 1) -> Rates:
    """FLOP/s of square matrix products by compute type, in each of so many processes at once, with torch's threads."""
    return kept("products", PRODUCT_TYPES, threads, lambda: _time_products(threads, processes), processes)


@lru_cache
def memory_bytes_per_second(threads: int, processes: int = 1) -> float:
    """Bytes read and written by a sum in place of numbers that no cache holds, with torch's number of threads.

    So many processes share the memory. A copy would read what it overwrites without a word of it.
    """
    measured = kept("memory", ("bytes_per_second",), threads, lambda: _time_memory(threads, processes), processes)
    return measured["bytes_per_second"]


def _time_products(threads: int, processes: int) -> Rates:
    """The best rates of growing sizes; a type leaves before its next size would take long."""
    best: dict[str, float] = {}
    names: tuple[str, ...] = PRODUCT_TYPES
    for size in _SIZES:
        seconds = usual_seconds(partial(_products, names, size), threads, processes)
        best |= {name: max(best.get(name, 0.0), 2 * size**3 / seconds[name]) for name in names}
        names = tuple(name for name in names if 8 * seconds[name] < _LONGEST_SECONDS)
    return best


def _products(names: Iterable[str], size: int) -> Runs:
    import torch

    # Ones, not random numbers: the generators are the job's.
    matrices = {name: torch.ones(size, size, dtype=getattr(torch, name), device="cpu") for name in names}
    return {name: partial(torch.mm, each, each, out=torch.empty_like(each)) for name, each in matrices.items()}


def _time_memory(threads: int, processes: int) -> Rates:
    return {
        "bytes_per_second": 3 * 4 * _MEMORY_NUMBERS / usual_seconds(_sum_in_place, threads, processes)["sum"],
    }


def _sum_in_place() -> Runs:
    import torch

    source = torch.ones(_MEMORY_NUMBERS, dtype=torch.float32, device="cpu")
    return {"sum": partial(torch.zeros_like(source).add_, source)}


def usual_seconds(make: Callable[[], Runs], threads: int, processes: int = 1) -> dict[str, float]:
    """The median time of each run, in one of so many processes that do the same at once.

    The others are threads of this process: they share the memory, the caches and the clock of the processor as processes do,
    and Python's lock only between runs.

    Args:
        make: gives the runs, with tensors of their own.
        threads: torch's.
        processes: how many, of which as many compute at once as there are cores for.
    """
    others = min(processes, max(1, host_cores() // threads)) - 1
    own, theirs = make(), [make() for _ in range(others)]
    if not others:
        return _in_turns(own, threads)
    with ThreadPoolExecutor(others) as pool:
        return {name: _beside(own[name], [each[name] for each in theirs], threads, pool) for name in own}


def _beside(run: Run, theirs: list[Run], threads: int, pool: ThreadPoolExecutor) -> float:
    """The median time of a run while other threads are at theirs."""
    clock, over, ready = _clock(threads), Event(), Barrier(1 + len(theirs))

    def go_on(other: Run) -> None:
        other()
        ready.wait()
        while not over.is_set():
            other()

    at_work = [pool.submit(go_on, each) for each in theirs]
    run()
    ready.wait()
    found: list[float] = []
    end = time.perf_counter() + 2 * _TURN_SECONDS
    while len(found) < 3 or time.perf_counter() < end:
        start = clock()
        run()
        found.append(clock() - start)
    over.set()
    for each in at_work:
        each.result()
    return max(median(found), 1e-9)


def _in_turns(runs: Runs, threads: int) -> dict[str, float]:
    """The median time of each run, in turns, so that what disturbs one disturbs all.

    The first turn, which may prepare what others use, does not count; there are two more at least, and as many as fit the
    budget of each run.
    """
    clock = _clock(threads)
    found: dict[str, list[float]] = {name: [] for name in runs}
    turns, end = 0, time.perf_counter() + _TURN_SECONDS * len(runs)
    while turns < 3 or time.perf_counter() < end:
        for name, run in runs.items():
            start = clock()
            run()
            found[name].append(clock() - start)
        turns += 1
    return {name: max(median(seconds[1:]), 1e-9) for name, seconds in found.items()}


def _clock(threads: int) -> Callable[[], float]:
    """One thread's time is what it ran for, which others on the machine do not make longer; of several, one may wait for the
    others."""
    return time.thread_time if threads == 1 else time.perf_counter


# -- what is kept -----------------------------------------------------------------------------------------------------


def kept(what: str, names: tuple[str, ...], threads: int, measure: Callable[[], Rates], processes: int = 1) -> Rates:
    """A measurement of this machine: one that was made of late, or a new one, which is then kept.

    One process measures at a time, so that the ranks of a node do not disturb each other: those that wait find what the first
    has found. Where nothing can be written, each measures for itself.

    Args:
        what: a name for its file.
        names: of the rates.
        threads: torch's.
        measure: gives a rate for each name, in less than a second.
        processes: that share the machine, each with so many threads.
    """
    key = {**machine_key(threads), "processes": processes}
    digest = hashlib.sha256(json.dumps([key, processor()[1]], sort_keys=True).encode()).hexdigest()[:16]
    file = cache_folder() / f"{what}-{digest}.json"
    found = _read(file, names)
    if found is not None:
        return found
    with _undisturbed():
        found = _read(file, names)
        if found is None:
            start, ran = time.perf_counter(), time.thread_time()
            found = measure()
            share = (time.thread_time() - ran) / (time.perf_counter() - start)
            _write(file, {**key, "when": time.time(), "share": share, "rates": dict(found)})
    return found


def machine_key(threads: int) -> dict[str, Any]:
    """What rates depend on."""
    import torch

    return {
        "processor": processor()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "torch": torch.__version__,
        "threads": threads,
        "cores": host_cores(),
    }


@lru_cache
def processor() -> tuple[str, str]:
    """The processor's name and its flags, both as the system gives them; no flags where it gives none."""
    try:
        first = _CPU_INFO.read_text().split("\n\n", 1)[0]
    except OSError:
        first = ""
    lines = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    said = {name.strip(): value.strip() for name, value in lines.items()}
    return said.get("model name") or platform.processor() or platform.machine(), said.get(
        "flags", said.get("Features", "")
    )


def host_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _undisturbed() -> Iterator[None]:
    """One process of the user's measures at a time; where no lock can be had, it measures as it is."""
    lock = exclusive_lock("measure")
    try:
        lock.__enter__()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _read(file: Path, names: tuple[str, ...]) -> Rates | None:
    """What a file holds, where it is whole and young enough; None otherwise."""
    try:
        record = json.loads(file.read_text())
        rates = {name: float(record["rates"][name]) for name in names}
        age, share = time.time() - float(record["when"]), float(record["share"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_young = 0 <= age < (KEPT_SECONDS if share >= QUIET_SHARE else DISTURBED_SECONDS)
    return rates if is_young and all(0 < rate < math.inf for rate in rates.values()) else None


def _write(file: Path, record: Mapping[str, Any]) -> None:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(record, indent=1))


def remembered_contexts() -> dict[str, int]:
    """What probes have found that processes take of devices beside tensors, by `context_key`."""
    try:
        return dict(json.loads((cache_folder() / _CONTEXTS).read_text()))
    except (OSError, ValueError):
        return {}


def remember_context(key: str, context_bytes: int) -> None:
    """Keeps what a probe has found; where nothing can be written, it does not."""
    _write(cache_folder() / _CONTEXTS, {**remembered_contexts(), key: context_bytes})
