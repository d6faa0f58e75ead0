"""A file of rows, the lines and rows of one, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from scalekit.errors import DataError, RowError
from scalekit.utils.paths import cache_folder


@dataclass(frozen=True)
class File:
    """A file of rows.

    Attributes:
        path: where it is.
        name: what the user knows it by.
        builder: the name of the `datasets` builder that reads it: ``"json"``, ``"csv"`` ...
        separator: between a row's fields, of ``"csv"``.
        left_out: lines that are not read, from 1.
        copy: of the file without these lines.
    """

    path: Path
    name: str
    builder: str
    separator: str = ","
    left_out: tuple[int, ...] = ()
    copy: Path | None = None

    @property
    def readable(self) -> Path:
        """What `datasets` is to read."""
        return self.copy or self.path


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row, or with a whole file.

    Attributes:
        file: its name.
        at: the place in it, such as ``"line 13"``.
        why, fix: what is wrong, and what to do about it.
        start, stop: the lines (from 1; of a list: the rows, from 0) that can be left out; none where the file is at fault.
    """

    file: str
    at: str
    why: str
    fix: str
    start: int = 0
    stop: int = 0

    @property
    def where(self) -> str:
        return ", ".join(each for each in (self.file, self.at) if each)

    def error(self) -> DataError:
        skip = ", or leave such rows out with on_bad_row='skip'" if self.stop else ""
        return (RowError if self.at else DataError)(f"{self.where}: {self.why}. {self.fix}{skip}")


@dataclass(frozen=True)
class Row:
    """A row of a file of text.

    Attributes:
        line: its first, from 1; 0 of a row that cannot be left out.
        text: its lines; none of such a row.
        value: what it holds.
        why, fix: why it cannot be read, if it cannot, and what to do about it.
        at: the place in the file, where it is not the line.
    """

    line: int
    text: list[str]
    value: Any = None
    why: str = ""
    fix: str = "Fix the row"
    at: str = ""

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(len(line.encode(errors="surrogateescape")) for line in self.text)

    def fault(self, file: File, why: str = "", fix: str = "") -> Fault:
        stop = self.line + len(self.text)
        return Fault(file.name, self.at or f"line {self.line}", why or self.why, fix or self.fix, self.line, stop)


def lines(file: File) -> Iterator[tuple[int, str]]:
    """The lines that are not left out, with their numbers. Bytes that are no UTF-8 come as surrogates, to be written back."""
    newline = "\n" if file.builder == "json" else ""
    left_out = set(file.left_out)
    with open(file.path, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as content:
        yield from (each for each in enumerate(content, 1) if each[0] not in left_out)


def not_utf8(text: str) -> str:
    """Which byte of a text is no UTF-8, if one is not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"byte {len(text[: error.start].encode()) + 1} of the line, {ord(text[error.start]) - 0xDC00:#x}, is no UTF-8"
    return ""


def cleaned(file: File, faults: Iterable[Fault]) -> File:
    """A file without its faults, and with a copy that has none; one without faults as it is."""
    bad = {line for fault in faults if fault.file == file.name for line in range(fault.start, fault.stop)}
    if not bad:
        return file
    file = replace(file, left_out=tuple(sorted(bad.union(file.left_out))))
    with open(file.path, "rb") as content:
        key = file_digest(content, "sha256").hexdigest() + repr(file.left_out)
    folder = cache_folder() / "cleaned"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{sha256(key.encode()).hexdigest()}{file.path.suffix}"
    if not copy.is_file():
        beside = copy.with_name(f"{copy.name}.{os.getpid()}")
        with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as target:
            target.writelines(line for _, line in lines(file))
        beside.replace(copy)
    return replace(file, copy=copy)
