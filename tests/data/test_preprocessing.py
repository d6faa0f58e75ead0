"""Rows are encoded once, by all cores, whole or not at all; what cannot be used is named."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from scalekit.data import preprocessing
from scalekit.data.encoders.causal import Causal
from scalekit.data.encoders.truncation import Limit
from scalekit.data.preprocessing import prepare
from scalekit.errors import EmptyDataError, RowError
from tests.support.language_model import make_tokenizer

ENCODER = Causal(make_tokenizer(), "all", Limit(cut_at=6))
TEXTS = [{"text": "abcdefgh"[: 1 + i % 8]} for i in range(200)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path


def name_row(place: int) -> str:
    return f"rows.jsonl, row {place}"


def encoded(rows: list[dict], **options: bool) -> preprocessing.Prepared:
    return prepare(datasets.Dataset.from_list(rows), ENCODER, "data", name_row, **options)


def test_lengths_and_losses_are_counted() -> None:
    prepared = encoded(TEXTS)
    assert list(prepared.lengths) == [min(len(row["text"]) + 1, 6) for row in TEXTS]
    assert (prepared.cut, prepared.lost_tokens) == (75, 25 * (1 + 2 + 3))
    assert prepared.rows.column_names == ["input_ids", "labels"]


def test_several_processes_make_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = encoded(TEXTS)
    monkeypatch.setattr(preprocessing, "_SECONDS_A_PROCESS", 1e-6)
    monkeypatch.setattr(preprocessing, "_VERSION", "another cache")
    monkeypatch.setattr(preprocessing, "cores", lambda: 2)
    together = encoded(TEXTS)
    assert together.rows["input_ids"][:] == alone.rows["input_ids"][:]


def test_what_was_prepared_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoded(TEXTS)
    monkeypatch.setattr(Causal, "encode", lambda self, rows: pytest.fail("it was prepared before"))
    assert encoded(TEXTS).rows["labels"][:] == first.rows["labels"][:]


def test_other_settings_are_prepared_again() -> None:
    encoded(TEXTS)
    other = prepare(datasets.Dataset.from_list(TEXTS), Causal(make_tokenizer(), "all", Limit()), "data", name_row)
    assert other.lengths.max() == 9


BAD = [*TEXTS[:50], {"text": ""}, *TEXTS[:30], {"text": None}]


def test_a_bad_row_is_refused_by_name() -> None:
    with pytest.raises(RowError, match=r"rows.jsonl, row 50: 'text' is empty. Fix it, or .*on_bad_row='skip'"):
        encoded(BAD)


def test_bad_rows_are_skipped_and_listed_and_still_refused_later() -> None:
    prepared = encoded(BAD, skip=True)
    assert len(prepared.rows) == len(prepared.lengths) == 80
    assert [(s.where, s.why) for s in prepared.skipped] == [
        ("rows.jsonl, row 50", "'text' is empty"),
        ("rows.jsonl, row 81", "'text' is missing, and should be text"),
    ]
    with pytest.raises(RowError, match="row 50"):
        encoded(BAD)


def test_nothing_but_bad_rows() -> None:
    with pytest.raises(EmptyDataError, match=r"no row of the data can be used: rows\.jsonl, row 0: 'text' is empty"):
        encoded([{"text": " "}] * 3, skip=True)


SLOWLY = """
import sys, time
from pathlib import Path
import datasets
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1])
from tests.data import test_preprocessing as own
encode = own.Causal.encode
def slowly(self, rows):
    with open(sys.argv[1] + "/log", "a") as file:
        file.write(f"{len(rows)}\\n")
    time.sleep(0.3)
    return encode(self, rows)
own.Causal.encode = slowly
own.preprocessing._BATCH = own.preprocessing._SAMPLE = 20
print(len(own.encoded(own.TEXTS).rows))
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SLOWLY, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise TimeoutError(path)


def test_one_process_of_a_node_prepares_and_the_others_wait(own_cache: Path) -> None:
    both = [start(own_cache), start(own_cache)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert outputs == [b"200\n", b"200\n"]
    sample = 1  # to find how many processes are worth their start
    assert (own_cache / "log").read_text() == "20\n" * (sample + 10)


def test_a_preparation_that_was_killed_leaves_nothing_half_made(own_cache: Path) -> None:
    killed = start(own_cache)
    wait_for(own_cache / "log")
    time.sleep(0.7)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert 0 < len((own_cache / "log").read_text().splitlines()) < 10
    prepared = encoded(TEXTS)
    assert list(prepared.lengths) == [min(len(row["text"]) + 1, 6) for row in TEXTS]
    assert np.array_equal(encoded(TEXTS).lengths, prepared.lengths)
