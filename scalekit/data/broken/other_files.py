"""X."""

from __future__ import annotations

# Other formats.


def _text_faults(files: Sequence[File]) -> Iterator[Fault]:
    for file in files:
        for number, line in lines(file):
            if why := not_utf8(line):
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
        elif file.builder == "csv" and next(_rows(file), None) is None:
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
    first = dict(schema_kinds(_schema(files[0])))
    for file in files[1:]:
        for where, kind in schema_kinds(_schema(file)):
            if first.get(where, kind) != kind:
                why = f"{spelled(where)} is {kind} here, and {first[where]} in {files[0].name}"
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
