"""Where rows come from: Hugging Face data sets, hub ids, files and folders, torch data sets and loaders, mixtures."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from scalekit.config.blocks import DataBlock, MixtureBlock
from scalekit.config.checks import check_package, checked
from scalekit.config.markers import is_a
from scalekit.config.names import ON_BAD_ROW
from scalekit.data.sources import huggingface, provenance
from scalekit.data.sources.huggingface import Loaded
from scalekit.data.sources.mixture import Mixture
from scalekit.data.sources.weighted import Weighted
from scalekit.errors import ConfigError, DataError, EmptyDataError, UnknownNameError
from scalekit.utils import files

_LOADERS = {"train": "train", "validate": "val", "test": "test", "predict": "predict"}
"""Of a data module, by the stage: a LightningDataModule, or a LightningModule that makes its own loaders."""

_HELD_OUT = ("validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class Skipped:
    """A row that was left out.

    Attributes:
        where: its file and line.
        why: what is wrong with it.
    """

    where: str
    why: str


@dataclass(frozen=True)
class DataPart:
    """Rows of one kind.

    Attributes:
        rows: a `datasets.Dataset`, a map-style torch `Dataset` or a sequence; or a stream: a `datasets.IterableDataset` or a
            torch `IterableDataset`.
        weight: its share of a mixture, relative to the others'; None where there is no mixture, and of the validation set.
        name: for messages and metrics.
        name_row: where row i came from, such as ``"dialogues.jsonl, row 12 (line 13)"``; of a stream, in the order of its
            files.
    """

    rows: Any
    weight: float | None = None
    name: str = "data"
    name_row: Callable[[int], str] = provenance.in_list

    @property
    def is_stream(self) -> bool:
        """Whether the rows can only be read one after the other."""
        return _is_stream(self.rows)


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

    opened = _open_all(data, skip, seed)
    parts = tuple(each.train() for each in opened)
    _check_rows(parts)
    others: list[_Opened] = []
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
        opened = [each if is_named else each.of_stage(stage) for each in _open_all(data, on_bad_row == "skip", 0)]
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


def _from_stage(module: Any, stage: str) -> _Opened:
    """The loader that a data module has for a stage."""
    loader = _loader_of(module, stage)
    if loader is None:
        raise DataError(f"{type(module).__name__} has no {_LOADERS[stage]}_dataloader, for rows to {stage}")
    with files.exclusive_lock("prepare_data"):
        module.prepare_data()
    module.setup(stage)
    return _from_loader(loader(), seed=0)


def _loader_of(module: Any, stage: str) -> Callable[[], Any] | None:
    """What makes a data module's loader for a stage; None where it has no such method of its own."""
    from lightning.pytorch.core.hooks import DataHooks

    name = f"{_LOADERS[stage]}_dataloader"
    found = getattr(module, name, None)
    return None if getattr(found, "__func__", found) is getattr(DataHooks, name) else found


def _check_rows(parts: Sequence[DataPart]) -> None:
    for part in parts:
        if not part.is_stream and len(part.rows) == 0:
            raise EmptyDataError(f"{_called(part.name)} has no rows")


def _called(name: str) -> str:
    return f"the {name}" if name in ("data", "validation") else f"the data {name!r}"


def _open_validation(validation: Any, opened: list[_Opened], skip: bool, seed: int) -> list[_Opened]:
    try:
        return _open_all(validation, skip, seed)
    except DataError as error:
        if not (isinstance(validation, str) and re.fullmatch(r"[\w+\[\]:%]+", validation)):
            raise
        splits = ", ".join(opened[0].splits)
        raise DataError(f"{error}. Nor is it a split of {_called(opened[0].name)}, which has: {splits}") from error


