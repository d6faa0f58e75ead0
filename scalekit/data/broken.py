"""Which file and row is to blame where data cannot be read, or would be read as something else than what it says.

`datasets` says little of it, and passes over some: a JSON column of mixed types becomes its type `Json`; after the first 10 MiB
the texts around a number are silently put in quotes, and a file whose texts are all numbers is silently cast; a CSV row that
is too long at the top silently loses its first field. Here files are read again, by row, once that happened or could have.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import file_digest, sha256
from itertools import chain, islice
from numbers import Number
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from scalekit.errors import DataError, RowError
from scalekit.files import write_at_once
from scalekit.resources import cache_folder

# Verdicts of another version of these checks are not read.
_CHECKS = sha256(Path(__file__).read_bytes()).hexdigest()
_JUDGED = 1000  # rows; what most of them hold counts as right
_ITEM = "[]"  # the step of a path into a list
_TYPED = "Write one type throughout"

_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}

Where = tuple[str, ...]


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
        why, mend: what is wrong, and what to do about it.
        start, stop: the lines (from 1; of a list: the rows, from 0) that can be left out; none where the file is at fault.
    """

    file: str
    at: str
    why: str
    mend: str
    start: int = 0
    stop: int = 0

    @property
    def where(self) -> str:
        return ", ".join(each for each in (self.file, self.at) if each)

    def error(self) -> DataError:
        skip = ", or leave such rows out with on_bad_row='skip'" if self.stop else ""
        return (RowError if self.at else DataError)(f"{self.where}: {self.why}. {self.mend}{skip}")


def causes(files: Sequence[File], batch: int, every: bool) -> list[Fault]:
    """Why files cannot be loaded; the first fault alone unless `every`. See `changed` for `batch`."""
    return _found(files, "causes", lambda: _causes(files, batch), every)


def changed(files: Mapping[str, Sequence[File]], rows: Mapping[str, Any], batch: int, every: bool) -> list[Fault]:
    """What files say and loaded rows do not; the first fault alone unless `every`.

    Args:
        files, rows: of each split.
        batch: how much of a file is read at once, which decides on its types: bytes of JSON, rows of CSV.
        every: whether all faults are sought.
    """
    flat = [file for of_split in files.values() for file in of_split]
    features = next(iter(rows.values())).features
    builder = flat[0].builder
    if builder == "json":
        # The types of a single batch are its own; of others, and of `Json`, the rows have to tell.
        single = len(flat) == 1 and flat[0].path.stat().st_size <= batch
        if single and not any(_encoded(features)) and not _has_objects(features) and _is_utf8(rows):
            return []
        return _found(flat, str(features), lambda: _json_changed(flat, rows, batch), every)
    if builder == "csv":
        return _found(flat, str(features), lambda: _csv_changed(files, rows, batch), every)
    if builder == "webdataset":
        return [fault for file in flat for fault in _unusable(file)]
    if builder in ("parquet", "arrow") and len(flat) > 1:
        return _found(flat, str(features), lambda: _schemas_changed(flat), every)
    return []


def unreadable(rows: Sequence[dict[str, Any]]) -> Iterator[Fault]:
    """Rows of a list in Python that cannot stand in one table."""
    kinds = _Kinds(rows[:_JUDGED])
    for i, row in enumerate(rows):
        why = kinds.fault(row)
        if why:
            yield Fault("", f"row {i}", why, _TYPED, i, i + 1)


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
            target.writelines(line for _, line in _lines(file))
        beside.replace(copy)
    return replace(file, copy=copy)


def place(files: Sequence[File], row: int) -> str:
    """Where a row of several files stands: ``"dialogues.jsonl, row 12 (line 13)"``. Rows count from 0, lines from 1."""
    left = row
    for file in files:
        count, lines = _row_lines(file, file.path.stat().st_mtime_ns)
        if left < count:
            return f"{file.name}, row {left}" + ("" if lines is None else f" (line {lines[left]})")
        left -= count
    return f"row {row}"


# What is known is kept.


