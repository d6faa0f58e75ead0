"""Documents are packed by best-fit decreasing, each once and whole; the rows are kept and found again."""

from itertools import chain

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, LargeList, List, Value
from hypothesis import given
from hypothesis import strategies as st

from scalekit.data.packing.bins import best_fit, fill
from scalekit.data.packing.packing import Pack, pack
from scalekit.errors import ColumnError, ConfigError, EmptyDataError, RowError
from scalekit.objectives.counts import IGNORED, Entries
from scalekit.objectives.model_loss import ModelLoss

LENGTHS = st.integers(1, 60).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=80), st.just(capacity))
)


def array(lengths: list[int]) -> np.ndarray:
    return np.array(lengths, dtype=np.int64)


def rows_of(bins) -> list[list[int]]:
    return [bins.documents[a:b].tolist() for a, b in zip(bins.bounds, bins.bounds[1:], strict=False)]


def one_by_one(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing as it is defined, a document at a time over all rows."""
    rows, spaces, since = [], [], []
    for now, document in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fitting = [r for r, space in enumerate(spaces) if space >= lengths[document]]
        if not fitting:
            rows.append([])
            spaces.append(capacity)
            since.append(now)
            fitting = [len(rows) - 1]
        row = min(fitting, key=lambda r: (spaces[r], since[r]))
        rows[row].append(document)
        spaces[row] -= lengths[document]
        since[row] = now
    return [sorted(row) for row in rows]


@given(LENGTHS)
def test_groups_are_dealt_as_documents_one_by_one_would_be(case):
    lengths, capacity = case
    assert rows_of(best_fit(array(lengths), capacity)) == one_by_one(lengths, capacity)


@given(LENGTHS)
def test_each_document_once_and_no_row_too_long(case):
    lengths, capacity = case
    rows = rows_of(best_fit(array(lengths), capacity))
    assert sorted(chain(*rows)) == list(range(len(lengths)))
    assert all(row and sum(lengths[document] for document in row) <= capacity for row in rows)


def test_a_million_documents_fill_their_rows():
    lengths = np.clip(np.random.default_rng(0).lognormal(5.5, 1, 10**6), 1, 2048).astype(np.int64)
    assert fill(lengths, 2048) > 0.999
    assert fill(array([3, 3, 3]), 4) == 9 / 12


def test_documents_that_no_row_holds_are_refused():
    with pytest.raises(ConfigError, match="document 1 has 9 tokens, and a row holds 8"):
        best_fit(array([3, 9]), 8)
    with pytest.raises(RowError, match="document 2 has no tokens"):
        best_fit(array([3, 8, 0]), 8)
    with pytest.raises(EmptyDataError):
        fill(array([]), 8)


def documents(number: int, seed: int = 0) -> list[dict]:
    draw = np.random.default_rng(seed)
    lists = [draw.integers(1, 99, draw.integers(1, 9)).tolist() for _ in range(number)]
    return [{"input_ids": ids, "labels": [-i for i in ids], "cut": [0, 0, 0], "name": "x"} for ids in lists]


def check_rows(packed: Dataset, tokens: Dataset, capacity: int) -> None:
    """Each row holds its documents' tokens, one after another, and learns all but their first."""
    assert sorted(chain(*packed["documents"])) == list(range(len(tokens)))
    for row in packed:
        parts = [tokens[document] for document in row["documents"]]
        assert row["document_lengths"] == [len(part["input_ids"]) for part in parts]
        assert row["input_ids"] == list(chain(*(part["input_ids"] for part in parts)))
        assert row["labels"] == list(chain(*([IGNORED, *part["labels"][1:]] for part in parts)))
        assert len(row["input_ids"]) <= capacity


def test_rows_hold_their_documents():
    tokens = Dataset.from_list(documents(200))
    packed = pack(tokens, 16)
    check_rows(packed, tokens, 16)
    assert packed.column_names == ["input_ids", "labels", "document_lengths", "documents"]
    assert packed.cache_files == []


def test_rows_are_written_in_parts(monkeypatch):
    monkeypatch.setattr("scalekit.data.packing.packing._TOKENS_AT_ONCE", 50)
    tokens = Dataset.from_list(documents(200))
    check_rows(pack(tokens, 16), tokens, 16)


def test_a_selection_is_packed_as_it_is_selected():
    tokens = Dataset.from_list(documents(300)).shuffle(seed=1).select(range(20, 120, 3))
    check_rows(pack(tokens, 16), tokens, 16)
    check_rows(pack(tokens.with_format("torch"), 16).with_format(None), tokens, 16)


def test_other_lists_as_long_are_packed_alike():
    rows = [
        row | {"weights": [0.5] * len(row["input_ids"]), "words": ["a"] * len(row["input_ids"])}
        for row in documents(50)
    ]
    packed = pack(Dataset.from_list(rows), 16)
    assert packed.column_names == ["input_ids", "labels", "weights", "document_lengths", "documents"]
    assert [len(row) for row in packed["weights"]] == [len(row) for row in packed["input_ids"]]


@pytest.mark.parametrize("kind", [List(Value("uint16")), LargeList(Value("uint16")), List(Value("int64"))])
def test_tokens_of_any_type_without_labels_learn_what_they_hold(kind):
    tokens = Dataset.from_dict({"input_ids": [[1, 2, 65000], [4]]}, features=Features({"input_ids": kind}))
    packed = pack(tokens, 8)
    assert packed[:]["input_ids"] == [[1, 2, 65000, 4]]
    assert packed[:]["labels"] == [[IGNORED, 2, 65000, IGNORED]]
    assert tokens[0] == {"input_ids": [1, 2, 65000]}


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ColumnError, match="There are: text"):
        pack(Dataset.from_dict({"text": ["a"]}), 8)
    with pytest.raises(ColumnError, match="lists of numbers in the columns input_ids, labels"):
        pack(Dataset.from_dict({"input_ids": [[1, 2]], "labels": [1]}), 8)
    with pytest.raises(RowError, match="document 1 has 2 tokens and 1 labels"):
        pack(Dataset.from_dict({"input_ids": [[1], [2, 3]], "labels": [[1], [2]]}), 8)
    with pytest.raises(RowError, match="document 1 has no tokens"):
        pack(Dataset.from_dict({"input_ids": [[1], None]}), 8)
    with pytest.raises(RowError, match="the documents are padded"):
        pack(Dataset.from_dict({"input_ids": [[1, 0]], "attention_mask": [[1, 0]]}), 8)
    with pytest.raises(EmptyDataError):
        pack(Dataset.from_list(documents(3)).select([]), 8)


