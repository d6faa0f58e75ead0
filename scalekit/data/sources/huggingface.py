"""Opens files, folders and hub ids with `datasets`, and lists of rows; bad rows are named, or left out."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from scalekit.data import diagnostics
from scalekit.data.diagnostics import Fault, File
from scalekit.data.encoders.tasks import CONVERSATIONS
from scalekit.data.sources import csv_fields, json_texts
from scalekit.data.sources.provenance import InData, InSlices, in_list, origin
from scalekit.errors import DataError, EmptyDataError

_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".tar": "webdataset",
}


_TABLES = (
    ".jsonl",
    ".ndjson",
    ".csv",
    ".tsv",
    ".parquet",
    ".arrow",
)  # of which a folder of rows consists; not its notes


@dataclass(frozen=True)
class Loaded:
    """Rows as they were loaded.

    Attributes:
        splits: the rows of each, and what to call one; see `origins`.
        left_out: the bad rows among them, which are not.
    """

    splits: dict[str, tuple[Any, Callable[[int], str]]]
    left_out: tuple[Fault, ...] = ()


def from_name(name: str, options: Mapping[str, Any], streaming: bool, skip: bool) -> Loaded:
    """Loads a file, a folder, a pattern's files, or what the hub has by that name.

    Args:
        name: of the data.
        options: for `datasets.load_dataset_builder`.
        streaming: whether rows are read as they are needed.
        skip: whether bad rows are left out.

    Raises:
        DataError: no such data, or none that can be read.
        RowError: a bad row.
        EmptyDataError: no rows but bad ones.
    """
    path = Path(name)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _from_disk(name, streaming)
    files = _files(name)
    if files:
        builder = _BUILDERS[files[0].suffix]
        options = {**options, "data_files": {"train": [glob.escape(str(file)) for file in files]}}
        options |= {"sep": "\t"} if files[0].suffix == ".tsv" else {}
        return _load(name, builder, options, streaming, skip)
    looks_local = path.suffix in _BUILDERS or name.startswith((".", "/")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise DataError(f"there is no file or folder {name}")
    _check_folder(path)
    return _load(name, name, options, streaming, skip)


def _from_disk(name: str, streaming: bool) -> Loaded:
    import datasets

    loaded = datasets.load_from_disk(name)
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    rows = {split: each.to_iterable_dataset() if streaming else each for split, each in splits.items()}
    return Loaded({split: (each, InData(name)) for split, each in rows.items()})


def _files(name: str) -> list[Path]:
    """The files that a name or a pattern stands for; none for a folder or a hub id."""
    is_pattern = re.search(r"[*?\[]", name) is not None and not Path(name).exists()
    paths = [Path(each) for each in sorted(glob.glob(name, recursive=True))] if is_pattern else [Path(name)]
    files = [path for path in paths if path.is_file()]
    missing = [path for path in paths if not path.exists()]
    if is_pattern and missing:
        raise DataError(
            f"there is no file {missing[0]}, although its name stands there: bring it back, or take the name away"
        )
    if is_pattern and not files:
        raise DataError(f"no file is named like {name}")
    endings = sorted({path.suffix for path in files})
    if len(endings) > 1:
        raise DataError(f"the files {name} are of several kinds: {', '.join(endings)}. Name those of one")
    if endings and endings[0] not in _BUILDERS:
        raise DataError(f"{files[0]} is no data file that can be read; known endings: {', '.join(_BUILDERS)}")
    return files


def _check_folder(path: Path) -> None:
    """Whether a folder's data files are of one kind: `datasets` would take the commonest, and leave the others out."""
    kinds = {_BUILDERS[file.suffix]: file for file in sorted(path.rglob("*")) if file.suffix in _TABLES}
    if path.is_dir() and len(kinds) > 1:
        names = ", ".join(os.path.relpath(file, path) for file in kinds.values())
        raise DataError(f"the folder {path} has data of several kinds, one of which alone would be read: {names}")


def _load(name: str, builder: str, options: Mapping[str, Any], streaming: bool, skip: bool) -> Loaded:
    """Loads with `datasets`. Bad rows of local files are named; on `skip` they are left out, round by round."""
    left_out: list[Fault] = []
    try:
        maker = _builder(builder, options)
    except Exception as error:
        raise _not_loaded(name, error, [], []) from error
    files = _local_files(name, maker)
    while True:
        flat = list(chain.from_iterable(files.values()))
        batch = getattr(maker.config, "chunksize", 0)
        try:
            loaded = _splits(maker, streaming)
        except Exception as error:
            faults = diagnostics.causes(flat, batch, skip) if flat else []
            if not faults:
                dated = json_texts.with_early_dates(files, maker) if maker.name == "json" else {}
                if not dated:
                    raise _not_loaded(name, error, flat, left_out) from error
                loaded = dated
                break
        else:
            faults = diagnostics.changed(files, loaded, batch, skip) if flat and not streaming else []
            if not faults:
                break
        _refuse(faults, skip)
        left_out += faults
        files = {split: [diagnostics.cleaned(file, faults) for file in each] for split, each in files.items()}
        maker = _maker(files)
    if maker.name == "csv":
        loaded = csv_fields.with_numbers(loaded)
    elif maker.name == "json":
        loaded = json_texts.as_written(files, loaded, maker.config.chunksize)
    named = {split: (rows, origin(name, maker.name, rows, files.get(split, ()))) for split, rows in loaded.items()}
    if maker.name == "text":
        named = {split: _without_blank_lines(*each) for split, each in named.items()}
    return Loaded(named, tuple(left_out))


