"""Rows from every kind of source."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, WeightedRandomSampler

from scalekit.data.sources import read
from scalekit.errors import DataError, EmptyDataError

ROWS = [{"text": f"row {i}"} for i in range(10)]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    data = datasets.Dataset.from_list(ROWS)
    data.to_json(tmp_path / "rows.jsonl")
    data.to_csv(tmp_path / "rows.csv")
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "folder").mkdir()
    data.to_parquet(tmp_path / "folder" / "train.parquet")
    data.select(range(3)).to_parquet(tmp_path / "folder" / "validation.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.json", "saved", "folder"])
def test_files_and_folders(files: Path, name: str) -> None:
    source = read(str(files / name))
    assert list(source.train["text"]) == [row["text"] for row in ROWS]
    assert (source.validation is not None) == (name == "folder")


def test_objects() -> None:
    data = datasets.Dataset.from_list(ROWS)
    assert len(read(data).train) == len(read(ROWS).train) == 10
    both = read(datasets.DatasetDict({"train": data, "test": data.select(range(4))}))
    assert (len(both.train), len(both.validation)) == (10, 4)
    loader = DataLoader(ROWS, batch_size=3, shuffle=True)
    assert read(loader).shuffle
    assert not read(DataLoader(ROWS, batch_size=3)).shuffle


def test_a_datamodule() -> None:
    class Rows(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(ROWS, batch_size=2, shuffle=True)

        def val_dataloader(self) -> DataLoader:
            return DataLoader(ROWS[:3])

    source = read(Rows())
    assert (len(source.train), len(source.validation), source.shuffle) == (10, 3, True)


def test_a_share_held_out_depends_on_the_seed_alone() -> None:
    first, again, other = read(ROWS, 0.3, seed=1), read(ROWS, 0.3, seed=1), read(ROWS, 0.3, seed=2)
    assert len(first.train) == 7
    assert first.validation["text"] == again.validation["text"]
    assert first.validation["text"] != other.validation["text"]
    assert not set(first.train["text"]) & set(first.validation["text"])


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([], EmptyDataError, "no rows"),
        (datasets.DatasetDict({"validation": datasets.Dataset.from_list(ROWS)}), DataError, "has no split 'train'"),
        (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), DataError, "streams cannot be trained on yet"),
        (torch.nn.Linear(1, 1), DataError, "Linear cannot be used"),
        ("rows.xlsx/missing/", DataError, "there is no file or folder"),
        (DataLoader(ROWS, sampler=WeightedRandomSampler([1.0] * 10, 10)), DataError, "cannot be split exactly"),
    ],
    ids=["empty", "split", "stream", "type", "path", "sampler"],
)
def test_wrong_data(data: object, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        read(data)