@dataclass(frozen=True)
class _Opened:
    """Data as opened: its splits, and which of them is trained on."""

    splits: dict[str, DataPart]
    split: str = "train"
    weight: float | None = None
    name: str = "data"
    collate: Callable[[list[Any]], Any] | None = None
    shuffle: bool = True
    workers: int | None = None
    batch_size: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def train(self) -> DataPart:
        """The rows to train on."""
        return replace(self._pick(self.split), weight=self.weight)

    def usual(self) -> DataPart | None:
        """The first split whose name says that it is held out, and that is not trained on; none of a stream's."""
        trained_on = _names(self.split)
        usual = (name for name in _HELD_OUT if name in self.splits and name not in trained_on)
        return next((self._pick(name) for name in usual if not self.splits[name].is_stream), None)

    def of_stage(self, stage: str) -> _Opened:
        """With the split that is for a stage.

        Raises:
            DataError: there are several, and none is plainly for it.
        """
        usual = {"validate": _HELD_OUT, "test": ("test",)}.get(stage, ())
        names = list(self.splits) if len(self.splits) == 1 else [name for name in usual if name in self.splits]
        if not names:
            raise DataError(
                f"{_called(self.name)} has the splits {', '.join(self.splits)}: name the one to {stage}, as "
                "{'path': ..., 'split': ...}, or give its rows"
            )
        return replace(self, split=names[0])

    def has(self, split: str) -> bool:
        return bool(_names(split) & set(self.splits))

    def held_out(self, split: str) -> DataPart:
        """Rows of a split, none of which are trained on."""
        held = self._pick(split)
        for name, places in self._slices(split):
            for other, trained_on in self._slices(self.split):
                if name == other and places.start < trained_on.stop and trained_on.start < places.stop:
                    raise DataError(
                        f"validation={split!r} holds rows of {_called(self.name)} that are trained on (split={self.split!r}): "
                        "let them not overlap, as 'train[:90%]' and 'train[90%:]'"
                    )
        return held

    def _pick(self, split: str) -> DataPart:
        """A split's rows, or those of slices of splits."""
        slices = self._slices(split)
        if split in self.splits:
            return replace(self.splits[split], name=self.name)
        import datasets

        rows = datasets.concatenate_datasets([self.splits[name].rows.select(places) for name, places in slices])
        name_row = provenance.InSlices(tuple((self.splits[name].name_row, places) for name, places in slices))
        return DataPart(rows, None, self.name, name_row)

    def _slices(self, split: str) -> list[tuple[str, range]]:
        """What a text such as ``"train[:90%]+extra"`` stands for."""
        if split in self.splits:
            rows = self.splits[split].rows
            return [(split, range(len(rows) if hasattr(rows, "__len__") else 1))]
        missing = sorted(_names(split) - set(self.splits))
        if missing:
            raise DataError(f"{_called(self.name)} has no split {missing[0]!r}; it has: {', '.join(self.splits)}")
        if not all(provenance.is_of_datasets(part.rows, "Dataset") for part in self.splits.values()):
            raise DataError(
                f"split={split!r}: only data sets that are no streams can be sliced; name one split as a whole"
            )
        import datasets

        lengths = {name: len(part.rows) for name, part in self.splits.items()}
        try:
            slices = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        except (ValueError, AssertionError) as error:
            raise DataError(f"split={split!r} names no rows of {_called(self.name)}: {error}") from error
        places = [(each.splitname, range(each.from_, each.to)) for each in slices if each.from_ < each.to]
        if not places:
            raise EmptyDataError(f"split={split!r} names no rows of {_called(self.name)}, whose splits have: {lengths}")
        return places


def _names(split: str) -> set[str]:
    """The splits in ``"train[:90%]+test"``."""
    return {each.partition("[")[0].strip() for each in split.split("+")}


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


# Each kind of data.


def _open_all(data: Any, skip: bool, seed: int) -> list[_Opened]:
    """One, or all parts of a mixture."""
    if isinstance(data, Mapping) and "mixture" in data:
        data = _mixture(data)
    if not isinstance(data, Mixture):
        return [_open(data, skip, seed)]
    opened: list[_Opened] = []
    for number, (each, weight) in enumerate(data.parts):
        part = _open(each, skip, seed)
        if any(split.is_stream for split in part.splits.values()):
            raise DataError(
                "a stream cannot be part of a mixture yet: load it without streaming=True, or train on it alone"
            )
        if part.collate is not None:
            raise DataError("a DataLoader or LightningDataModule cannot be part of a mixture: give its data sets")
        name = f"part {number}" if part.name == "data" else part.name
        if name in [other.name for other in opened]:
            name = f"{name} ({number})"
        opened.append(replace(part, weight=float(weight), name=name))
    return opened


def _mixture(data: Mapping[str, Any]) -> Mixture:
    """A mixture as YAML has it."""
    parts = checked("data", data, MixtureBlock)["mixture"]
    return Mixture([({key: part[key] for key in part if key != "weight"}, part["weight"]) for part in parts])