@pytest.fixture
def stored(tmp_path) -> Dataset:
    Dataset.from_list(documents(200)).save_to_disk(str(tmp_path / "tokens"))
    return Dataset.load_from_disk(str(tmp_path / "tokens"))


def test_rows_are_kept_and_taken_the_next_time(stored, tmp_path, monkeypatch):
    first = pack(stored, 16)
    check_rows(first, stored, 16)
    monkeypatch.setattr("scalekit.data.packing.packing.best_fit", None)
    again = pack(stored, 16)
    assert again[:] == first[:]
    assert again._fingerprint == first._fingerprint
    assert first.cache_files[0]["filename"].startswith(str(tmp_path / "tokens" / "cache-packed-"))
    with pytest.raises(TypeError):
        pack(stored, 17)
    with pytest.raises(TypeError):
        pack(stored.select([3, 1, 2]), 16)


def test_an_interrupted_packing_leaves_nothing(stored, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scalekit.data.packing.packing._join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(stored, 16)
    assert not [*(tmp_path / "tokens").glob("cache-packed-*.arrow"), *(tmp_path / "tokens").glob("*.part")]
    check_rows(pack(stored, 16), stored, 16)


ROWS = [
    {"input_ids": [1, 2, 3, 4], "labels": [IGNORED, 2, IGNORED, 4], "document_lengths": [2, 2], "documents": [0, 5]},
    {"input_ids": [5, 6], "labels": [IGNORED, 6], "document_lengths": [2], "documents": [1]},
]


def test_positions_restart_and_padding_is_a_document():
    batch = Pack(pad_id=9)(ROWS)
    assert set(batch) == {"input_ids", "labels", "position_ids", "use_cache"}
    assert batch["use_cache"] is False
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 9, 9]]
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED, 4], [IGNORED, 6, IGNORED, IGNORED]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 0, 1]]


def test_flat_rows_stand_one_after_another_without_padding():
    batch = Pack(pad_id=9, flat=True)(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[IGNORED, 2, IGNORED, 4, IGNORED, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 0, 1]]
    assert batch["use_cache"] is False


def test_items_are_those_of_the_documents_alone():
    tokens = Dataset.from_list(documents(60))
    rows = list(pack(tokens, 16))
    alone = sum(len(row["input_ids"]) - 1 for row in tokens)
    assert {
        int(ModelLoss(Entries("labels", shifted=True)).items(Pack(0, flat)(rows), len(rows))) for flat in (False, True)
    } == {alone}
    assert Pack(0)(rows)["labels"].dtype == torch.int64
