"""Where rows come from: Hugging Face data sets, hub ids, files and folders, torch data sets and loaders, mixtures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from scalekit.config.checks import check_package
from scalekit.config.names import ON_BAD_ROW
from scalekit.data.sources import provenance
from scalekit.data.sources.data_part import DataPart, Skipped
from scalekit.data.sources.opened_source import LOADERS, Opened, called, from_loader, loader_of, open_all
from scalekit.errors import DataError, EmptyDataError, UnknownNameError
from scalekit.utils import files


@dataclass(frozen=True)
class Source:
    """Rows as they come, before a model's needs are known.

    Attributes:
        parts: what is trained on; several are a mixture.
        validation: the validation set; empty if there is none.
        collate: how the user batches them, or None.
        shuffle: whether their order may be permuted.
        workers: reading processes that the user asked for, or None.
        batch_size: of the user's loader, or None.
        skipped: rows that were left out of files.
    """

    parts: tuple[DataPart, ...]
    validation: tuple[DataPart, ...] = ()
    collate: Callable[[list[Any]], Any] | None = None
    shuffle: bool = True
    workers: int | None = None
    batch_size: int | None = None
    skipped: tuple[Skipped, ...] = ()


def read_data(data: Any, validation: Any = None, seed: int = 0, on_bad_row: str = "error") -> Source:
    """Opens a job's data.

    Args:
        data: a data set of Hugging Face's; a hub id, file, folder or pattern such as ``"shards/*.jsonl"``; a mapping with its
            `path` and, as needed, `name` (of a configuration), `split` (the rows to train on), `revision` and `streaming`;
            a list of rows; a torch `Dataset` or `DataLoader`; a `LightningDataModule`; a `Mixture`, or
            ``{"mixture": [...]}`` of mappings that each have a `weight`.
        validation: the same for the validation set; or the name of a split of `data`; or the share of `data` that it is, of
            each part of a mixture, chosen by `seed`; or None, which takes the split that is named so, where there is one.
        seed: by which that share is drawn.
        on_bad_row: ``"error"`` the data, or ``"skip"`` bad rows of JSON lines, CSV files and lists.

    Raises:
        DataError: no such data, or a kind that cannot be used.
        RowError: a row that cannot be read, or that has another type than the others.
        EmptyDataError: no rows.
        ConfigError: a mapping or a mixture that is none.
    """
    if on_bad_row not in ON_BAD_ROW:
        raise UnknownNameError("on_bad_row", on_bad_row, ON_BAD_ROW)
    skip = on_bad_row == "skip"
    from torch.utils.data import default_collate

    opened = open_all(data, skip, seed)
    parts = tuple(each.train() for each in opened)
    _check_rows(parts)
    others: list[Opened] = []
    if isinstance(validation, float):
        halves = [_hold_out(part, validation, seed) for part in parts]
        parts, held_out = tuple(rest for rest, _ in halves), [held for _, held in halves]
    elif validation is None:
        held_out = [part for part in (each.usual() for each in opened) if part is not None]
    elif isinstance(validation, str) and any(each.has(validation) for each in opened):
        held_out = [each.held_out(validation) for each in opened]
    else:
        others = _open_validation(validation, opened, skip, seed)
        held_out = [each.train() for each in others]
        if any(each.collate not in (None, default_collate, opened[0].collate) for each in others):
            raise DataError(
                "the validation set is batched like the others: give the DataLoader's dataset as `validation`"
            )
    if len(opened) == 1:
        parts = (replace(parts[0], name="data"),)
    if len(held_out) == 1:
        held_out = [replace(held_out[0], name="validation")]
    _check_rows(held_out)
    skipped = tuple(chain.from_iterable(each.skipped for each in (*opened, *others)))
    first = opened[0]
    validation_parts = tuple(replace(part, weight=None) for part in held_out)
    return Source(parts, validation_parts, first.collate, first.shuffle, first.workers, first.batch_size, skipped)


def read_once(data: Any, stage: str, on_bad_row: str = "error") -> Source:
    """Opens rows that are run once, without training.

    Args:
        data: as `read` takes it. Of a LightningDataModule it is the loader that it has for this.
        stage: ``"validate"``, ``"test"`` or ``"predict"``.
        on_bad_row: as of `read`.

    Raises:
        DataError: no such data, a stream, or a kind that cannot be used.
    """
    check_package("data", data)
    if hasattr(data, "train_dataloader"):
        opened = [_from_stage(data, stage)]
    else:
        is_named = isinstance(data, Mapping) and data.get("split") is not None
        opened = [each if is_named else each.of_stage(stage) for each in open_all(data, on_bad_row == "skip", 0)]
    parts, first = tuple(each.train() for each in opened), opened[0]
    _check_rows(parts)
    skipped = tuple(chain.from_iterable(each.skipped for each in opened))
    found = Source(parts, (), first.collate, False, first.workers, first.batch_size, skipped)
    if any(part.is_stream for part in found.parts):
        raise DataError(f"rows to {stage} are split by their places, and cannot be a stream: load them whole")
    return found


def with_column(source: Source, names: Sequence[str], value: Any) -> Source:
    """The same rows with one value in a column that they lack.

    Args:
        source: whose training rows are data sets of Hugging Face's; others stay as they are.
        names: of the column, of which rows may have another; the first is the one that is added.
        value: in each row.
    """

    def beside(part: DataPart) -> DataPart:
        if not hasattr(part.rows, "add_column") or set(names) & set(part.rows.column_names):
            return part
        return replace(part, rows=part.rows.add_column(names[0], [value] * len(part.rows)))

    return replace(source, parts=tuple(map(beside, source.parts)))


def _from_stage(module: Any, stage: str) -> Opened:
    """The loader that a data module has for a stage."""
    loader = loader_of(module, stage)
    if loader is None:
        raise DataError(f"{type(module).__name__} has no {LOADERS[stage]}_dataloader, for rows to {stage}")
    with files.exclusive_lock("prepare_data"):
        module.prepare_data()
    module.setup(stage)
    return from_loader(loader(), seed=0)


def _check_rows(parts: Sequence[DataPart]) -> None:
    for part in parts:
        if not part.is_stream and len(part.rows) == 0:
            raise EmptyDataError(f"{called(part.name)} has no rows")


def _open_validation(validation: Any, opened: list[Opened], skip: bool, seed: int) -> list[Opened]:
    try:
        return open_all(validation, skip, seed)
    except DataError as error:
        if not (isinstance(validation, str) and re.fullmatch(r"[\w+\[\]:%]+", validation)):
            raise
        splits = ", ".join(opened[0].splits)
        raise DataError(f"{error}. Nor is it a split of {called(opened[0].name)}, which has: {splits}") from error


def _hold_out(part: DataPart, share: float, seed: int) -> tuple[DataPart, DataPart]:
    """The rest of a part, and the share of it that is held out."""
    from torch.utils.data import Subset

    if not 0.0 < share < 1.0:
        raise DataError(f"validation={share} is no share between 0 and 1")
    if part.is_stream:
        raise DataError(
            "a share of a stream cannot be its validation set: give other rows, or a split of the data, as `validation`"
        )
    length = len(part.rows)
    if math.ceil(share * length) >= length:
        raise DataError(f"validation={share} of {length} rows leaves none to train on: hold out fewer")
    select = part.rows.select if provenance.is_of_datasets(part.rows, "Dataset") else partial(Subset, part.rows)
    halves = {half: select(places) for half, places in provenance.draw(length, share, seed).items()}
    rest, held = (
        replace(part, rows=halves[half], name_row=provenance.InHalf(part.name_row, length, share, seed, half))
        for half in ("train", "test")
    )
    return rest, held
