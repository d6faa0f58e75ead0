"""Where rows come from: Hugging Face data sets, hub ids, files and folders, torch data sets and loaders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekit.errors import DataError, EmptyDataError

_BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_HELD_OUT = ("validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class Source:
    """Rows as they come, before a model's needs are known.

    Attributes:
        train: map-style rows.
        validation: rows held out, or None.
        collate: how the user batches them, or None.
        shuffle: whether their order may be permuted.
        workers: reading processes that the user asked for, or None.
    """

    train: Any
    validation: Any = None
    collate: Callable[[list[Any]], Any] | None = None
    shuffle: bool = True
    workers: int | None = None


def read(data: Any, validation: Any = None, seed: int = 0) -> Source:
    """Opens a job's data.

    Args:
        data: a `Dataset` or `DatasetDict`, a hub id, a file or folder, a list of rows, a torch `Dataset` or `DataLoader`,
            or a `LightningDataModule`.
        validation: the same for rows held out; or the share of `data` to hold out, chosen by `seed`; or None, which takes
            the split of that name where `data` has one.
        seed: of the share held out.

    Raises:
        DataError: no such data, or a kind that cannot be used.
        EmptyDataError: no rows.
    """
    source = _open(data)
    if isinstance(validation, float):
        source = _hold_out(source, validation, seed)
    elif validation is not None:
        source = Source(source.train, _open(validation).train, source.collate, source.shuffle, source.workers)
    for name, rows in (("data", source.train), ("validation", source.validation)):
        if rows is not None and len(rows) == 0:
            raise EmptyDataError(f"the {name} has no rows")
    return source


def _open(data: Any) -> Source:
    import datasets
    from torch.utils.data import DataLoader, Dataset

    if isinstance(data, (str, Path)):
        data = _from_name(str(data))
    if isinstance(data, datasets.DatasetDict):
        return _from_dict(data)
    if isinstance(data, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise DataError("streams cannot be trained on yet: load the data set without streaming=True")
    if isinstance(data, datasets.Dataset):
        return Source(data)
    if isinstance(data, DataLoader):
        return _from_loader(data)
    if hasattr(data, "train_dataloader"):
        return _from_datamodule(data)
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        return Source(datasets.Dataset.from_list(data))
    if isinstance(data, (Dataset, Sequence)) and hasattr(data, "__len__"):
        return Source(data)
    raise DataError(
        f"data of type {type(data).__name__} cannot be used. Give a Hugging Face data set, a hub id, a file or folder, a "
        "list of rows, or a torch Dataset with a length"
    )


def _from_name(name: str) -> Any:
    import datasets

    path = Path(name)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise DataError(f"{name} is no data file that can be read; known endings: {', '.join(_BUILDERS)}")
        return datasets.load_dataset(_BUILDERS[path.suffix], data_files={"train": name})
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return datasets.load_from_disk(name)
    looks_local = path.suffix in _BUILDERS or name.startswith((".", "/")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise DataError(f"there is no file or folder {name}")
    try:
        return datasets.load_dataset(name)
    except Exception as error:
        raise DataError(
            f"the data {name!r} is neither a folder here nor a data set that the hub gives: {error}"
        ) from error


def _from_dict(splits: Any) -> Source:
    if "train" not in splits:
        raise DataError(f"the data has no split 'train'; it has: {', '.join(splits)}")
    held_out = next((splits[name] for name in _HELD_OUT if name in splits), None)
    return Source(splits["train"], held_out)


def _from_loader(loader: Any) -> Source:
    from torch.utils.data import RandomSampler, SequentialSampler

    if not isinstance(loader.sampler, (RandomSampler, SequentialSampler)) or not hasattr(loader.dataset, "__len__"):
        raise DataError(
            f"a DataLoader with a {type(loader.sampler).__name__} cannot be split exactly over ranks: pass its dataset, "
            "which ScaleKit shuffles and splits by itself"
        )
    shuffle = isinstance(loader.sampler, RandomSampler)
    return Source(loader.dataset, None, loader.collate_fn, shuffle, loader.num_workers)


def _from_datamodule(module: Any) -> Source:
    module.prepare_data()
    module.setup("fit")
    train = _from_loader(module.train_dataloader())
    held_out = module.val_dataloader() if _overrides(module, "val_dataloader") else None
    rows = None if held_out is None else _from_loader(held_out).train
    return Source(train.train, rows, train.collate, train.shuffle, train.workers)


def _overrides(module: Any, name: str) -> bool:
    from lightning.pytorch import LightningDataModule

    return getattr(type(module), name, None) is not getattr(LightningDataModule, name)


def _hold_out(source: Source, share: float, seed: int) -> Source:
    import datasets

    if not 0.0 < share < 1.0:
        raise DataError(f"validation={share} is no share between 0 and 1")
    if not isinstance(source.train, datasets.Dataset):
        raise DataError("a share to hold out needs a Hugging Face Dataset; give the rows themselves as `validation`")
    parts = source.train.train_test_split(test_size=share, seed=seed)
    return Source(parts["train"], parts["test"], source.collate, source.shuffle, source.workers)
