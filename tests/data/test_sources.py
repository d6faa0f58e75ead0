"""Rows from every kind of source."""

import io
import json
import math
import pickle
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from scalekit.data.sources.data_part import DataPart
from scalekit.data.sources.mixture import Mixture
from scalekit.data.sources.read import Source, read_data
from scalekit.errors import ConfigError, DataError, EmptyDataError, UnknownNameError

ROWS = [{"text": f"row {i}"} for i in range(10)]


def texts(part: DataPart) -> list[str]:
    return [row["text"] for row in part.rows]


def only(source: Source) -> DataPart:
    (part,) = source.parts
    return part


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    data = datasets.Dataset.from_list(ROWS)
    for ending in ("jsonl", "ndjson"):
        lines(tmp_path / f"rows.{ending}", ROWS)
    data.to_csv(tmp_path / "rows.csv")
    data.to_csv(tmp_path / "rows.tsv", sep="\t")
    data.to_parquet(tmp_path / "rows.parquet")
    with datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "rows.arrow"), features=data.features) as writer:
        writer.write_table(data.data.table)
        writer.finalize()
    (tmp_path / "rows.txt").write_text("".join(row["text"] + "\n" for row in ROWS))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data, "test": data.select(range(2))}).save_to_disk(tmp_path / "both")
    for name, rows in (("train", ROWS), ("validation", ROWS[:3]), ("test", ROWS[:2])):
        (tmp_path / "folder").mkdir(exist_ok=True)
        lines(tmp_path / "folder" / f"{name}.jsonl", rows)
    (tmp_path / "shards").mkdir()
    lines(tmp_path / "shards" / "a.jsonl", ROWS[:4])
    lines(tmp_path / "shards" / "b.jsonl", ROWS[4:])
    return tmp_path


ENDINGS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "txt"]


