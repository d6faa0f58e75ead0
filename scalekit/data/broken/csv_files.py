"""X."""

from __future__ import annotations

# CSV.


def _rows(file: File) -> Iterator[Row]:
    """Records, the header first; a value is the list of fields."""
    csv.field_size_limit(2**31 - 1)  # Documents are longer than the 128 KiB of Python's own limit.
    lines: Iterable[tuple[int, str]] = lines(file)
    while True:
        tape = _Tape(lines)
        for fields in csv.reader(tape, delimiter=file.separator):
            taken = tape.take()
            number, text = taken[0][0], [line for _, line in taken]
            if tape.ended:  # within a record
                yield Row(number, text[:1], None, "a quotation mark opens here and is never closed")
                lines = taken[1:]
                break
            if fields:
                yield Row(number, text, fields, not_utf8("".join(text)) or "", "Save the file as UTF-8")
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


def _faults(files: Sequence[File]) -> Iterator[Fault]:
    for file in files:
        rows = _rows(file)
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


def _headers(files: Sequence[File]) -> Iterator[Fault]:
    first = next(_rows(files[0])).value
    for file in files[1:]:
        header = next(_rows(file)).value
        if sorted(header) != sorted(first):
            why = f"its columns are {', '.join(header)}; those of {files[0].name} are {', '.join(first)}"
            yield Fault(file.name, "line 1", why, "Give all files the same columns")


def _not_numbers(files: Sequence[File]) -> Iterator[Fault]:
    """A column that begins as numbers is one of numbers to `datasets`."""
    kinds = Kinds(islice((row for file in files for _, row in _values(file)), JUDGED))
    numbers = {where[0] for where, kind in kinds.expected.items() if kind == "a number"}
    for file in files:
        for row, values in _values(file):
            why = kinds.fault({column: value for column, value in values.items() if column in numbers})
            if why:
                yield row.fault(file, why, TYPED)


def _values(file: File) -> Iterator[tuple[Row, dict[str, Any]]]:
    rows = _rows(file)
    header = next(rows).value
    for row in rows:
        yield row, {column: _value(field) for column, field in zip(header, row.value, strict=False)}


def _value(field: str) -> Any:
    try:
        return float(field)
    except ValueError:
        return field if field.strip().lower() not in ("", "na", "n/a", "null", "none", "nan") else None


def _changed(files: Mapping[str, Sequence[File]], rows: Mapping[str, Any], batch: int) -> Iterator[Fault]:
    flat = [file for of_split in files.values() for file in of_split]
    if any(map(_has_wide_top, flat)):
        # pandas takes the first field of each row for its name, and drops it.
        yield from _faults(flat)
        return
    for split, of_split in files.items():
        if len(of_split) > 1 or len(rows[split]) > batch:
            yield from _texts_changed(of_split, rows[split], batch)


def _has_wide_top(file: File) -> bool:
    top = [row.value for row in islice(_rows(file), 2) if not row.why]
    return len(top) == 2 and len(top[1]) > len(top[0])


def _texts_changed(files: Sequence[File], rows: Any, batch: int) -> Iterator[Fault]:
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
                        why = f"the column {name!r} holds texts, but {short(said[row])} would be read as {short(have[row])}"
                        at = place(files, start + row).removeprefix(f"{file.name}, ")
                        yield Fault(file.name, at, why, "Save the data as JSON lines, which tell texts from numbers")
                        return
                start += len(chunk)
