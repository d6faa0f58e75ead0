"""Class labels: names, numbers, and what is out of range."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scalekit.errors import ColumnError, RowError

_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Labels:
    """The classes of a data set.

    Args:
        names: in the order of their numbers; numbers as text where the data has no names.
        numbered: the names in the order of the data's own numbers, where those are others.
    """

    names: tuple[str, ...]
    numbered: tuple[str, ...] = ()

    def number(self, value: Any) -> int:
        """A label's number.

        Raises:
            RowError: it is not among them.
        """
        if self.numbered and isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.numbered):
            return self._numbers[self.numbered[value]]
        if isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names):
            return value
        shown = ", ".join(self.names[:8]) + (" ..." if len(self.names) > 8 else "")
        raise RowError(f"the label {value!r} is out of range: there are {len(self.names)} classes ({shown})")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}


def labels_of(parts: list[Any], column: str, saved: tuple[str, ...], is_built: bool) -> Labels:
    """The classes in a column, over several data sets.

    Names come from the data sets' `ClassLabel` where they have one; other text is sorted; numbers count from 0. Where the model
    tells the same classes apart already, they keep its numbers.

    Args:
        parts: Hugging Face data sets, to be trained on and held out.
        column: with a label a row, or a list of them.
        saved: the names that the model has for its classes.
        is_built: whether the model has its head already, so that its classes are all that there can be.

    Raises:
        ColumnError: labels that are neither text nor whole numbers; parts, or data and model, that number classes in different
            ways; a stream that does not name its classes.
    """
    named = _names(parts, column)
    if named:
        return _numbered(named, saved, is_built)
    if is_built and saved:
        return Labels(saved)
    if any(not hasattr(part, "data") for part in parts):
        raise ColumnError(f"a stream does not say which classes {column!r} has: cast the column to datasets.ClassLabel")
    values = {value for part in parts for value in _distinct(part, column) if value is not None}
    if values and all(isinstance(value, str) for value in values):
        return Labels(saved if values == set(saved) else tuple(sorted(values)))
    if values and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        return Labels(tuple(str(number) for number in range(min(max(values) + 1, _MOST_CLASSES))))
    raise ColumnError(f"the column {column!r} holds no classes: give text, whole numbers from 0, or a ClassLabel")


def _names(parts: list[Any], column: str) -> tuple[str, ...]:
    """The classes' names in the order of the data's numbers; none where the data does not name them."""
    features = (_innermost((part.features or {}).get(column)) for part in parts)
    found = list(dict.fromkeys(tuple(names) for each in features if (names := getattr(each, "names", None))))
    if len(found) > 1:
        raise ColumnError(
            f"the parts of the data number the classes of {column!r} in different ways: {_shown(found[0])} and "
            f"{_shown(found[1])}. Cast the column to one datasets.ClassLabel, or give the classes as text"
        )
    return found[0] if found else ()


def _numbered(named: tuple[str, ...], saved: tuple[str, ...], is_built: bool) -> Labels:
    """The data's classes, by the model's numbers where it tells the same ones apart."""
    if set(named) == set(saved):
        return Labels(saved, numbered=named)
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(saved))
    if is_built and saved and (len(saved) < len(named) or not unnamed):
        raise ColumnError(
            f"the model tells {_shown(saved)} apart, and the data has {_shown(named)}: build the model for the data's classes, "
            "or cast the column to the model's"
        )
    return Labels(named)


def _shown(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:4])}{' ...' if len(names) > 4 else ''})"


def _distinct(part: Any, column: str) -> list[Any]:
    import pyarrow.compute as pc

    values = part.with_format("arrow")[:][column]
    while "list" in str(values.type):
        values = pc.list_flatten(values)
    found: list[Any] = pc.unique(values).to_pylist()
    return found


def _innermost(feature: Any) -> Any:
    while hasattr(feature, "feature"):
        feature = feature.feature
    return feature[0] if isinstance(feature, list) else feature
