"""Class labels: names, numbers, and what is out of range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scalekit.errors import ColumnError, RowError

_MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Labels:
    """The classes of a data set.

    Args:
        names: in the order of their numbers; numbers as text where the data has no names.
    """

    names: tuple[str, ...]

    def number(self, value: Any) -> int:
        """A label's number.

        Raises:
            RowError: it is not among them.
        """
        if isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.names):
            return value
        shown = ", ".join(self.names[:8]) + (" ..." if len(self.names) > 8 else "")
        raise RowError(f"the label {value!r} is out of range: there are {len(self.names)} classes ({shown})")

    @property
    def _numbers(self) -> dict[str, int]:
        found: dict[str, int] | None = self.__dict__.get("numbers")
        if found is None:
            found = {name: number for number, name in enumerate(self.names)}
            object.__setattr__(self, "numbers", found)
        return found


def labels_of(parts: list[Any], column: str, saved: tuple[str, ...], is_built: bool) -> Labels:
    """The classes in a column, over several data sets.

    Names come from the data set's `ClassLabel` where it has one; other text is sorted; numbers count from 0. Where the model
    tells the same classes apart already, they keep its numbers.

    Args:
        parts: Hugging Face data sets.
        column: with a label a row, or a list of them.
        saved: the names that the model has for its classes.
        is_built: whether the model has its head already, so that its classes are all that there can be.

    Raises:
        ColumnError: labels that are neither text nor whole numbers; a stream that does not name its classes.
    """
    for part in parts:
        feature = _innermost((part.features or {}).get(column))
        if getattr(feature, "names", None):
            return Labels(tuple(feature.names))
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
