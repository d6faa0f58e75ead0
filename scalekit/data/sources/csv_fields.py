"""The fields of CSV files: a field is text, and a column of plain numbers is one of numbers.

CSV has no types, and pandas guesses them: the words NA, null and None become missing values, and 001 becomes 1. So all
fields are read as they stand. A column becomes one of numbers only where nothing of its text is lost by that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

from scalekit.data.diagnostics.kinds import JUDGED
from scalekit.data.encoders.tasks import TEXTS
from scalekit.errors import RowError

_NUMBER = re.compile(r"(?!-0$)-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[-+]?[0-9]+)?")
_MISSING = frozenset({"NA", "N/A", "n/a", "<NA>", "#N/A", "null", "NULL", "None", "nan", "NaN"})
"""Words that stand for a missing number, in a column that otherwise holds numbers alone."""

_INT64 = range(-(2**63), 2**63)


def as_text(maker: Any) -> dict[str, Any]:
    """Options for a builder of CSV files, by which it reads each field as it stands; an empty one is missing.

    Args:
        maker: the builder without these options. Columns whose types its author declares keep them.
    """
    import pandas as pd
    from datasets import Features, Value

    files = list(chain.from_iterable((maker.config.data_files or {}).values()))
    declared = maker.info.features
    if declared is None:
        options = {**maker.config.pd_read_csv_kwargs, "nrows": 0, "chunksize": None}
        try:
            names = pd.read_csv(files[0], **options).columns
        except (ValueError, OSError, IndexError):
            return {}  # It cannot be loaded either, and what is wrong is sought then.
        declared = Features({str(name): Value("string") for name in names})
    usual = sorted({*_MISSING, ""})
    missing = {name: [""] if _is_text(feature) else usual for name, feature in declared.items()}
    return {"features": declared, "keep_default_na": False, "na_values": missing}


def with_numbers(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Splits of one data set with numbers in columns that hold nothing else, in all splits.

    A column that tasks read as text stays text. Of a stream, the first rows tell, and a later row that is unlike them is
    refused as it is read.
    """
    first = next(iter(splits.values()))
    names = [name for name, feature in (first.features or {}).items() if name not in TEXTS and _is_text(feature)]
    kinds = {name: kind for name in names if (kind := number_type(_fields(splits.values(), name)))}
    return {split: _converted(rows, kinds) if kinds else rows for split, rows in splits.items()}


def number_type(fields: Iterable[str]) -> str:
    """The type of a column of numbers, ``"int64"`` or ``"float64"``; nothing of one that is text.

    It is one of numbers where each field is what writing its number gives (``3``, ``0.5``, ``-1.25``), if need be with as
    many decimals as all others have (``5.00``), and no two fields are the same number.

    Args:
        fields: of the column, each once.
    """
    numbers: dict[float, str] = {}
    kind, decimals, plain = "int64", set[int](), True
    for field in fields:
        if field in _MISSING:
            continue
        if not _NUMBER.fullmatch(field) or numbers.setdefault(float(field), field) != field:
            return ""
        decimals.add(len(field.partition(".")[2]))
        if not re.fullmatch("-?[0-9]+", field):
            kind = "float64"
            plain = plain and repr(float(field)) == field
        elif int(field) not in _INT64:
            return ""
    is_fixed = len(decimals) == 1 and all(f"{number:.{max(decimals)}f}" == field for number, field in numbers.items())
    return kind if numbers and (plain or is_fixed) else ""


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _fields(splits: Iterable[Any], name: str) -> Iterable[str]:
    """What a column holds, each field once."""
    import datasets
    import pyarrow.compute as pc

    seen: dict[str, None] = {}
    for rows in splits:
        if isinstance(rows, datasets.Dataset):
            found = pc.unique(rows.with_format("arrow")[:][name]).to_pylist()
        else:
            found = [row[name] for row in islice(rows.select_columns([name]), JUDGED)]
        seen |= dict.fromkeys(field for field in found if field is not None)
    return seen


def _converted(rows: Any, kinds: Mapping[str, str]) -> Any:
    from datasets import Value

    features = rows.features.copy()
    for name, kind in kinds.items():
        features[name] = Value(kind)
    return rows.map(partial(_numbers, dict(kinds)), batched=True, features=features)


def _numbers(kinds: Mapping[str, str], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [_number(name, kind, field) for field in rows[name]] for name, kind in kinds.items()}


def _number(name: str, kind: str, field: str | None) -> int | float | None:
    if field is None or field in _MISSING:
        return None
    if not _NUMBER.fullmatch(field) or (
        kind == "int64" and (not field.lstrip("-").isdecimal() or int(field) not in _INT64)
    ):
        raise RowError(
            f"the column {name!r} holds numbers in the first rows of the stream, and {field!r} in a later one: load it "
            "without streaming, which reads such a column as text, or write numbers throughout"
        )
    return int(field) if kind == "int64" else float(field)
