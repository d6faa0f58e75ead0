"""Where rows come from: Hugging Face data sets, hub ids, files and folders, torch data sets and loaders, mixtures."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from scalekit.data import broken
from scalekit.data.broken import Fault, File
from scalekit.data.mixture import Mixture
from scalekit.data.permutation import shuffled
from scalekit.errors import ConfigError, DataError, EmptyDataError, UnknownNameError

ON_BAD_ROW = ("refuse", "skip")

_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
    ".tar": "webdataset",
}
_HELD_OUT = ("validation", "valid", "val", "dev", "test")
_KEYS = ("path", "name", "split", "revision", "streaming", "weight")


@dataclass(frozen=True)
class Skipped:
    """A row that was left out.

    Attributes:
        where: its file and line.
        why: what is wrong with it.
    """

    where: str
    why: str


def _row_name(i: int) -> str:
    return f"row {i}"


@dataclass(frozen=True)
class Part:
    """Rows of one kind.

    Attributes:
        rows: a `datasets.Dataset`, a map-style torch `Dataset` or a sequence; or a stream: a `datasets.IterableDataset` or a
            torch `IterableDataset`.
        weight: its share of a mixture, relative to the others'; None where there is no mixture, and of rows held out.
        name: for messages and metrics.
        name_row: where row i came from, such as ``"dialogues.jsonl, row 12 (line 13)"``; of a stream, in the order of its
            files.
    """

    rows: Any
    weight: float | None = None
    name: str = "data"
    name_row: Callable[[int], str] = _row_name

    @property
    def is_stream(self) -> bool:
        """Whether the rows can only be read one after the other."""
        return _is_stream(self.rows)


@dataclass(frozen=True)
class Source:
    """Rows as they come, before a model's needs are known.

    Attributes:
        parts: what is trained on; several are a mixture.
        validation: rows held out; empty if none are.
        collate: how the user batches them, or None.
        shuffle: whether their order may be permuted.
        workers: reading processes that the user asked for, or None.
        skipped: rows that were left out of files.
    """

    parts: tuple[Part, ...]
    validation: tuple[Part, ...] = ()
    collate: Callable[[list[Any]], Any] | None = None
    shuffle: bool = True
    workers: int | None = None
    skipped: tuple[Skipped, ...] = ()


def read(data: Any, validation: Any = None, seed: int = 0, on_bad_row: str = "refuse") -> Source:
    """Opens a job's data.

    Args:
        data: a data set of Hugging Face's; a hub id, file, folder or pattern such as ``"shards/*.jsonl"``; a mapping with its
            `path` and, as needed, `name` (of a configuration), `split` (the rows to train on), `revision` and `streaming`;
            a list of rows; a torch `Dataset` or `DataLoader`; a `LightningDataModule`; a `Mixture`, or
            ``{"mixture": [...]}`` of mappings that each have a `weight`.
        validation: the same for rows held out; or the name of a split of `data`; or the share of `data` to hold out, of each
            part of a mixture, chosen by `seed`; or None, which takes the split that is named so, where there is one.
        seed: of the share held out.
        on_bad_row: ``"refuse"`` the data, or ``"skip"`` bad rows of JSON lines, CSV files and lists.

    Raises:
        DataError: no such data, or a kind that cannot be used.
        RowError: a row that cannot be read, or that has another type than the others.
        EmptyDataError: no rows.
        ConfigError: a mapping or a mixture that is none.
    """
    if on_bad_row not in ON_BAD_ROW:
        raise UnknownNameError("on_bad_row", on_bad_row, ON_BAD_ROW)
    skip = on_bad_row == "skip"
    opened = _open_all(data, skip)
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
        others = _open_validation(validation, opened, skip)
        held_out = [each.train() for each in others]
    if len(opened) == 1:
        parts = (replace(parts[0], name="data"),)
    if len(held_out) == 1:
        held_out = [replace(held_out[0], name="validation")]
    _check_rows(held_out)
    skipped = tuple(chain.from_iterable(each.skipped for each in (*opened, *others)))
    first = opened[0]
    validation_parts = tuple(replace(part, weight=None) for part in held_out)
    return Source(parts, validation_parts, first.collate, first.shuffle, first.workers, skipped)


def _check_rows(parts: Sequence[Part]) -> None:
    for part in parts:
        if not part.is_stream and len(part.rows) == 0:
            raise EmptyDataError(f"{_called(part.name)} has no rows")


def _called(name: str) -> str:
    return f"the {name}" if name in ("data", "validation") else f"the data {name!r}"


def _open_validation(validation: Any, opened: list[_Opened], skip: bool) -> list[_Opened]:
    try:
        return _open_all(validation, skip)
    except DataError as error:
        if not (isinstance(validation, str) and re.fullmatch(r"[\w+\[\]:%]+", validation)):
            raise
        splits = ", ".join(opened[0].splits)
        raise DataError(f"{error}. Nor is it a split of {_called(opened[0].name)}, which has: {splits}") from error


@dataclass(frozen=True)
class _Opened:
    """Data as opened: its splits, and which of them is trained on."""

    splits: dict[str, Part]
    split: str = "train"
    weight: float | None = None
    name: str = "data"
    collate: Callable[[list[Any]], Any] | None = None
    shuffle: bool = True
    workers: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def train(self) -> Part:
        """The rows to train on."""
        return replace(self._pick(self.split), weight=self.weight)

    def usual(self) -> Part | None:
        """The first split whose name says that it is held out, and that is not trained on."""
        trained_on = _names(self.split)
        return next((self._pick(name) for name in _HELD_OUT if name in self.splits and name not in trained_on), None)

    def has(self, split: str) -> bool:
        return bool(_names(split) & set(self.splits))

    def held_out(self, split: str) -> Part:
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

    def _pick(self, split: str) -> Part:
        """A split's rows, or those of slices of splits."""
        slices = self._slices(split)
        if split in self.splits:
            return replace(self.splits[split], name=self.name)
        import datasets

        rows = datasets.concatenate_datasets([self.splits[name].rows.select(places) for name, places in slices])
        origins = tuple((self.splits[name].name_row, places) for name, places in slices)
        return Part(rows, None, self.name, _InSlices(origins))

    def _slices(self, split: str) -> list[tuple[str, range]]:
        """What a text such as ``"train[:90%]+extra"`` stands for."""
        import datasets

        if split in self.splits:
            rows = self.splits[split].rows
            return [(split, range(len(rows) if hasattr(rows, "__len__") else 1))]
        missing = sorted(_names(split) - set(self.splits))
        if missing:
            raise DataError(f"{_called(self.name)} has no split {missing[0]!r}; it has: {', '.join(self.splits)}")
        if not all(isinstance(part.rows, datasets.Dataset) for part in self.splits.values()):
            raise DataError(
                f"split={split!r}: only data sets that are no streams can be sliced; name one split as a whole"
            )
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


