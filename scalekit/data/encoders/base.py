"""What every task's encoder does: rows as a user has them become what a model takes."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from scalekit.errors import DataError, RowError, ScaleKitError
from scalekit.utils.randomness import keyed, restored, seed_by

Row = dict[str, Any]


class Encoder(ABC):
    """One task's way from rows to batches.

    Attributes:
        made: the columns that `encode` makes, with their types, ``[]`` behind those of lists; such rows are kept. Where there
            are none, it only checks the rows, and they stay as they are.
        draws: whether `draw` has something to do each time that a row is read.
        pads_to_longest: whether all batches are as long as the longest row.
        is_made_in_batches: whether tokens are made with a batch, and not with a row.
    """

    made: ClassVar[Mapping[str, str]] = {}
    draws: ClassVar[bool] = False
    pads_to_longest: ClassVar[bool] = False
    is_made_in_batches: ClassVar[bool] = False

    @property
    def replaces(self) -> bool:
        """Whether `encode` makes new rows."""
        return bool(self.made)

    @property
    def features(self) -> Any:
        """What `encode` makes, as `datasets.Features`, with the tokens that are ``lost`` by cutting."""
        from datasets import Features, List, Value

        kinds = {**self.made, "lost": "int32"} if self.made else {}
        return Features(
            {name: List(Value(k.removesuffix("[]"))) if k.endswith("[]") else Value(k) for name, k in kinds.items()}
        )

    @abstractmethod
    def identity(self) -> tuple[Any, ...]:
        """Everything that `encode` depends on beside the row, as plain values."""

    @abstractmethod
    def encode(self, rows: list[Row]) -> list[Row]:
        """Each row as it is kept.

        Raises:
            RowError: one of them cannot be used; given one row alone, it says why.
        """

    def draw(self, row: Row) -> Row:
        """A kept row as it is batched; what is random in it comes from torch's, NumPy's and Python's own generators."""
        return row

    @abstractmethod
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """A batch."""


class RandomlyTransformed(torch.utils.data.Dataset[Any]):
    """Rows as they are drawn in an epoch: what is random depends on (seed, epoch, row) alone.

    Args:
        rows: map-style; kept, or a torch data set whose code may draw by itself.
        encoder: that draws; None where the rows alone do.
        seed: of the job.
        epoch: from 0.
    """

    def __init__(self, rows: Any, encoder: Encoder | None, seed: int, epoch: int = 0) -> None:
        self._rows, self._encoder, self._seed, self._epoch = rows, encoder, seed, epoch

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        with restored():
            return self._drawn(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """A micro-batch at once, which a `DataLoader` asks for."""
        with restored():
            return [self._drawn(index) for index in indices]

    def at_epoch(self, epoch: int) -> RandomlyTransformed:
        rows = self._rows.at_epoch(epoch) if hasattr(self._rows, "at_epoch") else self._rows
        return RandomlyTransformed(rows, self._encoder, self._seed, epoch)

    def _drawn(self, index: int) -> Any:
        seed_by(self._seed, self._epoch, index)
        row = self._rows[index]
        return row if self._encoder is None else self._encoder.draw(row)


def drawn_by_content(encoder: Encoder, row: Row, seed: int, epoch: int) -> Row:
    """A row of a stream as it is drawn in an epoch: it has no number, so what it holds stands for one."""
    with keyed(seed, epoch, checksum(row)):
        return encoder.draw(row)


def checksum(value: Any) -> int:
    """Of a row, the same in every process; 32 bits. Objects of unknown kinds count by their type."""
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)) and not all(isinstance(part, (int, float)) for part in value):
        data = repr([checksum(part) for part in value]).encode()
    elif isinstance(value, (list, tuple, str, bytes, bool, int, float, torch.Tensor, type(None))):
        data = repr(value).encode()
    elif hasattr(value, "tobytes"):  # arrays, and images of Pillow's
        data = value.tobytes()
    else:
        data = type(value).__qualname__.encode()
    return zlib.crc32(data)


def types_of(encoding: Any) -> list[int]:
    """A row's token types; none where all are 0, which models take them for, and some know nothing of types."""
    types = encoding.get("token_type_ids", [])
    return list(types) if any(types) else []


def typed(rows: list[Row]) -> list[Row]:
    """Rows of a batch with token types where one of them has some."""
    if any(len(row["token_type_ids"]) for row in rows):
        return [{**row, "token_type_ids": row["token_type_ids"] or [0] * len(row["input_ids"])} for row in rows]
    return [{name: value for name, value in row.items() if name != "token_type_ids"} for row in rows]


def tried(encode: Callable[[list[Any]], Sequence[Any]], row: Any) -> tuple[Any, RowError | None]:
    """A row, encoded alone; or what is wrong with it.

    Raises:
        ScaleKitError: nothing of the row's.
    """
    try:
        return encode([row])[0], None
    except RowError as error:
        return None, error
    except DataError as error:
        return None, RowError(str(error))
    except ScaleKitError:
        raise
    except Exception as error:
        return None, RowError(f"it cannot be encoded: {type(error).__name__}: {error}")


def refused(where: str, problem: RowError) -> RowError:
    """What to raise of a row that cannot be used, by its name."""
    return type(problem)(f"{where}: {problem}. Fix it, or leave such rows out: on_bad_row='skip'")


def text_of(row: Row, column: str) -> str:
    """A column's text.

    Raises:
        RowError: it is none, or empty.
    """
    value = row.get(column)
    if not isinstance(value, str):
        raise RowError(f"{column!r} is {shown(value)}, and should be text")
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return value


def shown(value: Any) -> str:
    """A value that is no text, for messages."""
    return "missing" if value is None else f"{str(value)[:40]!r} ({type(value).__name__})"


def undecoded(rows: Any) -> Any:
    """Images and sounds as bytes: the encoders decode them, and know what to say where they cannot."""
    features = getattr(rows, "features", None)
    if not features:
        return rows
    for name, feature in features.items():
        kept = _undecoded(feature)
        if kept != feature:
            rows = rows.cast_column(name, kept)
    return rows


def _undecoded(feature: Any) -> Any:
    from datasets import Audio, Image

    if isinstance(feature, (Audio, Image)):
        return replace(feature, decode=False)
    if isinstance(feature, dict):
        return {name: _undecoded(each) for name, each in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(each) for each in feature]
    return replace(feature, feature=_undecoded(feature.feature)) if hasattr(feature, "feature") else feature
