"""One source of rows, opened: by its kind, with its splits, its collator and its batch size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scalekit.config.blocks import DataBlock, MixtureBlock
from scalekit.config.checks import checked
from scalekit.config.markers import is_a
from scalekit.data.sources import huggingface, provenance
from scalekit.data.sources.data_part import DataPart, Skipped, is_stream
from scalekit.data.sources.huggingface import Loaded
from scalekit.data.sources.mixture import Mixture
from scalekit.data.sources.weighted import Weighted
from scalekit.errors import ConfigError, DataError, EmptyDataError
from scalekit.utils import files

LOADERS = {"train": "train", "validate": "val", "test": "test", "predict": "predict"}
"""Of a data module, by the stage: a LightningDataModule, or a LightningModule that makes its own loaders."""

_HELD_OUT = ("validation", "valid", "val", "dev", "test")


def loader_of(module: Any, stage: str) -> Callable[[], Any] | None:
    """What makes a data module's loader for a stage; None where it has no such method of its own."""
    from lightning.pytorch.core.hooks import DataHooks

    name = f"{LOADERS[stage]}_dataloader"
    found = getattr(module, name, None)
    return None if getattr(found, "__func__", found) is getattr(DataHooks, name) else found


def from_loader(loader: Any, seed: int) -> Opened:
    """What a torch DataLoader has: its rows, its collator, its workers, whether it shuffles, and its batch size."""
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
    if is_stream(loader.dataset):
        return Opened({"train": DataPart(loader.dataset)}, **{**taken, "shuffle": False})
    sampler = loader.sampler
    if isinstance(sampler, WeightedRandomSampler):
        rows = Weighted(loader.dataset, sampler.weights, sampler.num_samples, sampler.replacement, seed)
        return Opened({"train": DataPart(rows)}, **taken)
    own = _own_order(loader)
    if own is not None:
        raise DataError(
            f"a DataLoader with a {own} cannot be split exactly over ranks: pass its dataset, which ScaleKit shuffles and "
            "splits by itself"
        )
    return Opened({"train": DataPart(loader.dataset)}, **taken)


def called(name: str) -> str:
    """What messages call a source by its name."""
    return f"the {name}" if name in ("data", "validation") else f"the data {name!r}"


@dataclass(frozen=True)
class Opened:
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

    def of_stage(self, stage: str) -> Opened:
        """With the split that is for a stage.

        Raises:
            DataError: there are several, and none is plainly for it.
        """
        usual = {"validate": _HELD_OUT, "test": ("test",)}.get(stage, ())
        names = list(self.splits) if len(self.splits) == 1 else [name for name in usual if name in self.splits]
        if not names:
            raise DataError(
                f"{called(self.name)} has the splits {', '.join(self.splits)}: name the one to {stage}, as "
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
                        f"validation={split!r} holds rows of {called(self.name)} that are trained on (split={self.split!r}): "
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
            raise DataError(f"{called(self.name)} has no split {missing[0]!r}; it has: {', '.join(self.splits)}")
        if not all(provenance.is_of_datasets(part.rows, "Dataset") for part in self.splits.values()):
            raise DataError(
                f"split={split!r}: only data sets that are no streams can be sliced; name one split as a whole"
            )
        import datasets

        lengths = {name: len(part.rows) for name, part in self.splits.items()}
        try:
            slices = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        except (ValueError, AssertionError) as error:
            raise DataError(f"split={split!r} names no rows of {called(self.name)}: {error}") from error
        places = [(each.splitname, range(each.from_, each.to)) for each in slices if each.from_ < each.to]
        if not places:
            raise EmptyDataError(f"split={split!r} names no rows of {called(self.name)}, whose splits have: {lengths}")
        return places


def _names(split: str) -> set[str]:
    """The splits in ``"train[:90%]+test"``."""
    return {each.partition("[")[0].strip() for each in split.split("+")}


def open_all(data: Any, skip: bool, seed: int) -> list[Opened]:
    """One, or all parts of a mixture."""
    if isinstance(data, Mapping) and "mixture" in data:
        data = _mixture(data)
    if not isinstance(data, Mixture):
        return [_open(data, skip, seed)]
    opened: list[Opened] = []
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


def _open(data: Any, skip: bool, seed: int) -> Opened:
    from torch.utils.data import DataLoader, Dataset

    if isinstance(data, (str, Path)):
        return _from_mapping({"path": data}, skip)
    if provenance.is_of_datasets(data, "DatasetDict", "IterableDatasetDict"):
        return Opened({str(name): DataPart(rows) for name, rows in data.items()})
    if isinstance(data, Mapping):
        return _from_mapping(data, skip)
    if isinstance(data, Mixture):
        raise ConfigError("a mixture cannot be part of a mixture: list all parts in one")
    if isinstance(data, DataLoader) or (
        isinstance(data, (list, tuple)) and data and all(isinstance(each, DataLoader) for each in data)
    ):
        return from_loader(data, seed)
    if hasattr(data, "train_dataloader"):
        return _from_datamodule(data, seed)
    if is_a(data, "pandas.DataFrame"):
        return _from_frame(data)
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return _from_loaded(huggingface.from_list(data, skip))
    is_known = isinstance(data, (Dataset, Sequence)) or provenance.is_of_datasets(data, "Dataset")
    if is_stream(data) or (is_known and hasattr(data, "__len__")):
        return Opened({"train": DataPart(data)})
    raise DataError(
        f"data of type {type(data).__name__} cannot be used. Give a Hugging Face data set, a hub id, a file or folder, a "
        "list of rows, or a torch Dataset with a length"
    )


def _from_frame(frame: Any) -> Opened:
    import datasets

    try:
        return Opened({"train": DataPart(datasets.Dataset.from_pandas(frame, preserve_index=False))})
    except Exception as error:  # pyarrow's, by the kind of what it cannot hold
        raise DataError(f"the DataFrame has a column that holds more than one kind of value: {error}") from error


def _from_mapping(data: Mapping[str, Any], skip: bool) -> Opened:
    data = checked("data", data, DataBlock)
    options = {key: data[key] for key in ("name", "revision") if data.get(key) is not None}
    name = data["path"]
    loaded = huggingface.from_name(name, options, bool(data.get("streaming")), skip)
    return replace(_from_loaded(loaded), name=name, split=data.get("split") or "train")


def _from_loaded(loaded: Loaded) -> Opened:
    splits = {split: DataPart(rows, name_row=name_row) for split, (rows, name_row) in loaded.splits.items()}
    return Opened(splits, skipped=tuple(Skipped(fault.where, fault.why) for fault in loaded.left_out))


def _from_datamodule(module: Any, seed: int) -> Opened:
    from lightning.pytorch.trainer.states import TrainerFn

    training, validation = loader_of(module, "train"), loader_of(module, "validate")
    if training is None:
        raise DataError(f"{type(module).__name__} has no train_dataloader, for rows to train on")
    with files.exclusive_lock("prepare_data"):
        module.prepare_data()
    module.setup(TrainerFn.FITTING)
    opened = from_loader(training(), seed)
    held_out = validation() if validation is not None else None
    if held_out is None:
        return opened
    return replace(opened, splits=opened.splits | {"validation": from_loader(held_out, seed).splits["train"]})


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