def _hold_out(part: Part, share: float, seed: int) -> tuple[Part, Part]:
    """The rest of a part, and the share of it that is held out."""
    import datasets
    from torch.utils.data import Subset

    if not 0.0 < share < 1.0:
        raise DataError(f"validation={share} is no share between 0 and 1")
    if part.is_stream:
        raise DataError(
            "a share of a stream cannot be held out: give other rows, or a split of the data, as `validation`"
        )
    length = len(part.rows)
    if math.ceil(share * length) >= length:
        raise DataError(f"validation={share} of {length} rows leaves none to train on: hold out fewer")
    is_dataset = isinstance(part.rows, datasets.Dataset)
    if is_dataset:
        halves: Mapping[str, Any] = part.rows.train_test_split(test_size=share, seed=seed)
    else:
        halves = {half: Subset(part.rows, places) for half, places in _draw(length, share, seed).items()}
    rest, held = (
        replace(part, rows=halves[half], name_row=_InHalf(part.name_row, length, share, seed, half, is_dataset))
        for half in ("train", "test")
    )
    return rest, held


def _draw(length: int, share: float, seed: int) -> dict[str, list[int]]:
    """Places that are trained on and held out, each in the order of the rows."""
    places = shuffled(np.arange(length), length, seed, 0)
    count = math.ceil(share * length)
    return {"train": np.sort(places[count:]).tolist(), "test": np.sort(places[:count]).tolist()}


# Where a row came from.


@dataclass(frozen=True)
class _InFiles:
    files: tuple[File, ...]

    def __call__(self, i: int) -> str:
        return broken.place(self.files, i)


@dataclass(frozen=True)
class _InData:
    name: str

    def __call__(self, i: int) -> str:
        return f"{self.name}, row {i}"