def _found(files: Sequence[File], what: str, search: Callable[[], Iterator[Fault]], every: bool) -> list[Fault]:
    """Seeks faults, unless that was done for the same files before."""
    state = [
        (str(file), file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in files if file.path.is_file()
    ]
    path = cache_folder() / "checked" / sha256(repr((_CHECKS, what, state)).encode()).hexdigest()
    if path.is_file():
        return [Fault(**each) for each in json.loads(path.read_text())][: None if every else 1]
    faults = list(search() if every else islice(search(), 1))
    if every or not faults:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_at_once(path, json.dumps([asdict(fault) for fault in faults]))
        except OSError:
            pass  # A cache that cannot be written is done without.
    return faults


def _causes(files: Sequence[File], batch: int) -> Iterator[Fault]:
    stages: list[Callable[[], Iterator[Fault]]] = [lambda: chain.from_iterable(map(_unusable, files))]
    builder = files[0].builder
    if builder == "json":
        stages += [
            lambda: _json_faults(files),
            lambda: _json_late_columns(files, batch),
            lambda: _json_empty_lines(files),
        ]
    elif builder == "csv":
        stages += [lambda: _csv_faults(files), lambda: _csv_headers(files), lambda: _csv_not_numbers(files)]
    elif builder == "text":
        stages += [lambda: _text_faults(files)]
    elif builder in ("parquet", "arrow"):
        stages += [lambda: chain.from_iterable(map(_unreadable_rows, files)), lambda: _schemas_changed(files)]
    for stage in stages:
        faults = stage()
        first = next(faults, None)
        if first is not None:
            yield from chain([first], faults)
            return


# Kinds of values.


@final
class _Kinds:
    """What rows hold: the kind of value that most of the first ones have, for each column and what lies within.

    A key that few objects have is no field but free form, such as the arguments of a tool: what it holds is not compared.

    Args:
        rows: the first ones.
        encoded: columns, and places within, that `datasets` has turned into `Json`.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], encoded: frozenset[Where] = frozenset()) -> None:
        seen: dict[Where, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for where, kind, _ in _walk(row):
                seen[where][kind] += 1
        self.expected: dict[Where, str] = {}
        for where in sorted(seen, key=len):
            above, step = where[:-1], where[-1]
            often = step == _ITEM or 2 * seen[where].total() > seen[above]["an object"]
            if not above or (above in self.expected and often):
                self.expected[where] = seen[where].most_common(1)[0][0]
        self._encoded = encoded

    def fault(self, row: dict[str, Any]) -> str | None:
        """Why a row does not fit the others."""
        for where, kind, value in _walk(row):
            wanted = self.expected.setdefault(where, kind) if len(where) == 1 else self.expected.get(where, kind)
            # A message is a text in one row and a list of parts in another, and `Json` keeps both.
            if kind != wanted and not (len(where) > 1 and {kind, wanted} == {"text", "a list"}):
                return f"{_spelled(where)} is {kind} here ({_short(value)}), and {wanted} in other rows"
        return None

    def conversion(self, row: dict[str, Any]) -> str | None:
        """Which text `Json` takes for what it spells."""
        for where, kind, value in _walk(row):
            if kind == "text" and where in self._encoded and _is_json(value):
                return (
                    f"{_spelled(where)} is a text here and a list in other rows, and `datasets` would take this text "
                    f"({_short(value)}) for what it spells"
                )
        return None


def _walk(value: Any, where: Where = ()) -> Iterator[tuple[Where, str, Any]]:
    """The kinds of all values in a row; of a list's plain values one of each type."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _kind((*where, key), each)
    elif isinstance(value, (list, tuple)):
        plain = {type(each): each for each in value if not isinstance(each, (dict, list, tuple))}
        for each in chain(plain.values(), (each for each in value if isinstance(each, (dict, list, tuple)))):
            yield from _kind((*where, _ITEM), each)


def _kind(where: Where, value: Any) -> Iterator[tuple[Where, str, Any]]:
    if value is not None:
        yield where, _KINDS.get(type(value)) or _rare_kind(value), value
        yield from _walk(value, where)


def _rare_kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "a list"
    if isinstance(value, np.bool_):
        return "true or false"
    return "a number" if isinstance(value, Number) else type(value).__name__


def _spelled(where: Where) -> str:
    path = "".join(step if step == _ITEM else f".{step}" for step in where).removeprefix(".")
    return f"the column {path!r}" if len(where) == 1 else repr(path)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _encoded(feature: Any, where: Where = ()) -> Iterator[Where]:
    """Where features hold `Json`."""
    import datasets

    if isinstance(feature, datasets.Json):
        yield where
    elif isinstance(feature, dict):
        for name, each in feature.items():
            yield from _encoded(each, (*where, name))
    elif hasattr(feature, "feature"):
        yield from _encoded(feature.feature, (*where, _ITEM))


# Lines.


@dataclass(frozen=True)
class _Row:
    """One row of a file of text: where it stands, its lines, what it holds, and why it cannot be read."""

    at: str
    line: int
    text: list[str]
    value: Any
    why: str
    mend: str

    def fault(self, file: File, why: str = "", mend: str = "") -> Fault:
        stop = self.line + len(self.text) if self.text else 0
        return Fault(file.name, self.at, why or self.why, mend or self.mend, self.line, stop)


def _row(line: int, text: list[str], value: Any = None, why: str = "", mend: str = "Mend the row") -> _Row:
    return _Row(f"line {line}", line, text, value, why, mend)


def _lines(file: File) -> Iterator[tuple[int, str]]:
    """The lines that are not left out, with their numbers. Bytes that are no UTF-8 come as surrogates, to be written back."""
    newline = "\n" if file.builder == "json" else ""
    left_out = set(file.left_out)
    with open(file.path, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as lines:
        yield from (each for each in enumerate(lines, 1) if each[0] not in left_out)


def _not_utf8(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"byte {len(text[: error.start].encode()) + 1} of the line, {ord(text[error.start]) - 0xDC00:#x}, is no UTF-8"
    return None


@lru_cache(maxsize=64)
def _row_lines(file: File, changed_at: int) -> tuple[int, NDArray[np.int64] | None]:
    """How many rows a file has, and the line of each where it is made of lines. It has not changed since it was kept."""
    import pyarrow.parquet as pq

    if file.builder == "parquet":
        return pq.read_metadata(file.path).num_rows, None
    if file.builder == "arrow":
        return sum(len(batch) for batch in _batches(file)), None
    if file.builder == "json" and _is_document(file):
        return len(_document(file)), None
    if file.builder == "csv":
        numbers: Iterable[int] = (row.line for row in islice(_csv_rows(file), 1, None))
    else:
        numbers = (number for number, line in _lines(file) if file.builder == "text" or line.strip())
    lines = np.fromiter(numbers, np.int64)
    return len(lines), lines


# JSON.


def _json_faults(
    files: Sequence[File], encoded: frozenset[Where] = frozenset(), loaded: bool = False
) -> Iterator[Fault]:
    """Rows that cannot be read or are unlike most; once `loaded`, the latter only, and those that `Json` changes."""
    good = (row.value for file in files for row in _json_rows(file) if not row.why)
    kinds = _Kinds(islice(good, _JUDGED), encoded)
    conversions: list[Fault] = []
    mixed = False
    for file in files:
        for fault in _json_file_faults(file, kinds, loaded, conversions):
            mixed = True
            yield fault
    if not mixed:
        yield from conversions


def _json_file_faults(file: File, kinds: _Kinds, loaded: bool, conversions: list[Fault]) -> Iterator[Fault]:
    good: list[_Row] = []
    for row in _json_rows(file):
        why = "" if row.why else kinds.fault(row.value)
        if why:
            yield row.fault(file, why, _TYPED)
        elif row.why:
            if not loaded or _not_utf8("".join(row.text)):
                yield row.fault(file)
        elif not loaded and row.text:
            good.append(row)
            if len(good) == _JUDGED:
                yield from _arrow_faults(file, good)
                good = []
        elif why := kinds.conversion(row.value):
            conversions.append(row.fault(file, why, "Write it as a list of parts as well"))
    yield from _arrow_faults(file, good)


def _arrow_faults(file: File, rows: list[_Row]) -> Iterator[Fault]:
    """Rows that are JSON to Python and not to Arrow: a key twice, half a surrogate pair ..."""
    if rows and _arrow_refuses("".join(row.text[0] for row in rows)):
        for row in rows:
            reason = _arrow_refuses(row.text[0])
            if reason and "changed from" not in reason:  # a list of mixed kinds, which `Json` takes
                yield row.fault(file, f"Arrow cannot read it: {reason}")


def _arrow_refuses(lines: str) -> str | None:
    import pyarrow as pa
    import pyarrow.json

    content = lines.encode()
    try:
        pyarrow.json.read_json(io.BytesIO(content), read_options=pyarrow.json.ReadOptions(block_size=len(content) + 1))
    except pa.ArrowException as error:
        return re.sub(r" in row \d+$", "", str(error).removeprefix("JSON parse error: "))
    return None


def _json_rows(file: File) -> Iterator[_Row]:
    if _is_document(file):
        yield from _document_rows(file)
        return
    yield from (_json_row(number, line) for number, line in _lines(file) if line.strip())


def _document_rows(file: File) -> Iterator[_Row]:
    mend = "Mend the file, or save it as JSON lines, of which bad ones can be left out"
    try:
        values = _document(file)
    except ValueError as error:
        yield _Row(f"line {getattr(error, 'lineno', 1)}", 0, [], None, f"the file is no JSON: {error}", mend)
        return
    for number, value in enumerate(values):
        yield _Row(f"row {number}", 0, [], value, "" if isinstance(value, dict) else _no_object(value), mend)


def _json_row(number: int, line: str) -> _Row:
    if why := _not_utf8(line):
        return _row(number, [line], None, why, "Save the file as UTF-8")
    try:
        value = json.loads(line)
    except ValueError as error:
        said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return _row(number, [line], None, f"it is no JSON: {said}")
    return _row(number, [line], value, "" if isinstance(value, dict) else _no_object(value))


def _no_object(value: Any) -> str:
    kind = next((kind for _, kind, _ in _kind((), value)), "null")
    return f"it is {kind} ({_short(value)}), and a row is an object"


def _is_document(file: File) -> bool:
    """Whether a file is one piece of JSON, and not one a line."""
    first = next((line for _, line in _lines(file) if line.strip()), "")
    if re.match(r"\s*\[\s*(\{|$)", first):
        return True
    return file.path.suffix == ".json" and (first.lstrip().startswith("[") or not _is_json(first))


def _document(file: File) -> list[Any]:
    text = "".join(line for _, line in _lines(file))
    if why := _not_utf8(text):
        raise ValueError(why)
    whole = json.loads(text)
    rows = whole if isinstance(whole, list) else [whole]
    return [{"text": row} for row in rows] if rows and isinstance(rows[0], str) else rows


def _json_changed(files: Sequence[File], rows: Mapping[str, Any], batch: int) -> Iterator[Fault]:
    features = next(iter(rows.values())).features
    encoded = frozenset(_encoded(features))
    if encoded or not _is_utf8(rows) or not all(_arrow_agrees(file, features.arrow_schema) for file in files):
        yield from _json_faults(files, encoded, loaded=True)
    elif _has_objects(features) and _keys_differ(files[0], batch):
        # With an empty line in the first batch, `datasets` does not see that they differ, and gives all objects all keys.
        yield from _json_empty_lines(files, "it is empty, for which `datasets` adds keys to objects")


def _json_empty_lines(files: Sequence[File], why: str = "it is empty") -> Iterator[Fault]:
    """Among rows that need `Json`, `datasets` cannot read these."""
    for file in files:
        empty = () if _is_document(file) else (each for each in _lines(file) if not each[1].strip())
        yield from (_row(number, [line], None, why, "Take it out").fault(file) for number, line in empty)


def _has_objects(features: Any) -> bool:
    return any(kind == "an object" for _, kind in _schema_kinds(features.arrow_schema))


def _keys_differ(file: File, batch: int) -> bool:
    """Whether objects at one place have different keys, in a file's first batch."""
    keys: dict[Where, Any] = {}
    size = 0
    for row in _json_rows(file):
        for where, kind, value in _walk(row.value):
            if kind == "an object" and keys.setdefault(where, value.keys()) != value.keys():
                return True
        size += sum(map(len, row.text))
        if size > batch:
            break
    return False


def _is_utf8(rows: Mapping[str, Any]) -> bool:
    """Whether all texts are; neither Arrow's reader nor `datasets` asks before they are used."""
    import pyarrow as pa

    try:
        for of_split in rows.values():
            of_split.data.table.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _arrow_agrees(file: File, schema: Any) -> bool:
    """Whether Arrow's own reader finds the types of a schema in all of a file of lines."""
    import pyarrow as pa
    import pyarrow.json

    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        for _ in pyarrow.json.open_json(file.readable, pyarrow.json.ReadOptions(block_size=16 << 20), parsing):
            pass
    except pa.ArrowException:
        return False
    return True


def _json_late_columns(files: Sequence[File], batch: int) -> Iterator[Fault]:
    """`datasets` settles the columns by the first file's first batch."""
    known: set[str] = set()
    size = 0
    for file in files:
        for row in _json_rows(file):
            late = set(row.value or ()) - known
            if late and (file is not files[0] or size > batch):
                mend = f"Give the first row of {files[0].name} that column too; its value may be null"
                why = f"the column {min(late)!r} comes too late: the first rows have none"
                yield replace(row.fault(file, why, mend), stop=0)
                return
            known |= late
            size += len("".join(row.text).encode(errors="surrogateescape"))


# CSV.


def _csv_rows(file: File) -> Iterator[_Row]:
    """Records, the header first; a value is the list of fields."""
    csv.field_size_limit(2**31 - 1)  # Documents are longer than the 128 KiB of Python's own limit.
    lines: Iterable[tuple[int, str]] = _lines(file)
    while True:
        tape = _Tape(lines)
        for fields in csv.reader(tape, delimiter=file.separator):
            taken = tape.take()
            number, text = taken[0][0], [line for _, line in taken]
            if tape.ended:  # within a record
                yield _row(number, text[:1], None, "a quotation mark opens here and is never closed")
                lines = taken[1:]
                break
            if fields:
                yield _row(number, text, fields, _not_utf8("".join(text)) or "", "Save the file as UTF-8")
        else:
            return


@final
class _Tape:
    """Keeps the lines that a reader has taken, and knows whether it asked for more than there are."""

    def __init__(self, lines: Iterable[tuple[int, str]]) -> None:
        self._lines = iter(lines)
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


def _csv_faults(files: Sequence[File]) -> Iterator[Fault]:
    for file in files:
        rows = _csv_rows(file)
        header = next(rows)
        if header.why:
            yield replace(header.fault(file), stop=0)
            return
        width = len(header.value)
        for row in rows:
            if row.why:
                yield row.fault(file)
            elif len(row.value) > width:
                why = f"it has {len(row.value)} fields, and the header has {width}"
                yield row.fault(file, why, "Quote fields that hold the separator, and name every column in the header")


def _csv_headers(files: Sequence[File]) -> Iterator[Fault]:
    first = next(_csv_rows(files[0])).value
    for file in files[1:]:
        header = next(_csv_rows(file)).value
        if sorted(header) != sorted(first):
            why = f"its columns are {', '.join(header)}; those of {files[0].name} are {', '.join(first)}"
            yield Fault(file.name, "line 1", why, "Give all files the same columns")


def _csv_not_numbers(files: Sequence[File]) -> Iterator[Fault]:
    """A column that begins as numbers is one of numbers to `datasets`."""
    kinds = _Kinds(islice((row for file in files for _, row in _csv_values(file)), _JUDGED))
    numbers = {where[0] for where, kind in kinds.expected.items() if kind == "a number"}
    for file in files:
        for row, values in _csv_values(file):
            why = kinds.fault({column: value for column, value in values.items() if column in numbers})
            if why:
                yield row.fault(file, why, _TYPED)


def _csv_values(file: File) -> Iterator[tuple[_Row, dict[str, Any]]]:
    rows = _csv_rows(file)
    header = next(rows).value
    for row in rows:
        yield row, {column: _csv_value(field) for column, field in zip(header, row.value, strict=False)}


def _csv_value(field: str) -> Any:
    try:
        return float(field)
    except ValueError:
        return field if field.strip().lower() not in ("", "na", "n/a", "null", "none", "nan") else None


def _csv_changed(files: Mapping[str, Sequence[File]], rows: Mapping[str, Any], batch: int) -> Iterator[Fault]:
    flat = [file for of_split in files.values() for file in of_split]
    if any(map(_has_wide_top, flat)):
        # pandas takes the first field of each row for its name, and drops it.
        yield from _csv_faults(flat)
        return
    for split, of_split in files.items():
        if len(of_split) > 1 or len(rows[split]) > batch:
            yield from _csv_texts_changed(of_split, rows[split], batch)


def _has_wide_top(file: File) -> bool:
    top = [row.value for row in islice(_csv_rows(file), 2) if not row.why]
    return len(top) == 2 and len(top[1]) > len(top[0])


def _csv_texts_changed(files: Sequence[File], rows: Any, batch: int) -> Iterator[Fault]:
    """pandas decides batch by batch what is a number, so that '007' among texts may have become '7'."""
    import pandas as pd
    import pyarrow as pa

    texts = [
        name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
    ]
    loaded, start = rows.with_format("arrow"), 0
    for file in files if texts else ():
        with pd.read_csv(file.readable, sep=file.separator, dtype=str, chunksize=batch) as chunks:
            for chunk in chunks:
                table = loaded[start : start + len(chunk)]
                for name in texts:
                    said, have = (
                        pa.array(chunk[name], pa.string(), from_pandas=True).to_pylist(),
                        table[name].to_pylist(),
                    )
                    row = next((i for i, pair in enumerate(zip(said, have, strict=True)) if pair[0] != pair[1]), None)
                    if row is not None:
                        why = f"the column {name!r} holds texts, but {_short(said[row])} would be read as {_short(have[row])}"
                        at = place(files, start + row).removeprefix(f"{file.name}, ")
                        yield Fault(file.name, at, why, "Save the data as JSON lines, which tell texts from numbers")
                        return
                start += len(chunk)


# Other formats.


def _text_faults(files: Sequence[File]) -> Iterator[Fault]:
    for file in files:
        for number, line in _lines(file):
            if why := _not_utf8(line):
                yield Fault(file.name, f"line {number}", why, "Save the file as UTF-8")
                return


def _unusable(file: File) -> Iterator[Fault]:
    """Whether a file as a whole is one of its kind: nobody can tell what was in the rest of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.path.is_file():
        yield Fault(file.name, "", "there is no such file", "Bring it back, or leave its name out")
        return
    kind = {"parquet": "Parquet file", "arrow": "Arrow file", "webdataset": "tar file"}.get(file.builder, "")
    why = f"it is cut short, or no {kind}"
    try:
        if file.builder == "parquet":
            pq.read_metadata(file.path)
        elif file.builder == "arrow":
            next(_batches(file), None)
        elif file.builder == "webdataset" and not _is_whole_tar(file.path):
            yield Fault(file.name, "", why, "Write the file again")
        elif file.builder == "csv" and next(_csv_rows(file), None) is None:
            yield Fault(file.name, "", "it is empty, without even a header", "Leave the file out")
    except (pa.ArrowException, OSError) as error:
        yield Fault(file.name, "", f"{why} ({error})", "Write the file again")


def _is_whole_tar(path: Path) -> bool:
    """Whether it begins as a tar file and ends with the two empty blocks that every one ends with."""
    if not tarfile.is_tarfile(path):
        return False
    with open(path, "rb") as file:
        file.seek(-1024, os.SEEK_END)
        return not any(file.read())


def _unreadable_rows(file: File) -> Iterator[Fault]:
    import pyarrow as pa

    row = 0
    try:
        for batch in _batches(file):
            batch.validate(full=True)
            row += len(batch)
    except (pa.ArrowException, OSError) as error:
        yield Fault(file.name, "", f"it is damaged after row {row} ({error})", "Write the file again")


def _batches(file: File) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.builder == "parquet":
        yield from pq.ParquetFile(file.path).iter_batches()
        return
    with pa.memory_map(str(file.path)) as content:
        try:
            yield from pa.ipc.open_stream(content)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(content)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _schemas_changed(files: Sequence[File]) -> Iterator[Fault]:
    """Columns that the first file has as another type: `datasets` casts them, a number to a text too."""
    first = dict(_schema_kinds(_schema(files[0])))
    for file in files[1:]:
        for where, kind in _schema_kinds(_schema(file)):
            if first.get(where, kind) != kind:
                why = f"{_spelled(where)} is {kind} here, and {first[where]} in {files[0].name}"
                yield Fault(file.name, "", why, "Write all files with one schema")
                break


def _schema(file: File) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.builder == "parquet":
        return pq.read_schema(file.path)
    with pa.memory_map(str(file.path)) as content:
        try:
            return pa.ipc.open_stream(content).schema
        except pa.ArrowInvalid:
            return pa.ipc.open_file(content).schema


def _schema_kinds(fields: Iterable[Any], where: Where = ()) -> Iterator[tuple[Where, str]]:
    from pyarrow import types

    for field in fields:
        kind, here = field.type, (*where, field.name)
        if types.is_struct(kind):
            yield here, "an object"
            yield from _schema_kinds(kind, here)
        elif types.is_list(kind) or types.is_large_list(kind):
            yield here, "a list"
            yield from _schema_kinds([kind.value_field.with_name(_ITEM)], here)
        elif types.is_string(kind) or types.is_large_string(kind):
            yield here, "text"
        elif types.is_integer(kind) or types.is_floating(kind):
            yield here, "a number"
        elif not types.is_null(kind):
            yield here, str(kind)
