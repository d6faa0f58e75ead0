"""Texts of JSON files, as they stand: Arrow's reader takes texts that look like dates for points in time.

What it has changed cannot be told from the rows, so such files are read again, by Python's own reader. Numbers, true and
false in a column that tasks read as text are text too, as they are written in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scalekit.data.diagnostics import File
from scalekit.data.diagnostics.files import lines
from scalekit.data.diagnostics.json_files import document, is_document
from scalekit.data.encoders.tasks import TEXTS

_DATE = re.compile(r'"\d{4}-\d\d-\d\d([ T][0-9:.]+)?(Z|[-+][0-9:]+)?"\s*[],}]')


def as_written(files: Mapping[str, Sequence[File]], loaded: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """Splits with the texts that their files have.

    Args:
        files: of each split; none where they are not on this machine.
        loaded: the rows of each split.
        batch: how many bytes of a file are read at once, which decides on its types.
    """
    import datasets

    found = dict(loaded)
    for split, rows in loaded.items():
        features = rows.features or {}
        wanted = {name: _texts(feature, name in TEXTS) for name, feature in features.items()}
        is_late = isinstance(rows, datasets.Dataset) and _has_late_dates(files.get(split, ()), batch)
        if files.get(split) and (wanted != dict(features) or is_late):
            found[split] = read(type(rows), files[split], wanted)
    return found


def with_early_dates(files: Mapping[str, Sequence[File]], maker: Any) -> dict[str, Any]:
    """Splits whose first texts are dates and whose later ones are none, which `datasets` cannot load.

    Args:
        files: of each split, without a faulty row.
        maker: the builder that has failed.

    Returns:
        Nothing where that is not why it has failed.
    """
    import datasets

    features = maker.info.features or {}
    wanted = {name: _texts(feature, name in TEXTS) for name, feature in features.items()}
    if not files or wanted == dict(features):
        return {}
    try:
        return {split: read(datasets.Dataset, of_split, wanted) for split, of_split in files.items()}
    except datasets.exceptions.DatasetGenerationError:
        return {}


def read(kind: Any, files: Sequence[File], features: Mapping[str, Any]) -> Any:
    """Rows of files, read by Python.

    Args:
        kind: `datasets.Dataset` or `datasets.IterableDataset`.
        files: of one split.
        features: of the rows. A column among them that tasks read as text has numbers as they are written.
    """
    from datasets import Features

    state = [(file.readable.stat().st_size, file.readable.stat().st_mtime_ns) for file in files]
    given = {"files": list(files), "features": dict(features)}
    if kind.__name__ == "Dataset":
        given["state"] = state  # The cache knows files by it.
    return kind.from_generator(_rows, features=Features(features), gen_kwargs=given)


def _rows(files: Sequence[File], features: Mapping[str, Any], state: Any = None) -> Iterator[dict[str, Any]]:
    texts = [name for name, feature in features.items() if name in TEXTS and getattr(feature, "dtype", "") == "string"]
    for file in files:
        for row, written in _values(file):
            changed = {name: _text(row.get(name), written.get(name)) for name in texts}
            yield {name: row.get(name) for name in features} | changed


def _values(file: File) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each row, and the same with numbers as they are written."""
    if is_document(file):
        text = "".join(line for _, line in lines(file))
        written = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
        written = written if isinstance(written, list) else [written]
        for row, other in zip(document(file), written, strict=True):
            yield row, other if isinstance(other, dict) else {"text": other}
    else:
        for _, line in lines(file):
            if line.strip():
                yield json.loads(line), json.loads(line, parse_int=str, parse_float=str, parse_constant=str)


def _text(value: Any, written: Any) -> Any:
    if isinstance(value, bool):
        return json.dumps(value)
    return written if isinstance(value, (int, float)) else value


def _texts(feature: Any, is_text: bool) -> Any:
    """A feature with texts where points in time stand, for JSON has none; of a column of texts, also where numbers stand."""
    from datasets import LargeList, List, Value

    if isinstance(feature, Value):
        is_changed = feature.dtype.startswith(("timestamp", "date", "time"))
        is_changed |= is_text and feature.dtype.startswith(("int", "float", "bool"))
        return Value("string") if is_changed else feature
    if isinstance(feature, dict):
        return {name: _texts(each, False) for name, each in feature.items()}
    if isinstance(feature, (List, LargeList)):
        return type(feature)(_texts(feature.feature, False))
    return feature


def _has_late_dates(files: Sequence[File], batch: int) -> bool:
    """Whether a batch of its own could have held dates alone, which then were cast to the texts of the first one."""
    if len(files) < 2 and all(file.readable.stat().st_size <= batch for file in files):
        return False
    return any(_DATE.search(line) for file in files for _, line in lines(file))