@dataclass(frozen=True)
class _InRows:
    """Rows that say themselves which file they are from: an image's or a recording's, or a member of a tar file."""

    rows: Any
    column: str
    name: str

    def __call__(self, i: int) -> str:
        if self.column == "__key__":
            row = self.rows.select_columns(["__url__", "__key__"])[i]
            return f"{row['__url__']}, {row['__key__']}"
        feature = self.rows.features[self.column]
        bare = self.rows.select_columns([self.column]).cast_column(self.column, type(feature)(decode=False))
        return str((bare[i][self.column] or {}).get("path") or f"{self.name}, row {i}")


@dataclass(frozen=True)
class _InSlices:
    slices: tuple[tuple[Callable[[int], str], range], ...]

    def __call__(self, i: int) -> str:
        for name_row, places in self.slices:
            if i < len(places):
                return name_row(places[i])
            i -= len(places)
        return f"row {i}"


@dataclass(frozen=True)
class _InRest:
    """Rows of a list of which some were left out."""

    kept: tuple[int, ...]

    def __call__(self, i: int) -> str:
        return f"row {self.kept[i]}"


@dataclass(frozen=True)
class _InHalf:
    """Rows of which a share was held out: the draw is repeated where a row is asked for."""

    name_row: Callable[[int], str]
    length: int
    share: float
    seed: int
    half: str
    is_dataset: bool

    def __call__(self, i: int) -> str:
        return self.name_row(_rows_of_half(self.length, self.share, self.seed, self.half, self.is_dataset)[i])


@lru_cache(maxsize=4)
def _rows_of_half(length: int, share: float, seed: int, half: str, is_dataset: bool) -> Sequence[int]:
    import datasets

    if not is_dataset:
        return _draw(length, share, seed)[half]
    numbers = datasets.Dataset.from_dict({"row": range(length)})
    rows: list[int] = numbers.train_test_split(test_size=share, seed=seed)[half]["row"][:]
    return rows


# Each kind of data.


def _open_all(data: Any, skip: bool) -> list[_Opened]:
    """One, or all parts of a mixture."""
    if isinstance(data, Mapping) and "mixture" in data:
        data = _mixture(data)
    if not isinstance(data, Mixture):
        return [_open(data, skip)]
    opened: list[_Opened] = []
    for number, (each, weight) in enumerate(data.parts):
        part = _open(each, skip)
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
    for key in data:
        if key != "mixture":
            raise UnknownNameError("key in data", key, ["mixture"])
    if not isinstance(data["mixture"], (list, tuple)):
        raise ConfigError("data: mixture: is a list, each part with its path and its weight")
    parts: list[tuple[Any, Any]] = []
    for part in data["mixture"]:
        if not isinstance(part, Mapping) or "weight" not in part:
            raise ConfigError(f"the part {part!r} of the mixture has no weight: write {{path: ..., weight: ...}}")
        parts.append(({key: value for key, value in part.items() if key != "weight"}, part["weight"]))
    return Mixture(parts)