def _open(data: Any, skip: bool, seed: int) -> _Opened:
    from torch.utils.data import DataLoader, Dataset

    if isinstance(data, (str, Path)):
        return _from_mapping({"path": data}, skip)
    if provenance.is_of_datasets(data, "DatasetDict", "IterableDatasetDict"):
        return _Opened({str(name): DataPart(rows) for name, rows in data.items()})
    if isinstance(data, Mapping):
        return _from_mapping(data, skip)
    if isinstance(data, Mixture):
        raise ConfigError("a mixture cannot be part of a mixture: list all parts in one")
    if isinstance(data, DataLoader) or (
        isinstance(data, (list, tuple)) and data and all(isinstance(each, DataLoader) for each in data)
    ):
        return _from_loader(data, seed)
    if hasattr(data, "train_dataloader"):
        return _from_datamodule(data, seed)
    if is_a(data, "pandas.DataFrame"):
        return _from_frame(data)
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return _from_loaded(huggingface.from_list(data, skip))
    is_known = isinstance(data, (Dataset, Sequence)) or provenance.is_of_datasets(data, "Dataset")
    if _is_stream(data) or (is_known and hasattr(data, "__len__")):
        return _Opened({"train": DataPart(data)})
    raise DataError(
        f"data of type {type(data).__name__} cannot be used. Give a Hugging Face data set, a hub id, a file or folder, a "
        "list of rows, or a torch Dataset with a length"
    )


def _from_frame(frame: Any) -> _Opened:
    import datasets

    try:
        return _Opened({"train": DataPart(datasets.Dataset.from_pandas(frame, preserve_index=False))})
    except Exception as error:  # pyarrow's, by the kind of what it cannot hold
        raise DataError(f"the DataFrame has a column that holds more than one kind of value: {error}") from error


def _is_stream(rows: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(rows, IterableDataset) or provenance.is_of_datasets(rows, "IterableDataset")


def _from_mapping(data: Mapping[str, Any], skip: bool) -> _Opened:
    data = checked("data", data, DataBlock)
    options = {key: data[key] for key in ("name", "revision") if data.get(key) is not None}
    name = data["path"]
    loaded = huggingface.from_name(name, options, bool(data.get("streaming")), skip)
    return replace(_from_loaded(loaded), name=name, split=data.get("split") or "train")


def _from_loaded(loaded: Loaded) -> _Opened:
    splits = {split: DataPart(rows, name_row=name_row) for split, (rows, name_row) in loaded.splits.items()}
    return _Opened(splits, skipped=tuple(Skipped(fault.where, fault.why) for fault in loaded.left_out))


def _from_loader(loader: Any, seed: int) -> _Opened:
    from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler

    if isinstance(loader, (list, tuple)) and len(loader) == 1:
        (loader,) = loader
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"a {type(loader).__name__} of data loaders cannot be used: give one DataLoader, or its dataset"
        )
    if loader.batch_sampler is None:
        raise DataError(
            "a DataLoader with batch_size=None gives batches that its data set has made, which cannot be split: let the data "
            "set give rows"
        )
    taken: dict[str, Any] = {
        "collate": loader.collate_fn,
        "shuffle": isinstance(loader.sampler, RandomSampler),
        "workers": loader.num_workers,
        "batch_size": loader.batch_size,
    }
    if _is_stream(loader.dataset):
        return _Opened({"train": DataPart(loader.dataset)}, **{**taken, "shuffle": False})
    sampler = loader.sampler
    if isinstance(sampler, WeightedRandomSampler):
        rows = Weighted(loader.dataset, sampler.weights, sampler.num_samples, sampler.replacement, seed)
        return _Opened({"train": DataPart(rows)}, **taken)
    own = _own_order(loader)
    if own is not None:
        raise DataError(
            f"a DataLoader with a {own} cannot be split exactly over ranks: pass its dataset, which ScaleKit shuffles and "
            "splits by itself"
        )
    return _Opened({"train": DataPart(loader.dataset)}, **taken)


def _own_order(loader: Any) -> str | None:
    """What in a DataLoader chooses rows in a way of its own; None where it takes all, shuffled or in order."""
    from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

    sampler, batches = loader.sampler, loader.batch_sampler
    if batches is not None and (type(batches) is not BatchSampler or batches.sampler is not sampler):
        return type(batches).__name__
    if isinstance(sampler, RandomSampler) and (sampler.replacement or sampler._num_samples is not None):
        return f"{type(sampler).__name__} of its own number of rows"
    takes_all = isinstance(sampler, (RandomSampler, SequentialSampler)) and hasattr(loader.dataset, "__len__")
    return None if takes_all else type(sampler).__name__


def _from_datamodule(module: Any, seed: int) -> _Opened:
    from lightning.pytorch.trainer.states import TrainerFn

    training, validation = _loader_of(module, "train"), _loader_of(module, "validate")
    if training is None:
        raise DataError(f"{type(module).__name__} has no train_dataloader, for rows to train on")
    with files.exclusive_lock("prepare_data"):
        module.prepare_data()
    module.setup(TrainerFn.FITTING)
    opened = _from_loader(training(), seed)
    held_out = validation() if validation is not None else None
    if held_out is None:
        return opened
    return replace(opened, splits=opened.splits | {"validation": _from_loader(held_out, seed).splits["train"]})
