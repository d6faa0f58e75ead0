"""JSON: a row a line, or a file that is one piece."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from scalekit.data.diagnostics.files import Fault, File, Row, lines, not_utf8
from scalekit.data.diagnostics.kinds import (
    ITEM,
    JUDGED,
    TYPED,
    Kinds,
    Where,
    is_json,
    kind_of,
    schema_kinds,
    short,
    walk,
)


def _rows(file: File) -> Iterator[Row]:
    if is_document(file):
        yield from _document_rows(file)
    else:
        yield from (_row(number, line) for number, line in lines(file) if line.strip())


def _row(number: int, line: str) -> Row:
    if why := not_utf8(line):
        return Row(number, [line], why=why, fix="Save the file as UTF-8")
    try:
        value = json.loads(line)
    except ValueError as error:
        said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Row(number, [line], why=f"it is no JSON: {said}")
    return Row(number, [line], value, _no_object(value))


def _no_object(value: Any) -> str:
    return "" if isinstance(value, dict) else f"it is {kind_of(value)} ({short(value)}), and a row is an object"


def is_document(file: File) -> bool:
    """Whether a file is one piece of JSON, and not one a line."""
    first = next((line for _, line in lines(file) if line.strip()), "")
    if re.match(r"\s*\[\s*(\{|$)", first):
        return True
    return file.path.suffix == ".json" and (first.lstrip().startswith("[") or not is_json(first))


def document(file: File) -> list[Any]:
    """The rows of a file that is one piece of JSON.

    Raises:
        ValueError: it is none.
    """
    text = "".join(line for _, line in lines(file))
    if why := not_utf8(text):
        raise ValueError(why)
    whole = json.loads(text)
    rows = whole if isinstance(whole, list) else [whole]
    return [{"text": row} for row in rows] if rows and isinstance(rows[0], str) else rows


def _document_rows(file: File) -> Iterator[Row]:
    fix = "Fix the file, or save it as JSON lines, of which bad ones can be left out"
    try:
        values = document(file)
    except ValueError as error:
        at = f"line {getattr(error, 'lineno', 1)}"
        yield Row(0, [], None, f"the file is no JSON: {error}", fix, at)
        return
    for number, value in enumerate(values):
        yield Row(0, [], value, _no_object(value), fix, f"row {number}")


def _kinds(files: Sequence[File], encoded: frozenset[Where] = frozenset()) -> Kinds:
    good = (row.value for file in files for row in _rows(file) if not row.why)
    return Kinds(islice(good, JUDGED), encoded)


# Why files cannot be loaded.


def faults(files: Sequence[File]) -> Iterator[Fault]:
    """Rows that cannot be read, or are unlike most."""
    kinds = _kinds(files)
    for file in files:
        good: list[Row] = []
        for row in _rows(file):
            if row.why:
                yield row.fault(file)
            elif why := kinds.fault(row.value):
                yield row.fault(file, why, TYPED)
            elif row.text:
                good.append(row)
                if len(good) == JUDGED:
                    yield from _arrow_faults(file, good)
                    good = []
        yield from _arrow_faults(file, good)


def _arrow_faults(file: File, rows: list[Row]) -> Iterator[Fault]:
    """Rows that are JSON to Python and not to Arrow: a key twice, half a surrogate pair ..."""
    if rows and _arrow_refuses("".join(row.text[0] for row in rows)):
        for row in rows:
            reason = _arrow_refuses(row.text[0])
            if reason and "changed from" not in reason:  # a list of mixed kinds, which `Json` takes
                yield row.fault(file, f"Arrow cannot read it: {reason}")


def _arrow_refuses(text: str) -> str:
    import pyarrow as pa
    import pyarrow.json

    content = text.encode()
    try:
        pyarrow.json.read_json(io.BytesIO(content), read_options=pyarrow.json.ReadOptions(block_size=len(content) + 1))
    except pa.ArrowException as error:
        return re.sub(r" in row \d+$", "", str(error).removeprefix("JSON parse error: "))
    return ""


def late_columns(files: Sequence[File], batch: int) -> Iterator[Fault]:
    """`datasets` settles the columns by the first file's first batch."""
    known: set[str] = set()
    size = 0
    for file in files:
        for row in _rows(file):
            late = set(row.value) - known
            if late and (file is not files[0] or size > batch):
                fix = f"Give the first row of {files[0].name} that column too; its value may be null"
                why = f"the column {min(late)!r} comes too late: the first rows have none"
                yield replace(row.fault(file, why, fix), stop=0)
                return
            known |= late
            size += row.size


def empty_lines(files: Sequence[File], why: str = "it is empty") -> Iterator[Fault]:
    """Among rows that need `Json`, `datasets` cannot read these."""
    for file in files:
        empty = () if is_document(file) else (each for each in lines(file) if not each[1].strip())
        yield from (Row(number, [line], None, why, "Take it out").fault(file) for number, line in empty)


# What was loaded as something else.


def is_certain(files: Sequence[File], rows: Mapping[str, Any], batch: int) -> bool:
    """Whether nothing can have changed: a single batch has types of its own; of others, and of `Json`, rows have to tell."""
    features = next(iter(rows.values())).features
    single = len(files) == 1 and files[0].path.stat().st_size <= batch
    return single and not any(_encoded(features)) and not _has_objects(features) and _is_utf8(rows)


def changed(files: Sequence[File], rows: Mapping[str, Any], batch: int) -> Iterator[Fault]:
    """Rows of each split that are not what the files say."""
    features = next(iter(rows.values())).features
    encoded = frozenset(_encoded(features))
    if encoded or not _is_utf8(rows) or not all(_arrow_agrees(file, features.arrow_schema) for file in files):
        yield from _changed_rows(files, encoded)
    elif _has_objects(features) and _keys_differ(files[0], batch):
        # With an empty line in the first batch, `datasets` does not see that they differ, and gives all objects all keys.
        yield from empty_lines(files, "it is empty, for which `datasets` adds keys to objects")


def _changed_rows(files: Sequence[File], encoded: frozenset[Where]) -> Iterator[Fault]:
    """Rows that are unlike most, or no UTF-8; where there are none, those that `Json` changes."""
    kinds = _kinds(files, encoded)
    conversions: list[Fault] = []
    mixed = False
    for file in files:
        for row in _rows(file):
            fault = None
            if row.why:
                fault = row.fault(file) if not_utf8("".join(row.text)) else None
            elif why := kinds.fault(row.value):
                fault = row.fault(file, why, TYPED)
            elif why := kinds.conversion(row.value):
                conversions.append(row.fault(file, why, "Write it as a list of parts as well"))
            if fault:
                mixed = True
                yield fault
    if not mixed:
        yield from conversions


def _encoded(feature: Any, where: Where = ()) -> Iterator[Where]:
    """Where features hold `Json`."""
    import datasets

    if isinstance(feature, datasets.Json):
        yield where
    elif isinstance(feature, dict):
        for name, each in feature.items():
            yield from _encoded(each, (*where, name))
    elif hasattr(feature, "feature"):
        yield from _encoded(feature.feature, (*where, ITEM))


def _has_objects(features: Any) -> bool:
    return any(kind == "an object" for _, kind in schema_kinds(features.arrow_schema))


def _keys_differ(file: File, batch: int) -> bool:
    """Whether objects at one place have different keys, in a file's first batch."""
    keys: dict[Where, Any] = {}
    size = 0
    for row in _rows(file):
        for where, kind, value in walk(row.value):
            if kind == "an object" and keys.setdefault(where, value.keys()) != value.keys():
                return True
        size += row.size
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