def _without_blank_lines(rows: Any, name_row: Callable[[int], str]) -> tuple[Any, Callable[[int], str]]:
    """The lines of a text that say something."""
    import datasets

    if not isinstance(rows, datasets.Dataset):
        return rows.filter(_says), name_row
    kept = [place for place, text in enumerate(rows["text"]) if text.strip()]
    return (rows.select(kept), InSlices(((name_row, kept),))) if len(kept) < len(rows) else (rows, name_row)


def _says(row: Mapping[str, Any]) -> bool:
    return bool(row["text"].strip())


def _splits(maker: Any, streaming: bool) -> dict[str, Any]:
    if streaming:
        return {str(split): rows for split, rows in maker.as_streaming_dataset().items()}
    maker.download_and_prepare()
    return {str(split): rows for split, rows in maker.as_dataset().items()}


def _builder(builder: str, options: Mapping[str, Any]) -> Any:
    import datasets

    maker = datasets.load_dataset_builder(builder, **options)
    texts = csv_fields.as_text(maker) if maker.name == "csv" else {}
    return datasets.load_dataset_builder(builder, **options, **texts) if texts else maker


def _maker(files: Mapping[str, Sequence[File]]) -> Any:
    """The builder of files, by split."""
    first = next(chain.from_iterable(files.values()))
    separator = {"sep": first.separator} if first.builder == "csv" else {}
    paths = {split: [glob.escape(str(file.readable)) for file in each] for split, each in files.items()}
    return _builder(first.builder, {"data_files": paths, **separator})


def _local_files(name: str, maker: Any) -> dict[str, list[File]]:
    """The files that a builder reads, of each split; none where they are elsewhere, or of another kind."""
    splits = {str(split): [Path(path) for path in paths] for split, paths in (maker.config.data_files or {}).items()}
    separator = getattr(maker.config, "sep", ",")
    for path in chain.from_iterable(splits.values()):
        if not path.is_file() or _BUILDERS.get(path.suffix) != maker.name:
            return {}
    return {
        split: [File(path, _shown(name, path), maker.name, separator) for path in paths]
        for split, paths in splits.items()
    }


def _shown(name: str, path: Path) -> str:
    """A file as the user would write it."""
    return str(path) if Path(name).is_absolute() else os.path.relpath(path)


def _refuse(faults: Sequence[Fault], skip: bool) -> None:
    """Raises the first fault that is not to be left out, or cannot be."""
    for fault in faults:
        if not (skip and fault.stop):
            raise fault.error()


def _not_loaded(name: str, error: Exception, files: Sequence[File], left_out: Sequence[Fault]) -> DataError:
    if left_out:
        first = left_out[0]
        return EmptyDataError(f"{name} has no rows but bad ones, the first being {first.where}: {first.why}")
    if files and all(file.path.stat().st_size == 0 for file in files):
        return EmptyDataError(f"{name} has no rows: the file is empty")
    if files or Path(name).exists():
        return DataError(f"{name} cannot be read: {error.__cause__ or error}")
    return DataError(f"the data {name!r} is neither a folder here nor a data set that the hub gives: {error}")


def _table(columns: dict[str, list[Any]]) -> Any:
    """Columns as a data set. Turns of a conversation may differ: one says text, another one parts."""
    import datasets

    try:
        return datasets.Dataset.from_dict(columns)
    except Exception:
        rows = datasets.Dataset.from_dict(columns, on_mixed_types="use_json")
        mixed = {name for name, feature in rows.features.items() if "Json(" in str(feature)}
        if (
            not mixed
            or not mixed <= CONVERSATIONS
            or any(not isinstance(rows.features[name], datasets.List) for name in mixed)
        ):
            raise
        return rows


def from_list(data: list[dict[str, Any]], skip: bool) -> Loaded:
    """A table of rows in Python; see `from_name`."""
    columns = dict.fromkeys(column for row in data for column in row)
    try:
        rows = _table({column: [row.get(column) for row in data] for column in columns})
    except Exception as error:
        faults = list(diagnostics.unreadable(data))
        if not faults:
            raise DataError(f"the rows do not make a table: {error}") from error
    else:
        # A text beside bytes would become bytes.
        mixed = any(getattr(feature, "dtype", "") == "binary" for feature in rows.features.values())
        faults = list(diagnostics.unreadable(data)) if mixed else []
        if not faults:
            return Loaded({"train": (rows, in_list)})
    _refuse(faults, skip)
    bad = {fault.start for fault in faults}
    kept = tuple(i for i in range(len(data)) if i not in bad)
    rows, _ = from_list([data[i] for i in kept], skip=False).splits["train"]
    return Loaded({"train": (rows, InSlices(((in_list, kept),)))}, tuple(faults))
