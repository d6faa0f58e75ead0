"""Rows are encoded once: before there are processes that could wait for one another, by every core, and kept.

What is kept stands in the data sets' own cache under a fingerprint of the rows, the encoder and its settings. A node's first
process makes it while the others wait on a file lock, which has no time-out; it appears whole or not at all.
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from scalekit.data.encoders.base import Encoder, Row, refused, tried, undecoded
from scalekit.data.packing.packing import list_lengths
from scalekit.data.sources.data_part import Skipped
from scalekit.errors import EmptyDataError, RowError
from scalekit.utils.log import duration, log

_VERSION = 2
_BATCH = 1000
_SAMPLE = 200
_LONG_SECONDS = 10.0
_SECONDS_A_PROCESS = 2.0
"""Of work, below which a process of its own does not pay: the tokenizer's own threads share it then."""


@dataclass(frozen=True)
class Prepared:
    """Rows as they are kept.

    Attributes:
        rows: map-style.
        lengths: of each in tokens, shape [rows]; empty where they are no tokens.
        cut: how many were cut.
        lost_tokens: by cutting.
        skipped: what was left out.
    """

    rows: Any
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    cut: int = 0
    lost_tokens: int = 0
    skipped: tuple[Skipped, ...] = ()


def prepare(rows: Any, encoder: Encoder, name: str, name_row: Callable[[int], str], skip: bool = False) -> Prepared:
    """Encodes a Hugging Face data set, or takes what was kept of it.

    Args:
        rows: map-style.
        encoder: of the task.
        name: of the data, for messages.
        name_row: where a row came from.
        skip: whether rows that cannot be used are left out and listed, instead of refused.

    Raises:
        RowError: such a row; it is named.
        EmptyDataError: none is left.
    """
    from datasets.fingerprint import Hasher

    rows = undecoded(rows)
    fingerprint = Hasher.hash((rows._fingerprint, encoder.identity(), _VERSION))
    with _one_at_a_time(fingerprint) as path:
        kept = _encoded(rows, encoder, name, name_row, skip, path)
    skipped = _problems(kept, name_row)
    if skipped and not skip:
        raise refused(skipped[0].where, RowError(skipped[0].why))
    if skipped:
        good = np.flatnonzero(kept.data.column("problem").is_null().to_numpy())
        kept, rows = kept.select(good), rows.select(good)
    if not len(rows):
        raise EmptyDataError(
            f"no row of the {name} can be used: {'; '.join(f'{s.where}: {s.why}' for s in skipped[:3])}"
        )
    if not encoder.replaces:
        return Prepared(rows, skipped=skipped)
    lost = column(kept, "lost")
    kept = kept.remove_columns(["lost", "problem"])
    return Prepared(kept, token_lengths(kept), int((lost > 0).sum()), int(lost.sum()), skipped)


def _problems(kept: Any, name_row: Callable[[int], str]) -> tuple[Skipped, ...]:
    problems = kept.data.column("problem")
    if problems.null_count == len(problems):
        return ()
    return tuple(Skipped(name_row(place), why) for place, why in enumerate(problems.to_pylist()) if why is not None)


def column(rows: Any, name: str) -> NDArray[np.int64]:
    """A column of numbers, shape [rows]."""
    found: NDArray[np.int64] = rows.with_format("numpy", columns=[name])[:][name].astype(np.int64)
    return found


def token_lengths(rows: Any) -> NDArray[np.int64]:
    """The rows' lengths in tokens, shape [rows]."""
    return list_lengths(rows, "input_ids") if "input_ids" in rows.column_names else np.zeros(0, np.int64)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _one_at_a_time(fingerprint: str) -> Iterator[Path]:
    """Where the rows are kept, while a node's first process prepares them and the others wait to take what it kept."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE) / "scalekit"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{fingerprint}.lock"):
        yield folder / f"{fingerprint}.arrow"


def _encoded(rows: Any, encoder: Encoder, name: str, name_row: Callable[[int], str], skip: bool, path: Path) -> Any:
    processes = _kept_by(path) or _processes(rows, encoder, name)
    try:
        return rows.map(
            _encode_batch_uncollected,
            fn_kwargs={"encoder": encoder, "skip": skip},
            with_indices=True,
            batched=True,
            batch_size=_BATCH,
            remove_columns=rows.column_names,
            features=_kept_features(encoder),
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(path),
            new_fingerprint=path.stem,
            desc=f"Preparing the {name}",
        )
    except _BadRowError as error:
        raise error.named(name_row) from None


def _kept_features(encoder: Encoder) -> Any:
    from datasets import Features, Value

    return Features({**encoder.features, "problem": Value("string")})


def _kept_by(path: Path) -> int:
    """How many processes have made what is kept, each a file; 0 where nothing is."""
    if path.exists():
        return 1
    files = Counter(int(file.stem.rpartition("_")[2]) for file in path.parent.glob(f"{path.stem}_*_of_*.arrow"))
    return next((number for number, found in files.items() if found == number), 0)


def _processes(rows: Any, encoder: Encoder, name: str) -> int:
    """How many processes are worth their start, by the time that a few rows take; it says how long that will be."""
    sample = rows[:_SAMPLE]
    started = time.perf_counter()
    _encode_batch(sample, list(range(min(len(rows), _SAMPLE))), encoder, skip=True)
    seconds = (time.perf_counter() - started) * len(rows) / max(min(len(rows), _SAMPLE), 1)
    processes = max(min(cores(), int(seconds / _SECONDS_A_PROCESS)), 1)
    if seconds / processes > _LONG_SECONDS:
        text = f"{len(rows):,} rows of the {name} are prepared, by {processes} processes"
        log("preparing", f"{text}: about {duration(seconds / processes)}")
    return processes


def _encode_batch_uncollected(*args: Any, **options: Any) -> Any:
    """`_encode_batch` while Python looks for no cycles: among millions of new lists that takes longer than the work."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return _encode_batch(*args, **options)
    finally:
        if collects:
            gc.enable()


class _BadRowError(Exception):
    """Carries a row's number, and what is wrong with it, out of the process that found it."""

    def __init__(self, place: int, error: RowError) -> None:
        super().__init__(place, error)

    def named(self, name_row: Callable[[int], str]) -> RowError:
        place, error = self.args
        return refused(name_row(place), error)


def _encode_batch(columns: dict[str, list[Any]], places: list[int], encoder: Encoder, skip: bool) -> Any:
    import pyarrow as pa

    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    problems: list[str | None] = [None] * len(rows)
    try:
        encoded = encoder.encode(rows)
    except Exception:  # one of them is at fault: which, shows one by one
        encoded = [_encode_one(encoder, row, place, skip) for row, place in zip(rows, places, strict=True)]
        problems = [row.pop("problem", None) for row in encoded]
    made: dict[str, list[Any]] = {name: [row.get(name) for row in encoded] for name in encoder.features}
    return pa.table({**made, "problem": problems}, _kept_features(encoder).arrow_schema)


def _encode_one(encoder: Encoder, row: Row, place: int, skip: bool) -> Row:
    made, problem = tried(encoder.encode, row)
    if problem is None:
        return dict(made)
    if not skip:
        raise _BadRowError(place, problem) from None
    return {"problem": str(problem)}
