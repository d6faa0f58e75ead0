"""The kinds of values that rows hold, by the rows themselves or by an Arrow schema, and which row is unlike the others."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from numbers import Number
from typing import Any, final

import numpy as np

JUDGED = 1000  # rows; what most of them hold counts as right
ITEM = "[]"  # the step of a path into a list
TYPED = "Write one type throughout"

_KINDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    type(None): "null",
}

Where = tuple[str, ...]


@final
class Kinds:
    """What rows hold: the kind of value that most of the first ones have, for each column and what lies within.

    A key that few objects have is no field but free form, such as the arguments of a tool: what it holds is not compared.

    Args:
        rows: the first ones.
        encoded: columns, and places within, that `datasets` has turned into `Json`.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], encoded: frozenset[Where] = frozenset()) -> None:
        seen: dict[Where, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for where, kind, _ in walk(row):
                seen[where][kind] += 1
        self.expected: dict[Where, str] = {}
        for where in sorted(seen, key=len):
            above, step = where[:-1], where[-1]
            often = step == ITEM or 2 * seen[where].total() > seen[above]["an object"]
            if not above or (above in self.expected and often):
                self.expected[where] = seen[where].most_common(1)[0][0]
        self._encoded = encoded

    def fault(self, row: dict[str, Any]) -> str:
        """Why a row does not fit the others, if it does not."""
        for where, kind, value in walk(row):
            wanted = self.expected.setdefault(where, kind) if len(where) == 1 else self.expected.get(where, kind)
            # A message is a text in one row and a list of parts in another, and `Json` keeps both.
            if kind != wanted and not (len(where) > 1 and {kind, wanted} == {"text", "a list"}):
                return f"{spelled(where)} is {kind} here ({short(value)}), and {wanted} in other rows"
        return ""

    def conversion(self, row: dict[str, Any]) -> str:
        """Which text `Json` takes for what it spells, if it does."""
        for where, kind, value in walk(row):
            if kind == "text" and where in self._encoded and is_json(value):
                return (
                    f"{spelled(where)} is a text here and a list in other rows, and `datasets` would take this text "
                    f"({short(value)}) for what it spells"
                )
        return ""


def walk(value: Any, where: Where = ()) -> Iterator[tuple[Where, str, Any]]:
    """The kinds of all values in a row; of a list's plain values one of each type."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _within((*where, key), each)
    elif isinstance(value, (list, tuple)):
        plain = {type(each): each for each in value if not isinstance(each, (dict, list, tuple))}
        for each in chain(plain.values(), (each for each in value if isinstance(each, (dict, list, tuple)))):
            yield from _within((*where, ITEM), each)


def _within(where: Where, value: Any) -> Iterator[tuple[Where, str, Any]]:
    if value is not None:
        yield where, kind_of(value), value
        yield from walk(value, where)


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, np.ndarray):
        return "a list"
    if isinstance(value, np.bool_):
        return "true or false"
    return _KINDS.get(type(value)) or ("a number" if isinstance(value, Number) else type(value).__name__)


def spelled(where: Where) -> str:
    """A place in a row, for messages."""
    path = "".join(step if step == ITEM else f".{step}" for step in where).removeprefix(".")
    return f"the column {path!r}" if len(where) == 1 else repr(path)


def short(value: Any) -> str:
    """A value, for messages."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def is_json(text: str) -> bool:
    """Whether a text is a piece of JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def schema_kinds(fields: Iterable[Any], where: Where = ()) -> Iterator[tuple[Where, str]]:
    """The kinds of all fields of a schema, as `walk` gives those of a row."""
    from pyarrow import types

    for field in fields:
        kind, here = field.type, (*where, field.name)
        if types.is_struct(kind):
            yield here, "an object"
            yield from schema_kinds(kind, here)
        elif types.is_list(kind) or types.is_large_list(kind):
            yield here, "a list"
            yield from schema_kinds([kind.value_field.with_name(ITEM)], here)
        elif types.is_string(kind) or types.is_large_string(kind):
            yield here, "text"
        elif types.is_integer(kind) or types.is_floating(kind):
            yield here, "a number"
        elif not types.is_null(kind):
            yield here, str(kind)
