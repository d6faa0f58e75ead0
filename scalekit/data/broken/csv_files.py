"""CSV: quoted fields may hold line breaks, and pandas decides on types batch by batch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, final

from scalekit.data.broken.files import Fault, File, Row, lines, not_utf8
from scalekit.data.broken.kinds import JUDGED, TYPED, Kinds, short


def rows(file: File) -> Iterator[Row]:
    """Records, the header first; a value is the list of fields."""
    csv.field_size_limit(2**31 - 1)  # Documents are longer than the 128 KiB of Python's own limit.
    left: Iterable[tuple[int, str]] = lines(file)
    while True:
        tape = _Tape(left)
        for fields in csv.reader(tape, delimiter=file.separator):
            taken = tape.take()
            number, text = taken[0][0], [line for _, line in taken]
            if tape.ended:  # within a record
                yield Row(number, text[:1], why="a quotation mark opens here and is never closed")
                left = taken[1:]
                break
            if fields:
                yield Row(number, text, fields, not_utf8("".join(text)), "Save the file as UTF-8")
        else:
            return


@final
class _Tape:
    """Keeps the lines that a reader has taken, and knows whether it asked for more than there are."""

    def __init__(self, numbered: Iterable[tuple[int, str]]) -> None:
        self._lines = iter(numbered)
        self._taken: list[tuple[int, str]] = []
        self.ended = False

    def __iter__(self) -> _Tape:
        return self

    def __next__(self) -> str:
        each = next(self._lines, None)
        if each is None:
            self.ended = True
            raise StopIteration
        self._taken.append(each)
        return each[1]

    def take(self) -> list[tuple[int, str]]:
        taken, self._taken = self._taken, []
        return taken


# Why files cannot be loaded.


def without_header(files: Sequence[File]) -> Iterator[Fault]:
    """Files without a row."""
    for file in files:
        if next(rows(file), None) is None:
            yield Fault(file.name, "", "it is empty, without even a header", "Leave the file out")


def faults(files: Sequence[File]) -> Iterator[Fault]:
    """Rows that cannot be read, or have more fields than the header."""
    for file in files:
        records = rows(file)
        header = next(records)
        if header.why:
            yield replace(header.fault(file), stop=0)
            return
        width = len(header.value)
        for row in records:
            if row.why:
                yield row.fault(file)
            elif len(row.value) > width:
                why = f"it has {len(row.value)} fields, and the header has {width}"
                yield row.fault(file, why, "Quote fields that hold the separator, and name every column in the header")


def other_headers(files: Sequence[File]) -> Iterator[Fault]:
    """Files whose columns are not those of the first."""
    first = next(rows(files[0])).value
    for file in files[1:]:
        header = next(rows(file)).value
        if sorted(header) != sorted(first):
            why = f"its columns are {', '.join(header)}; those of {files[0].name} are {', '.join(first)}"
            yield Fault(file.name, "line 1", why, "Give all files the same columns")


def not_numbers(files: Sequence[File]) -> Iterator[Fault]:
    """A column that begins as numbers is one of numbers to `datasets`."""
    kinds = Kinds(islice((row for file in files for _, row in _values(file)), JUDGED))
    numbers = {where[0] for where, kind in kinds.expected.items() if kind == "a number"}
    for file in files:
        for row, values in _values(file):
            if why := kinds.fault({column: value for column, value in values.items() if column in numbers}):
                yield row.fault(file, why, TYPED)


def _values(file: File) -> Iterator[tuple[Row, dict[str, Any]]]:
    records = rows(file)
    header = next(records).value
    for row in records:
        yield row, {column: _value(field) for column, field in zip(header, row.value, strict=False)}


def _value(field: str) -> Any:
    try:
        return float(field)
    except ValueError:
        return field if field.strip().lower() not in ("", "na", "n/a", "null", "none", "nan") else None


# What was loaded as something else.


def changed(files: Mapping[str, Sequence[File]], loaded: Mapping[str, Any], batch: int) -> Iterator[Fault]:
    """Rows of each split that are not what its files say."""
    flat = [file for of_split in files.values() for file in of_split]
    if any(map(_has_wide_top, flat)):
        # pandas takes the first field of each row for its name, and drops it.
        yield from faults(flat)
        return
    for split, of_split in files.items():
        if len(of_split) > 1 or len(loaded[split]) > batch:
            yield from _changed_texts(of_split, loaded[split], batch)


def _has_wide_top(file: File) -> bool:
    top = [row.value for row in islice(rows(file), 2) if not row.why]
    return len(top) == 2 and len(top[1]) > len(top[0])


def _changed_texts(files: Sequence[File], loaded: Any, batch: int) -> Iterator[Fault]:
    """pandas decides batch by batch what is a number, so that '007' among texts may have become '7'."""
    import pandas as pd
    import pyarrow as pa

    dtypes = {name: getattr(feature, "dtype", "") for name, feature in loaded.features.items()}
    texts = [name for name, dtype in dtypes.items() if dtype in ("string", "large_string")]
    tables, start = loaded.with_format("arrow"), 0
    for file in files if texts else ():
        row = 0
        with pd.read_csv(file.readable, sep=file.separator, dtype=str, chunksize=batch) as chunks:
            for chunk in chunks:
                table = tables[start + row : start + row + len(chunk)]
                for name in texts:
                    said = pa.array(chunk[name], pa.string(), from_pandas=True).to_pylist()
                    have = table[name].to_pylist()
                    if said != have:
                        i = next(i for i, pair in enumerate(zip(said, have, strict=True)) if pair[0] != pair[1])
                        yield _changed_text(file, row + i, name, said[i], have[i])
                        return
                row += len(chunk)
        start += row


def _changed_text(file: File, row: int, column: str, said: str | None, have: str | None) -> Fault:
    line = next(islice(rows(file), row + 1, None)).line
    why = f"the column {column!r} holds texts, but {short(said)} would be read as {short(have)}"
    mend = "Save the data as JSON lines, which tell texts from numbers"
    return Fault(file.name, f"row {row} (line {line})", why, mend)
