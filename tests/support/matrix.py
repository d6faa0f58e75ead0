"""Matrices of tests, of which `make test` runs the core: each row and each column of them, and not each cell."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest


class Part(NamedTuple):
    """Some cells of a column, which one set of processes runs.

    Attributes:
        column: such as a strategy.
        cells: the names of its rows.
    """

    column: Any
    cells: tuple[str, ...]


def parts(
    rows: Sequence[str], core: Mapping[Any, Iterable[str]], shown: Callable[[str], bool] = lambda row: True
) -> list[Any]:
    """Parameters for a test: a `Part`, and one of its cells; those beside the core are long.

    Args:
        rows: all.
        core: by the column, the rows that `make test` runs.
        shown: whether the test is about a row.
    """
    found = []
    for column, chosen in core.items():
        kept = tuple(row for row in rows if row in set(chosen))
        rest = tuple(row for row in rows if row not in kept)
        for cells, marks in ((kept, []), (rest, [pytest.mark.long])):
            part = Part(column, cells)
            found += [
                pytest.param(part, cell, marks=marks, id=f"{_named(column)}-{cell}") for cell in cells if shown(cell)
            ]
    return found


def _named(column: Any) -> str:
    return "-".join(map(str, column)) if isinstance(column, tuple) else str(column)
