"""X."""

from __future__ import annotations

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


# JSON.


def _faults(
    files: Sequence[File], encoded: frozenset[Where] = frozenset(), loaded: bool = False
) -> Iterator[Fault]:
    """Rows that cannot be read or are unlike most; once `loaded`, the latter only, and those that `Json` changes."""
    good = (row.value for file in files for row in _rows(file) if not row.why)
    kinds = Kinds(islice(good, JUDGED), encoded)
    conversions: list[Fault] = []
    mixed = False
    for file in files:
        for fault in _file_faults(file, kinds, loaded, conversions):
            mixed = True
            yield fault
    if not mixed:
        yield from conversions


def _file_faults(file: File, kinds: Kinds, loaded: bool, conversions: list[Fault]) -> Iterator[Fault]:
    good: list[Row] = []
    for row in _rows(file):
        why = "" if row.why else kinds.fault(row.value)
        if why:
            yield row.fault(file, why, TYPED)
        elif row.why:
            if not loaded or not_utf8("".join(row.text)):
                yield row.fault(file)
        elif not loaded and row.text:
            good.append(row)
            if len(good) == JUDGED:
                yield from _arrow_faults(file, good)
                good = []
        elif why := kinds.conversion(row.value):
            conversions.append(row.fault(file, why, "Write it as a list of parts as well"))
    yield from _arrow_faults(file, good)


def _arrow_faults(file: File, rows: list[Row]) -> Iterator[Fault]:
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


def _rows(file: File) -> Iterator[Row]:
    if _is_document(file):
        yield from _document_rows(file)
        return
    yield from (_row(number, line) for number, line in lines(file) if line.strip())


def _document_rows(file: File) -> Iterator[Row]:
    mend = "Mend the file, or save it as JSON lines, of which bad ones can be left out"
    try:
        values = _document(file)
    except ValueError as error:
        yield Row(f"line {getattr(error, 'lineno', 1)}", 0, [], None, f"the file is no JSON: {error}", mend)
        return
    for number, value in enumerate(values):
        yield Row(f"row {number}", 0, [], value, "" if isinstance(value, dict) else _no_object(value), mend)


def _row(number: int, line: str) -> Row:
    if why := not_utf8(line):
        return Row(number, [line], None, why, "Save the file as UTF-8")
    try:
        value = json.loads(line)
    except ValueError as error:
        said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Row(number, [line], None, f"it is no JSON: {said}")
    return Row(number, [line], value, "" if isinstance(value, dict) else _no_object(value))


def _no_object(value: Any) -> str:
    kind = next((kind for _, kind, _ in kind((), value)), "null")
    return f"it is {kind} ({short(value)}), and a row is an object"


def _is_document(file: File) -> bool:
    """Whether a file is one piece of JSON, and not one a line."""
    first = next((line for _, line in lines(file) if line.strip()), "")
    if re.match(r"\s*\[\s*(\{|$)", first):
        return True
    return file.path.suffix == ".json" and (first.lstrip().startswith("[") or not is_json(first))


def _document(file: File) -> list[Any]:
    text = "".join(line for _, line in lines(file))
    if why := not_utf8(text):
        raise ValueError(why)
    whole = json.loads(text)
    rows = whole if isinstance(whole, list) else [whole]
    return [{"text": row} for row in rows] if rows and isinstance(rows[0], str) else rows


def _changed(files: Sequence[File], rows: Mapping[str, Any], batch: int) -> Iterator[Fault]:
    features = next(iter(rows.values())).features
    encoded = frozenset(_encoded(features))
    if encoded or not _is_utf8(rows) or not all(_arrow_agrees(file, features.arrow_schema) for file in files):
        yield from _faults(files, encoded, loaded=True)
    elif _has_objects(features) and _keys_differ(files[0], batch):
        # With an empty line in the first batch, `datasets` does not see that they differ, and gives all objects all keys.
        yield from _empty_lines(files, "it is empty, for which `datasets` adds keys to objects")


def _empty_lines(files: Sequence[File], why: str = "it is empty") -> Iterator[Fault]:
    """Among rows that need `Json`, `datasets` cannot read these."""
    for file in files:
        empty = () if _is_document(file) else (each for each in lines(file) if not each[1].strip())
        yield from (Row(number, [line], None, why, "Take it out").fault(file) for number, line in empty)


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


def _late_columns(files: Sequence[File], batch: int) -> Iterator[Fault]:
    """`datasets` settles the columns by the first file's first batch."""
    known: set[str] = set()
    size = 0
    for file in files:
        for row in _rows(file):
            late = set(row.value or ()) - known
            if late and (file is not files[0] or size > batch):
                mend = f"Give the first row of {files[0].name} that column too; its value may be null"
                why = f"the column {min(late)!r} comes too late: the first rows have none"
                yield replace(row.fault(file, why, mend), stop=0)
                return
            known |= late
            size += len("".join(row.text).encode(errors="surrogateescape"))