@pytest.mark.parametrize(
    "name", [*(f"rows.{ending}" for ending in ENDINGS), "saved", "both", "folder", "shards/*.jsonl"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_files_and_folders(files: Path, name: str, streaming: bool) -> None:
    source = read_data({"path": name, "streaming": streaming})
    assert texts(only(source)) == [row["text"] for row in ROWS]
    has_other = name in ("folder", "both") and not streaming
    assert [part.name for part in source.validation] == (["validation"] if has_other else [])
    assert only(source).is_stream == streaming
    assert isinstance(only(source).rows, datasets.IterableDataset if streaming else datasets.Dataset)


def test_a_folder_of_several_kinds_is_refused(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", ROWS[:2])
    (tmp_path / "b.csv").write_text("text\nx\n")
    with pytest.raises(DataError, match=r"of which alone would be read: a.jsonl, b.csv"):
        read_data(str(tmp_path))


def test_loaders_with_an_order_of_their_own_are_refused() -> None:
    rows = list(range(8))
    batches = BatchSampler(RandomSampler(rows), 2, drop_last=False)
    with pytest.raises(DataError, match="a DataLoader with a BatchSampler cannot be split"):
        read_data(DataLoader(rows, batch_sampler=batches))
    with pytest.raises(DataError, match="RandomSampler of its own number of rows"):
        read_data(DataLoader(rows, sampler=RandomSampler(rows, num_samples=3)))
    with pytest.raises(DataError, match="batched like the others"):
        read_data(rows, DataLoader(rows, collate_fn=sum))


def test_a_data_module_made_of_data_sets() -> None:
    rows = TensorDataset(torch.arange(10))
    module = LightningDataModule.from_datasets(rows, val_dataset=rows)
    assert len(read_data(module).validation) == 1
    module.val_dataloader = lambda: [DataLoader(rows)]
    assert len(read_data(module).validation) == 1
    module.val_dataloader = lambda: [DataLoader(rows), DataLoader(rows)]
    with pytest.raises(DataError, match="a list of data loaders cannot be used"):
        read_data(module)
    with pytest.raises(DataError, match="a list of data loaders cannot be used"):
        read_data(DataLoader(rows), [DataLoader(rows), DataLoader(rows)])
    assert len(read_data(DataLoader(rows), [DataLoader(rows)]).validation) == 1


def test_a_share_held_out_leaves_the_order_of_rows() -> None:
    source = read_data(DataLoader(datasets.Dataset.from_list(ROWS), shuffle=False), 0.3)
    kept = texts(only(source))
    assert kept == [row["text"] for row in ROWS if row["text"] in kept]


def test_a_plain_name_is_a_mapping_of_a_path_alone(files: Path) -> None:
    assert texts(only(read_data("rows.jsonl"))) == texts(only(read_data({"path": "rows.jsonl"})))
    assert texts(only(read_data(files / "rows.jsonl"))) == texts(only(read_data("rows.jsonl")))


def test_names_with_signs_of_a_pattern_are_names_where_such_a_file_stands(files: Path) -> None:
    lines(files / "rows[1].jsonl", ROWS[:2])
    assert len(only(read_data("rows[1].jsonl")).rows) == 2


def test_a_tar_file_of_members(files: Path) -> None:
    with tarfile.open(files / "rows.tar", "w") as tar:
        for i, row in enumerate(ROWS):
            for ending, content in (("txt", row["text"].encode()), ("json", json.dumps({"i": i}).encode())):
                member = tarfile.TarInfo(f"{i:03}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    part = only(read_data("rows.tar"))
    assert [(row["txt"], row["json"]) for row in part.rows] == [(row["text"], {"i": i}) for i, row in enumerate(ROWS)]
    assert part.name_row(4).endswith("rows.tar, 004")


def test_a_folder_of_images_names_the_image(files: Path) -> None:
    for kind in ("cat", "dog"):
        (files / "photos" / kind).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (4, 4)).save(files / "photos" / kind / f"{i}.png")
    (files / "photos" / "dog" / "0.png").write_bytes(b"no image")
    part = only(read_data("photos"))
    assert [row["label"] for row in part.rows.select_columns(["label"])] == [0, 0, 1, 1]
    assert part.name_row(2).endswith("photos/dog/0.png")


def test_objects() -> None:
    data = datasets.Dataset.from_list(ROWS)
    assert len(only(read_data(data)).rows) == len(only(read_data(ROWS)).rows) == 10
    both = read_data(datasets.DatasetDict({"train": data, "test": data.select(range(4))}))
    assert (len(only(both).rows), [len(part.rows) for part in both.validation]) == (10, [4])
    tensors = TensorDataset(torch.arange(10))
    assert only(read_data(tensors)).rows is tensors
    assert only(read_data(range(5))).rows == range(5)
    assert read_data(DataLoader(ROWS, batch_size=3, shuffle=True)).shuffle
    assert not read_data(DataLoader(ROWS, batch_size=3)).shuffle


def test_a_loader_keeps_its_collator_and_its_workers() -> None:
    loader = DataLoader(ROWS, batch_size=3, num_workers=2, collate_fn=tuple)
    source = read_data(loader, 0.3)
    assert (source.collate, source.workers, len(only(source).rows)) == (tuple, 2, 7)


def test_a_datamodule() -> None:
    class Rows(LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(ROWS, batch_size=2, shuffle=True)

        def val_dataloader(self) -> DataLoader:
            return DataLoader(ROWS[:3])

    source = read_data(Rows())
    assert (len(only(source).rows), [len(part.rows) for part in source.validation], source.shuffle) == (10, [3], True)


def test_a_list_keeps_columns_that_only_later_rows_have() -> None:
    part = only(read_data([{"a": 1}, {"a": 2, "b": "x"}]))
    assert part.rows[:] == {"a": [1, 2], "b": [None, "x"]}


# Streams.


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter(ROWS)


def test_streams_come_as_they_are() -> None:
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    assert only(read_data(stream)).rows is stream
    endless = Endless()
    assert only(read_data(endless)).rows is endless
    both = datasets.IterableDatasetDict({"train": stream, "validation": stream})
    assert [part.is_stream for part in read_data(both).parts] == [True]
    assert not read_data(
        both
    ).validation  # the validation set are read again and again: a stream's are taken by name alone
    assert [part.is_stream for part in read_data(both, "validation").validation] == [True]


@pytest.mark.parametrize("stream", [Endless(), datasets.Dataset.from_list(ROWS).to_iterable_dataset()])
def test_a_share_of_a_stream_cannot_be_held_out(stream: Any) -> None:
    with pytest.raises(DataError, match="share of a stream cannot be its validation set: give other rows"):
        read_data(stream, 0.1)


def test_a_stream_cannot_be_sliced(files: Path) -> None:
    with pytest.raises(DataError, match="only data sets that are no streams can be sliced"):
        read_data({"path": "folder", "streaming": True, "split": "train[:50%]"})
    assert texts(only(read_data({"path": "folder", "streaming": True, "split": "test"}))) == ["row 0", "row 1"]


# Rows held out.


def test_a_share_held_out_depends_on_the_seed_alone() -> None:
    first, again, other = read_data(ROWS, 0.3, seed=1), read_data(ROWS, 0.3, seed=1), read_data(ROWS, 0.3, seed=2)
    (held,) = first.validation
    assert len(only(first).rows) == 7
    assert texts(held) == texts(again.validation[0])
    assert texts(held) != texts(other.validation[0])
    assert not set(texts(only(first))) & set(texts(held))


@pytest.mark.parametrize("rows", [TensorDataset(torch.arange(10)), [(i,) for i in range(10)]], ids=["torch", "list"])
def test_a_share_of_any_rows_with_a_length_can_be_held_out(rows: Any) -> None:
    first, other = read_data(rows, 0.25, seed=1), read_data(rows, 0.25, seed=2)
    trained_on, held = ([int(row[0]) for row in part.rows] for part in (*first.parts, *first.validation))
    assert sorted(trained_on + held) == list(range(10))
    assert len(held) == 3
    assert trained_on == sorted(trained_on), "the order of the rows is kept"
    assert held != [int(row[0]) for row in other.validation[0].rows]


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_rows_keep_their_names_when_a_share_is_held_out(length: int, share: float, seed: int, as_table: bool) -> None:
    rows = [{"i": i} for i in range(length)] if as_table else TensorDataset(torch.arange(length))
    assume(math.ceil(share * length) < length)
    source = read_data(rows, share, seed)
    for part in (*source.parts, *source.validation):
        for i in range(len(part.rows)):
            own = part.rows[i]["i"] if as_table else int(part.rows[i][0])
            assert part.name_row(i) == f"row {own}"


def test_the_split_of_a_usual_name_is_held_out_unless_it_is_trained_on(files: Path) -> None:
    assert len(read_data("folder").validation[0].rows) == 3
    assert len(read_data({"path": "folder", "split": "train+validation"}).validation[0].rows) == 2
    assert read_data({"path": "folder", "split": "train+validation+test"}).validation == ()


def test_validation_is_the_name_of_a_split_or_other_data(files: Path) -> None:
    assert len(read_data("folder", "test").validation[0].rows) == 2
    assert len(read_data("folder", "rows.csv").validation[0].rows) == 10
    assert len(read_data("folder", {"path": "folder", "split": "test"}).validation[0].rows) == 2
    assert len(read_data(ROWS, ROWS[:3]).validation[0].rows) == 3


def test_slices_of_splits(files: Path) -> None:
    source = read_data({"path": "folder", "split": "train[:80%]"}, "train[80%:]")
    assert (texts(only(source)), texts(source.validation[0])) == (
        [f"row {i}" for i in range(8)],
        ["row 8", "row 9"],
    )
    both = only(read_data({"path": "folder", "split": "train[8:]+test[1:]"}))
    assert texts(both) == ["row 8", "row 9", "row 1"]
    assert [both.name_row(i) for i in range(3)] == [
        "folder/train.jsonl, row 8 (line 9)",
        "folder/train.jsonl, row 9 (line 10)",
        "folder/test.jsonl, row 1 (line 2)",
    ]


@pytest.mark.parametrize("split", ["train", "train[:80%]", "test+train[:1]"])
def test_rows_that_are_trained_on_are_not_held_out(files: Path, split: str) -> None:
    with pytest.raises(DataError, match="that are trained on"):
        read_data({"path": "folder", "split": split}, "train[:50%]")


# Where rows came from.


def test_rows_of_files_are_named_by_file_and_line(files: Path) -> None:
    with open(files / "shards" / "b.jsonl", "r+") as file:
        rows = file.read()
        file.seek(0)
        file.write("\n\n" + rows)
    part = only(read_data("shards/*.jsonl"))
    assert part.name_row(3) == "shards/a.jsonl, row 3 (line 4)"
    assert part.name_row(4) == "shards/b.jsonl, row 0 (line 3)"
    assert part.name_row(9) == "shards/b.jsonl, row 5 (line 8)"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.jsonl", "rows.jsonl, row 7 (line 8)"),
        ("rows.csv", "rows.csv, row 7 (line 9)"),
        ("rows.txt", "rows.txt, row 7 (line 8)"),
        ("rows.json", "rows.json, row 7"),
        ("rows.parquet", "rows.parquet, row 7"),
        ("rows.arrow", "rows.arrow, row 7"),
        ("saved", "saved, row 7"),
    ],
)
def test_a_row_of_each_kind_of_file(files: Path, name: str, said: str) -> None:
    assert only(read_data(name)).name_row(7) == said


def test_a_csv_row_of_several_lines(files: Path) -> None:
    (files / "long.csv").write_text('text\n"one\ntwo"\n\nthree\n')
    part = only(read_data("long.csv"))
    assert texts(part) == ["one\ntwo", "three"]
    assert [part.name_row(i) for i in range(2)] == ["long.csv, row 0 (line 2)", "long.csv, row 1 (line 5)"]


def test_parts_travel_to_other_processes(files: Path) -> None:
    source = read_data({"path": "folder", "split": "train[:80%]"}, 0.5)
    again = pickle.loads(pickle.dumps(source))
    assert (texts(only(again)), only(again).name_row(0)) == (texts(only(source)), only(source).name_row(0))


def test_rows_of_a_share_of_a_file_are_named_by_the_file(files: Path) -> None:
    source = read_data("shards/*.jsonl", 0.3)
    for part in (*source.parts, *source.validation):
        for i, text in enumerate(texts(part)):
            number = int(text.removeprefix("row "))
            file, row = ("a", number) if number < 4 else ("b", number - 4)
            assert part.name_row(i) == f"shards/{file}.jsonl, row {row} (line {row + 1})"


# Mixtures.


@pytest.mark.parametrize("yaml", [False, True])
def test_a_mixture_has_parts_with_weights(files: Path, yaml: bool) -> None:
    listed = [{"path": "rows.jsonl", "weight": 0.7}, {"path": "rows.csv", "weight": 2}]
    data = {"mixture": listed} if yaml else Mixture([("rows.jsonl", 0.7), ("rows.csv", 2)])
    source = read_data(data)
    assert [(part.name, part.weight, len(part.rows)) for part in source.parts] == [
        ("rows.jsonl", 0.7, 10),
        ("rows.csv", 2.0, 10),
    ]
    assert source.parts[1].name_row(0) == "rows.csv, row 0 (line 2)"
    assert source.validation == ()


def test_what_is_held_out_of_a_mixture_is_held_out_of_each_part(files: Path) -> None:
    data = Mixture([("folder", 0.7), (ROWS[:5], 0.3)])
    source = read_data(data, 0.4)
    assert [len(part.rows) for part in source.parts] == [6, 3]
    assert [(part.name, part.weight, len(part.rows)) for part in source.validation] == [
        ("folder", None, 4),
        ("part 1", None, 2),
    ]
    by_itself = read_data(data)
    assert [(part.name, len(part.rows)) for part in by_itself.validation] == [("validation", 3)]
    with pytest.raises(DataError, match=r"'part 1' has no split 'test'; it has: train"):
        read_data(data, "test")
    twice = read_data(Mixture([("folder", 0.7), ({"path": "folder"}, 0.3)]), "test")
    assert [(part.name, len(part.rows)) for part in twice.validation] == [("folder", 2), ("folder (1)", 2)]


def test_rows_held_out_of_other_data_may_be_a_mixture(files: Path) -> None:
    source = read_data(
        ROWS, {"mixture": [{"path": "rows.jsonl", "weight": 1}, {"path": "folder", "split": "test", "weight": 1}]}
    )
    assert [(part.name, part.weight, len(part.rows)) for part in source.validation] == [
        ("rows.jsonl", None, 10),
        ("folder", None, 2),
    ]


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ({"mixture": [{"path": "rows.jsonl", "weight": 0}]}, ConfigError, "weight=0 must be a number above 0"),
        ({"mixture": [{"path": "rows.jsonl"}]}, ConfigError, "has no weight"),
        ({"mixture": ["rows.jsonl"]}, ConfigError, "with the keys path, .*weight"),
        ({"mixture": "rows.jsonl"}, ConfigError, "must be a list of at least one part"),
        ({"mixture": []}, ConfigError, "must be a list of at least one part"),
        ({"mixture": [], "wieght": 1}, UnknownNameError, "key in data 'wieght'"),
        ({"mixture": [{"path": "rows.jsonl", "weight": 1, "spilt": "a"}]}, UnknownNameError, "Did you mean 'split'"),
        (Mixture([(Mixture([(ROWS, 1)]), 1)]), ConfigError, "list all parts in one"),
        (Mixture([(ROWS, 1), (Endless(), 1)]), DataError, "a stream cannot be part of a mixture yet"),
        (Mixture([(DataLoader(ROWS), 1)]), DataError, "give its data sets"),
        (Mixture([(ROWS, 1), ([], 1)]), EmptyDataError, "the data 'part 1' has no rows"),
    ],
)
def test_wrong_mixtures(files: Path, data: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        read_data(data)


# What cannot be used.


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        ([], EmptyDataError, "the data has no rows"),
        (
            datasets.DatasetDict({"validation": datasets.Dataset.from_list(ROWS)}),
            DataError,
            "the data has no split 'train'",
        ),
        (torch.nn.Linear(1, 1), DataError, "Linear cannot be used"),
        ("rows.xlsx/missing/", DataError, "there is no file or folder"),
        ("rows.tsv.jsonl", DataError, "there is no file or folder"),
        ("nobody/nothing", DataError, "neither a folder here nor a data set that the hub gives"),
        (DataLoader(ROWS, sampler=SubsetRandomSampler([0, 1])), DataError, "cannot be split exactly"),
        ({"path": "rows.jsonl", "spilt": "train"}, UnknownNameError, "key in data 'spilt'.*Did you mean 'split'"),
        ({"path": "rows.jsonl", "weight": 0.7}, ConfigError, "only in a mixture"),
        ({"name": "main"}, ConfigError, "no path"),
        ({"path": "folder", "split": "trian"}, DataError, "'folder' has no split 'trian'; it has: .*train"),
        ({"path": "folder", "split": "train[5%"}, DataError, "names no rows"),
        ({"path": "folder", "split": "train[90:100]"}, EmptyDataError, "names no rows"),
        ({"path": "folder", "split": "train[5:5]"}, EmptyDataError, "names no rows"),
        ("shards/*.csv", DataError, "no file is named like"),
        ("rows.*", DataError, "several kinds: .arrow, .csv"),
        ("rows.jpg", DataError, "no data file that can be read; known endings: .json, .jsonl"),
    ],
)
def test_wrong_data(files: Path, data: Any, error: type, said: str) -> None:
    (files / "rows.jpg").touch()
    if data == "rows.*":
        (files / "rows.jpg").unlink()
    with pytest.raises(error, match=said):
        read_data(data)


@pytest.mark.parametrize(
    ("validation", "error", "said"),
    [
        (0.0, DataError, "no share between 0 and 1"),
        (1.0, DataError, "no share between 0 and 1"),
        (0.99, DataError, "of 10 rows leaves none to train on"),
        ([], EmptyDataError, "the validation has no rows"),
        ("tset", DataError, "Nor is it a split of the data 'folder', which has: .*test"),
        (3, DataError, "int cannot be used"),
    ],
)
def test_wrong_rows_to_hold_out(files: Path, validation: Any, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        read_data("folder", validation)


def test_what_to_do_with_bad_rows_is_one_of_two() -> None:
    with pytest.raises(UnknownNameError, match="on_bad_row 'ignore'"):
        read_data(ROWS, on_bad_row="ignore")
