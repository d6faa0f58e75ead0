"""Where a row came from: what to call row i of files, of data with a name, or of some rows of others.

Each is a function from a row's number to what the user knows it by, and travels to other processes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from scalekit.data import diagnostics
from scalekit.data.diagnostics import File
from scalekit.data.encoders.base import undecoded
from scalekit.data.sampling.permutation import shuffled


def in_list(i: int) -> str:
    """Rows that are known by their number alone."""
    return f"row {i}"


@dataclass(frozen=True)
class InFiles:
    """Rows of files, one after the other."""

    files: tuple[File, ...]

    def __call__(self, i: int) -> str:
        return diagnostics.place(self.files, i)


@dataclass(frozen=True)
class InData:
    """Rows of data that has a name."""

    name: str

    def __call__(self, i: int) -> str:
        return f"{self.name}, row {i}"


@dataclass(frozen=True)
class InRows:
    """Rows that say themselves which file they are from: an image's or a recording's, or a member of a tar file."""

    rows: Any
    column: str
    name: str

    def __call__(self, i: int) -> str:
        if self.column == "__key__":
            row = self.rows.select_columns(["__url__", "__key__"])[i]
            return f"{row['__url__']}, {row['__key__']}"
        bare = undecoded(self.rows.select_columns([self.column]))
        return str((bare[i][self.column] or {}).get("path") or f"{self.name}, row {i}")


@dataclass(frozen=True)
class InSlices:
    """Some rows of others, one slice after the other: how each of these calls its rows, and which are taken."""

    slices: tuple[tuple[Callable[[int], str], Sequence[int]], ...]

    def __call__(self, i: int) -> str:
        for name_row, places in self.slices:
            if i < len(places):
                return name_row(places[i])
            i -= len(places)
        raise IndexError(i)


@dataclass(frozen=True)
class InHalf:
    """Rows of which a share was held out: the draw is repeated where a row is asked for."""

    name_row: Callable[[int], str]
    length: int
    share: float
    seed: int
    half: str

    def __call__(self, i: int) -> str:
        return self.name_row(draw(self.length, self.share, self.seed)[self.half][i])


@lru_cache(maxsize=4)
def draw(length: int, share: float, seed: int) -> dict[str, list[int]]:
    """Places that are trained on (``"train"``) and held out (``"test"``), each in the order of the rows."""
    places = shuffled(np.arange(length), length, seed, 0)
    count = math.ceil(share * length)
    return {"train": np.sort(places[count:]).tolist(), "test": np.sort(places[:count]).tolist()}


def is_of_datasets(value: Any, *kinds: str) -> bool:
    """Whether a value is of one of these classes of `datasets`, which is not imported for it: without it there are none."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(value, tuple(getattr(datasets, kind) for kind in kinds))


def origin(name: str, builder: str, rows: Any, files: Sequence[File]) -> Callable[[int], str]:
    """What to call rows that a builder of `datasets` has loaded; `files` are none where they are not known here."""
    import datasets

    media = (datasets.Image, datasets.Audio, datasets.Video)
    if isinstance(rows, datasets.Dataset) and builder in ("webdataset", "imagefolder", "audiofolder", "videofolder"):
        columns = [column for column, feature in rows.features.items() if isinstance(feature, media)]
        columns = ["__key__"] if builder == "webdataset" else columns
        if columns:
            return InRows(rows, columns[0], name)
    return InFiles(tuple(files)) if files and builder != "webdataset" else InData(name)
