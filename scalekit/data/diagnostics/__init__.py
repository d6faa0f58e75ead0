"""Which file and row is to blame where data cannot be read, or would be read as something else than what it says.

`datasets` says little of it, and passes over some: a JSON column of mixed types becomes its type `Json`; after the first 10 MiB
the texts around a number are silently put in quotes, and a file whose texts are all numbers is silently cast; a CSV row that
is too long at the top silently loses its first field. Here files are read again, by row, once that happened or could have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalekit.data.diagnostics import csv_files, json_files, other_files
from scalekit.data.diagnostics.files import Fault, File, cleaned, lines
from scalekit.data.diagnostics.kinds import JUDGED, TYPED, Kinds
from scalekit.utils.files import atomic_write_text
from scalekit.utils.paths import cache_folder

__all__ = ["Fault", "File", "causes", "changed", "cleaned", "place", "unreadable"]

# Verdicts of another version of these checks are not read.
_CHECKS = sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


def causes(files: Sequence[File], batch: int, every: bool) -> list[Fault]:
    """Why files cannot be loaded; the first fault alone unless `every`. See `changed` for `batch`."""
    return _found(files, "causes", partial(_causes, files, batch), every)


def _causes(files: Sequence[File], batch: int) -> Iterator[Fault]:
    """Each search takes for granted that the ones before it found nothing."""
    builder = files[0].builder
    if builder == "json":
        searches = [json_files.faults(files), json_files.late_columns(files, batch), json_files.empty_lines(files)]
    elif builder == "csv":
        searches = [
            csv_files.without_header(files),
            csv_files.faults(files),
            csv_files.other_headers(files),
        ]
    elif builder == "text":
        searches = [other_files.not_texts(files)]
    elif builder == "webdataset":
        searches = [other_files.not_whole(files)]
    else:
        searches = [other_files.not_whole(files), other_files.damaged(files), other_files.other_schemas(files)]
    for search in searches:
        if first := next(search, None):
            yield first
            yield from search
            return


def changed(files: Mapping[str, Sequence[File]], rows: Mapping[str, Any], batch: int, every: bool) -> list[Fault]:
    """What files say and loaded rows do not; the first fault alone unless `every`.

    Args:
        files, rows: of each split.
        batch: how much of a file is read at once, which decides on its types: bytes of JSON.
        every: whether all faults are sought.
    """
    flat = [file for of_split in files.values() for file in of_split]
    builder = flat[0].builder
    search: Callable[[], Iterator[Fault]]
    if builder == "json" and not json_files.is_certain(flat, rows, batch):
        search = partial(json_files.changed, flat, rows, batch)
    elif builder == "csv":
        search = partial(csv_files.changed, files)
    elif builder == "webdataset":
        search = partial(other_files.not_whole, flat)
    elif builder in ("parquet", "arrow") and len(flat) > 1:
        search = partial(other_files.other_schemas, flat)
    else:
        return []
    return _found(flat, str(next(iter(rows.values())).features), search, every)


def _found(files: Sequence[File], what: str, search: Callable[[], Iterator[Fault]], every: bool) -> list[Fault]:
    """Seeks faults, unless that was done for the same files before."""
    state = [(str(file), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files]
    path = cache_folder() / "checked" / sha256(repr((_CHECKS, what, state)).encode()).hexdigest()
    if path.is_file():
        return [Fault(**each) for each in json.loads(path.read_text())][: None if every else 1]
    faults = list(search() if every else islice(search(), 1))
    if every or not faults:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(path, json.dumps([asdict(fault) for fault in faults]))
        except OSError:
            pass  # A cache that cannot be written is done without.
    return faults


def unreadable(rows: Sequence[dict[str, Any]]) -> Iterator[Fault]:
    """Rows of a list in Python that cannot stand in one table."""
    kinds = Kinds(rows[:JUDGED])
    for i, row in enumerate(rows):
        if why := kinds.fault(row):
            yield Fault("", f"row {i}", why, TYPED, i, i + 1)


def place(files: Sequence[File], row: int) -> str:
    """Where a row of several files stands: ``"dialogues.jsonl, row 12 (line 13)"``. Rows count from 0, lines from 1."""
    left = row
    for file in files:
        count, places = _row_lines(file, file.path.stat().st_mtime_ns)
        if left < count:
            return f"{file.name}, row {left}" + ("" if places is None else f" (line {places[left]})")
        left -= count
    return f"row {row}"


@lru_cache(maxsize=64)
def _row_lines(file: File, changed_at: int) -> tuple[int, NDArray[np.int64] | None]:
    """How many rows a file has, and the line of each where it is made of lines. It has not changed since it was kept."""
    if file.builder in ("parquet", "arrow"):
        return other_files.length(file), None
    if file.builder == "json" and json_files.is_document(file):
        return len(json_files.document(file)), None
    if file.builder == "csv":
        numbers = (row.line for row in islice(csv_files.rows(file), 1, None))
    else:
        numbers = (number for number, line in lines(file) if file.builder == "text" or line.strip())
    places = np.fromiter(numbers, np.int64)
    return len(places), places