def _open(data: Any, skip: bool) -> _Opened:
    import datasets
    from torch.utils.data import DataLoader, Dataset

    if isinstance(data, (str, Path)):
        return _from_name(str(data), skip)
    if isinstance(data, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return _Opened({str(name): Part(rows) for name, rows in data.items()})
    if isinstance(data, Mapping):
        return _from_mapping(data, skip)
    if isinstance(data, Mixture):
        raise ConfigError("a mixture cannot be part of a mixture: list all parts in one")
    if isinstance(data, DataLoader):
        return _from_loader(data)
    if hasattr(data, "train_dataloader"):
        return _from_datamodule(data)
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return _from_list(data, skip)
    if _is_stream(data) or (isinstance(data, (Dataset, datasets.Dataset, Sequence)) and hasattr(data, "__len__")):
        return _Opened({"train": Part(data)})
    raise DataError(
        f"data of type {type(data).__name__} cannot be used. Give a Hugging Face data set, a hub id, a file or folder, a "
        "list of rows, or a torch Dataset with a length"
    )


def _is_stream(rows: Any) -> bool:
    import datasets
    from torch.utils.data import IterableDataset

    return isinstance(rows, (datasets.IterableDataset, IterableDataset))


def _from_mapping(data: Mapping[str, Any], skip: bool) -> _Opened:
    for key in data:
        if key not in _KEYS:
            raise UnknownNameError("key in data", key, _KEYS)
    if "path" not in data:
        raise ConfigError("data has no path: write {path: ...}, of a file, a folder, or a hub id")
    if "weight" in data:
        raise ConfigError("a weight says something only in a mixture: write {mixture: [{path: ..., weight: ...}, ...]}")
    options = {key: data[key] for key in ("name", "revision") if data.get(key) is not None}
    opened = _from_name(str(data["path"]), skip, bool(data.get("streaming")), options)
    return replace(opened, split=str(data.get("split") or "train"))


def _from_name(name: str, skip: bool, streaming: bool = False, options: Mapping[str, Any] | None = None) -> _Opened:
    path = Path(name)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return _from_disk(name, streaming)
    files = _files(name)
    if files:
        builder = _BUILDERS[files[0].suffix]
        options = {**(options or {}), "data_files": {"train": [glob.escape(str(file)) for file in files]}}
        options |= {"sep": "\t"} if files[0].suffix == ".tsv" else {}
        return _load(name, builder, options, streaming, skip)
    looks_local = path.suffix in _BUILDERS or name.startswith((".", "/")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise DataError(f"there is no file or folder {name}")
    return _load(name, name, dict(options or {}), streaming, skip)


def _from_disk(name: str, streaming: bool) -> _Opened:
    import datasets

    loaded = datasets.load_from_disk(name)
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    rows = {split: each.to_iterable_dataset() if streaming else each for split, each in splits.items()}
    return _Opened({split: Part(each, name_row=_InData(name)) for split, each in rows.items()}, name=name)


def _files(name: str) -> list[Path]:
    """The files that a name or a pattern stands for; none for a folder or a hub id."""
    is_pattern = re.search(r"[*?\[]", name) is not None and not Path(name).exists()
    paths = [Path(each) for each in sorted(glob.glob(name, recursive=True))] if is_pattern else [Path(name)]
    files = [path for path in paths if path.is_file()]
    missing = [path for path in paths if not path.exists()]
    if is_pattern and missing:
        raise DataError(
            f"there is no file {missing[0]}, although its name stands there: bring it back, or take the name away"
        )
    if is_pattern and not files:
        raise DataError(f"no file is named like {name}")
    endings = sorted({path.suffix for path in files})
    if len(endings) > 1:
        raise DataError(f"the files {name} are of several kinds: {', '.join(endings)}. Name those of one")
    if endings and endings[0] not in _BUILDERS:
        raise DataError(f"{files[0]} is no data file that can be read; known endings: {', '.join(_BUILDERS)}")
    return files


def _load(name: str, builder: str, options: Mapping[str, Any], streaming: bool, skip: bool) -> _Opened:
    """Loads with `datasets`. Bad rows of local files are named; on `skip` they are left out, round by round."""
    import datasets

    skipped: list[Skipped] = []
    try:
        maker = datasets.load_dataset_builder(builder, **options)
    except Exception as error:
        raise _not_loaded(name, error, [], []) from error
    files = _local_files(name, maker)
    while True:
        flat = list(chain.from_iterable(files.values()))
        batch = getattr(maker.config, "chunksize", 0)
        try:
            loaded = _splits(maker, streaming)
        except Exception as error:
            faults = broken.causes(flat, batch, skip) if flat else []
            if not faults:
                raise _not_loaded(name, error, flat, skipped) from error
        else:
            faults = broken.changed(files, loaded, batch, skip) if flat and not streaming else []
            if not faults:
                break
        skipped += _skip(faults, skip)
        files = {split: [broken.cleaned(file, faults) for file in each] for split, each in files.items()}
        maker = _maker(files)
    parts = {
        split: Part(rows, name_row=_origin(name, maker.name, rows, files.get(split))) for split, rows in loaded.items()
    }
    return _Opened(parts, name=name, skipped=tuple(skipped))


def _splits(maker: Any, streaming: bool) -> dict[str, Any]:
    if streaming:
        return {str(split): rows for split, rows in maker.as_streaming_dataset().items()}
    maker.download_and_prepare()
    return {str(split): rows for split, rows in maker.as_dataset().items()}


def _maker(files: Mapping[str, Sequence[File]]) -> Any:
    """The builder of files, by split."""
    import datasets

    first = next(chain.from_iterable(files.values()))
    separator = {"sep": first.separator} if first.builder == "csv" else {}
    paths = {split: [glob.escape(str(file.readable)) for file in each] for split, each in files.items()}
    return datasets.load_dataset_builder(first.builder, data_files=paths, **separator)


def _local_files(name: str, maker: Any) -> dict[str, list[File]]:
    """The files that a builder reads, of each split; none where they are elsewhere, or of another kind."""
    splits = {str(split): [Path(path) for path in paths] for split, paths in (maker.config.data_files or {}).items()}
    separator = getattr(maker.config, "sep", ",")
    for path in chain.from_iterable(splits.values()):
        if not path.is_file() or _BUILDERS.get(path.suffix) != maker.name:
            return {}
    return {
        split: [File(path, _shown(name, path), maker.name, separator) for path in paths]
        for split, paths in splits.items()
    }


def _shown(name: str, path: Path) -> str:
    """A file as the user would write it."""
    return str(path) if Path(name).is_absolute() else os.path.relpath(path)


def _origin(name: str, builder: str, rows: Any, files: Sequence[File] | None) -> Callable[[int], str]:
    """Where rows of a split came from."""
    import datasets

    media = (datasets.Image, datasets.Audio, datasets.Video)
    if isinstance(rows, datasets.Dataset) and builder in ("webdataset", "imagefolder", "audiofolder", "videofolder"):
        columns = [column for column, feature in rows.features.items() if isinstance(feature, media)]
        columns = ["__key__"] if builder == "webdataset" else columns
        if columns:
            return _InRows(rows, columns[0], name)
    return _InFiles(tuple(files)) if files and builder != "webdataset" else _InData(name)


def _skip(faults: Sequence[Fault], skip: bool) -> list[Skipped]:
    """What is left out; the first fault is raised that cannot be, or all."""
    for fault in faults:
        if not (skip and fault.stop):
            raise fault.error()
    return [Skipped(fault.where, fault.why) for fault in faults]


def _not_loaded(name: str, error: Exception, files: Sequence[File], skipped: Sequence[Skipped]) -> DataError:
    if skipped:
        first = skipped[0]
        return EmptyDataError(f"{name} has no rows but bad ones, the first being {first.where}: {first.why}")
    if files and all(file.path.stat().st_size == 0 for file in files):
        return EmptyDataError(f"{name} has no rows: the file is empty")
    if files or Path(name).exists():
        return DataError(f"{name} cannot be read: {error.__cause__ or error}")
    return DataError(f"the data {name!r} is neither a folder here nor a data set that the hub gives: {error}")


def _from_list(data: list[dict[str, Any]], skip: bool) -> _Opened:
    import datasets

    columns = dict.fromkeys(column for row in data for column in row)
    try:
        rows = datasets.Dataset.from_dict({column: [row.get(column) for row in data] for column in columns})
    except Exception as error:
        faults = list(broken.unreadable(data))
        if not faults:
            raise DataError(f"the rows do not make a table: {error}") from error
    else:
        # A text beside bytes would become bytes.
        mixed = any(getattr(feature, "dtype", "") == "binary" for feature in rows.features.values())
        faults = list(broken.unreadable(data)) if mixed else []
        if not faults:
            return _Opened({"train": Part(rows)})
    skipped = tuple(_skip(faults, skip))
    bad = {fault.start for fault in faults}
    kept = tuple(i for i in range(len(data)) if i not in bad)
    part = _from_list([data[i] for i in kept], skip=False).splits["train"]
    return _Opened({"train": replace(part, name_row=_InRest(kept))}, skipped=skipped)


def _from_loader(loader: Any) -> _Opened:
    from torch.utils.data import RandomSampler, SequentialSampler

    if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)) or not hasattr(loader.dataset, "__len__"):
        raise DataError(
            f"a DataLoader with a {type(loader.sampler).__name__} cannot be split exactly over ranks: pass its dataset, "
            "which ScaleKit shuffles and splits by itself"
        )
    shuffle = isinstance(loader.sampler, RandomSampler)
    return _Opened(
        {"train": Part(loader.dataset)}, collate=loader.collate_fn, shuffle=shuffle, workers=loader.num_workers
    )


def _from_datamodule(module: Any) -> _Opened:
    module.prepare_data()
    module.setup("fit")
    opened = _from_loader(module.train_dataloader())
    held_out = module.val_dataloader() if _overrides(module, "val_dataloader") else None
    if held_out is None:
        return opened
    return replace(opened, splits=opened.splits | {"validation": _from_loader(held_out).splits["train"]})


def _overrides(module: Any, name: str) -> bool:
    from lightning.pytorch import LightningDataModule

    return getattr(type(module), name, None) is not getattr(LightningDataModule, name)
