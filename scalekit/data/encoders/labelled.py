"""Which kind of labels a column holds, by its type, its values, and the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from scalekit.errors import ColumnError
from scalekit.models.labels import Classes, Labels, Numbers, SeveralClasses, in_order, shown

_MOST_CLASSES = 100_000
_LOOKED_AT = 64
"""Rows of a stream."""

_ONE, _SEVERAL, _NUMBERS = Classes.problem, SeveralClasses.problem, Numbers.problem


@dataclass(frozen=True)
class Head:
    """What a model says of the labels that it takes.

    Args:
        names: that it has for its outputs, one each; none where it does not say.
        is_built: whether it is there already, so that what it tells is all that there can be.
        problem: transformers' `problem_type`, or None.
    """

    names: tuple[str, ...] = ()
    is_built: bool = False
    problem: str | None = None


def labels_of(parts: list[Any], column: str, head: Head) -> Labels:
    """The labels of rows, over several data sets.

    Floating-point numbers are learned as such. Text, whole numbers and booleans are classes, unless the model says that it
    learns numbers. A list is of several classes: of their names or numbers, or one number from 0 to 1 for each class.

    Args:
        parts: Hugging Face data sets, for training and validation.
        column: with a label a row.
        head: of the model.

    Raises:
        ColumnError: labels of no known kind, or of another than the model's.
    """
    feature = _feature(parts, column)
    kinds = _kinds(parts, column, feature)
    said = head.problem or (_NUMBERS if head.is_built and len(head.names) == 1 else None)
    if said is not None and said not in kinds and head.is_built:
        raise ColumnError(
            f"the model's problem_type is {said!r}, and the column {column!r} holds {_told(feature)}, which can be learned "
            f"as {' or '.join(kinds)}: cast the column, or build the model with that problem_type"
        )
    kind = said if said in kinds else kinds[0]
    if kind == _ONE:
        return classes_of(parts, column, head)
    if kind == _NUMBERS or not _is_listed(parts, column, feature):
        return _by_output(parts, column, head, Numbers if kind == _NUMBERS else SeveralClasses)
    classes = classes_of(parts, column, head)
    return SeveralClasses(classes.names, classes)


def classes_of(parts: list[Any], column: str, head: Head) -> Classes:
    """The classes in a column, over several data sets.

    Names come from the data sets' `ClassLabel` where they have one; other text is sorted; numbers count from 0. Where the model
    tells the same classes apart already, they keep its numbers.

    Args:
        parts, head: as for `labels_of`.
        column: with a class a row, or a list of them.

    Raises:
        ColumnError: labels that are neither text nor whole numbers; parts, or data and model, that number classes in different
            ways; a stream that does not name its classes.
    """
    named = _names(parts, column)
    if named:
        return _numbered(named, head)
    if head.is_built and head.names:
        return Classes(head.names)
    if any(not hasattr(part, "data") for part in parts):
        raise ColumnError(f"a stream does not say which classes {column!r} has: cast the column to datasets.ClassLabel")
    values = {value for part in parts for value in _distinct(part, column) if value is not None}
    if values and all(isinstance(value, str) for value in values):
        return Classes(head.names if values == set(head.names) else in_order(values))
    if values and all(isinstance(value, bool) for value in values):
        return Classes(("False", "True"))
    if values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return Classes(tuple(str(number) for number in range(min(max(values) + 1, _MOST_CLASSES))))
    raise ColumnError(
        f"the column {column!r} holds no classes: give text, whole numbers from 0, booleans or a ClassLabel; a list of them "
        "for several classes a row; floating-point numbers to learn numbers"
    )


def _kinds(parts: list[Any], column: str, feature: Any) -> tuple[str, ...]:
    """What labels of a type can be learned as, the likeliest first."""
    kind = str(getattr(_innermost(feature), "dtype", "") or "")
    is_named = getattr(_innermost(feature), "names", None) is not None
    is_list = _depth(feature) > 0
    if is_named:
        return (_SEVERAL,) if is_list else (_ONE,)
    if kind.startswith("float"):
        if not is_list:
            return (_NUMBERS,)
        shares = all(0 <= value <= 1 for part in parts for value in _distinct(part, column) if value is not None)
        return (_SEVERAL, _NUMBERS) if shares else (_NUMBERS,)
    if is_list:
        return (_SEVERAL, _NUMBERS) if "int" in kind else (_SEVERAL,)
    return (_ONE,) if kind == "bool" else (_ONE, _NUMBERS)


def _is_listed(parts: list[Any], column: str, feature: Any) -> bool:
    """Whether a list names the classes that a row is of; else it has a number for each class.

    Raises:
        ColumnError: it may be either.
    """
    inner = _innermost(feature)
    if getattr(inner, "names", None) is not None or str(getattr(inner, "dtype", "")) in ("string", "large_string"):
        return True
    if str(getattr(inner, "dtype", "")).startswith("float"):
        return False
    tables = [part for part in parts if hasattr(part, "data")]
    if any(value not in (0, 1) for part in tables for value in _distinct(part, column)):
        return True
    lists = [value for part in tables for value in _values(part, column).to_pylist() if value is not None]
    if any(len(set(value)) < len(value) for value in lists):
        return False  # no row is of a class twice
    if len({len(value) for value in lists}) > 1:
        return True
    raise ColumnError(
        f"the lists in {column!r} may be of class numbers, or of 0 and 1 for each class: write the classes' names, or 0.0 and "
        "1.0 for each class"
    )


def _by_output(parts: list[Any], column: str, head: Head, kind: type[Numbers | SeveralClasses]) -> Labels:
    """Labels with a number for each of the head's outputs.

    Raises:
        ColumnError: the model has not as many.
    """
    widths = Counter(width for part in parts for width in _widths(part, column))
    count = widths.most_common(1)[0][0] if widths else 1
    if not head.is_built or not head.names:
        kept = len(head.names) == count
        return kind(head.names if kept else tuple(f"LABEL_{number}" for number in range(count)))
    if len(head.names) != count:
        raise ColumnError(
            f"the model tells {shown(head.names)} apart, and the column {column!r} has {count} number{'s' * (count > 1)} a "
            f"row: build the model with num_labels={count}, problem_type={kind.problem!r}"
        )
    return kind(head.names)


def _names(parts: list[Any], column: str) -> tuple[str, ...]:
    """The classes' names in the order of the data's numbers; none where the data does not name them."""
    features = (_innermost((part.features or {}).get(column)) for part in parts)
    found = list(dict.fromkeys(tuple(names) for each in features if (names := getattr(each, "names", None))))
    if len(found) > 1:
        raise ColumnError(
            f"the parts of the data number the classes of {column!r} in different ways: {shown(found[0])} and "
            f"{shown(found[1])}. Cast the column to one datasets.ClassLabel, or give the classes as text"
        )
    return found[0] if found else ()


def _numbered(named: tuple[str, ...], head: Head) -> Classes:
    """The data's classes, by the model's numbers where it tells the same ones apart."""
    if set(named) == set(head.names):
        return Classes(head.names, numbered=named)
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(head.names))
    if head.is_built and head.names and (len(head.names) < len(named) or not unnamed):
        raise ColumnError(
            f"the model tells {shown(head.names)} apart, and the data has {shown(named)}: build the model for the data's "
            "classes, or cast the column to the model's"
        )
    return Classes(named)


def _values(part: Any, column: str) -> Any:
    """A column, as Arrow has it; of a stream its first rows, for later ones are checked as they come."""
    from datasets import Dataset

    if not hasattr(part, "data"):
        part = Dataset.from_list(list(part.select_columns([column]).take(_LOOKED_AT)))
    return part.select_columns([column]).with_format("arrow")[:][column]


def _distinct(part: Any, column: str) -> list[Any]:
    """What a column holds, also within lists, each once."""
    import pyarrow.compute as pc

    values = _values(part, column)
    while "list" in str(values.type):
        values = pc.list_flatten(values)
    found: list[Any] = pc.unique(values).to_pylist()
    return found


def _widths(part: Any, column: str) -> list[int]:
    """How many entries each list has; none of a column without lists."""
    import pyarrow.compute as pc

    values = _values(part, column)
    found: list[int] = pc.drop_null(pc.list_value_length(values)).to_pylist() if "list" in str(values.type) else []
    return found


def _feature(parts: list[Any], column: str) -> Any:
    """The column's type; of streams that do not say it, that of the first value."""
    from datasets import Dataset

    found = next((each for part in parts if (each := (part.features or {}).get(column)) is not None), None)
    return found or Dataset.from_dict({column: _values(parts[0], column).to_pylist()}).features[column]


def _depth(feature: Any) -> int:
    """In how many lists a value stands."""
    if isinstance(feature, list):
        return 1 + _depth(feature[0])
    return 1 + _depth(feature.feature) if hasattr(feature, "feature") else 0


def _innermost(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return _innermost(feature[0]) if isinstance(feature, list) else feature


def _told(feature: Any) -> str:
    inner = _innermost(feature)
    kind = "classes" if getattr(inner, "names", None) is not None else f"{getattr(inner, 'dtype', 'unknown')} values"
    return f"lists of {kind}" if _depth(feature) else kind
