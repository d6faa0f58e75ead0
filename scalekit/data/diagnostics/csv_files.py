"""CSV: quoted fields may hold line breaks, and a row may have more fields than the header."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import final

from scalekit.data.diagnostics.files import Fault, File, Row, lines, not_utf8


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


# What was loaded as something else.


def changed(files: Mapping[str, Sequence[File]]) -> Iterator[Fault]:
    """Rows of each split that are not what its files say."""
    flat = [file for of_split in files.values() for file in of_split]
    if any(map(_has_wide_top, flat)):
        # pandas takes the first field of each row for its name, and drops it.
        yield from faults(flat)
    else:
        # Columns that only later files have would be dropped.
        yield from other_headers(flat)


def _has_wide_top(file: File) -> bool:
    top = [row.value for row in islice(rows(file), 2) if not row.why]
    return len(top) == 2 and len(top[1]) > len(top[0])
