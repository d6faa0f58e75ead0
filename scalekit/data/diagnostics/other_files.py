"""Files of which rows cannot be left out: Parquet, Arrow, tar, and plain text."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scalekit.data.diagnostics.files import Fault, File, lines, not_utf8
from scalekit.data.diagnostics.kinds import schema_kinds, spelled

_KINDS = {"parquet": "Parquet", "arrow": "Arrow", "webdataset": "tar"}


def not_texts(files: Sequence[File]) -> Iterator[Fault]:
    """The first line that is no UTF-8."""
    for file in files:
        for number, line in lines(file):
            if why := not_utf8(line):
                yield Fault(file.name, f"line {number}", why, "Save the file as UTF-8")
                return


def not_whole(files: Sequence[File]) -> Iterator[Fault]:
    """Files that as a whole are none of their kind: nobody can tell what was in the rest of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        why = f"it is cut short, or no {_KINDS[file.builder]} file"
        try:
            if file.builder == "parquet":
                pq.read_metadata(file.path)
            elif file.builder == "arrow":
                next(_batches(file), None)
            elif not _is_whole_tar(file.path):
                yield Fault(file.name, "", why, "Write the file again")
        except (pa.ArrowException, OSError) as error:
            yield Fault(file.name, "", f"{why} ({error})", "Write the file again")


def _is_whole_tar(path: Path) -> bool:
    """Whether it begins as a tar file and ends with the two empty blocks that every one ends with."""
    if not tarfile.is_tarfile(path):
        return False
    with open(path, "rb") as file:
        file.seek(-1024, os.SEEK_END)
        return not any(file.read())


def damaged(files: Sequence[File]) -> Iterator[Fault]:
    """Parquet and Arrow files that end before their last row, or hold what is not of their types."""
    import pyarrow as pa

    for file in files:
        row = 0
        try:
            for batch in _batches(file):
                batch.validate(full=True)
                row += len(batch)
        except (pa.ArrowException, OSError) as error:
            yield Fault(file.name, "", f"it is damaged after row {row} ({error})", "Write the file again")


def other_schemas(files: Sequence[File]) -> Iterator[Fault]:
    """Columns that the first file has as another type: `datasets` casts them, a number to a text too."""
    first = dict(schema_kinds(_schema(files[0])))
    for file in files[1:]:
        for where, kind in schema_kinds(_schema(file)):
            if first.get(where, kind) != kind:
                why = f"{spelled(where)} is {kind} here, and {first[where]} in {files[0].name}"
                yield Fault(file.name, "", why, "Write all files with one schema")
                break


def length(file: File) -> int:
    """Rows of a Parquet or Arrow file."""
    import pyarrow.parquet as pq

    if file.builder == "parquet":
        return int(pq.read_metadata(file.path).num_rows)
    return sum(len(batch) for batch in _batches(file))


def _batches(file: File) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.builder == "parquet":
        yield from pq.ParquetFile(file.path).iter_batches()
        return
    with pa.memory_map(str(file.path)) as content:
        reader = _reader(content)
        if isinstance(reader, pa.ipc.RecordBatchStreamReader):
            yield from reader
        else:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _schema(file: File) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.builder == "parquet":
        return pq.read_schema(file.path)
    with pa.memory_map(str(file.path)) as content:
        return _reader(content).schema


def _reader(content: Any) -> Any:
    """Of either format that Arrow files have."""
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(content)
    except pa.ArrowInvalid:
        return pa.ipc.open_file(content)
