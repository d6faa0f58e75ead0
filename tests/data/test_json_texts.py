"""JSON: text stays what stands in the file, whatever it looks like."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from scalekit.data.encoders.causal import Causal
from scalekit.data.encoders.truncation import Limit
from scalekit.data.sources.read import read_data
from scalekit.errors import RowError
from tests.data.test_chat_template import make_tokenizer

DATES = ["2024-01-01", "2024-01-02 10:00:00", "2024-01-03T10:00:00Z"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "cache"))


def rows(*lines: str, name: str = "rows.jsonl", streaming: bool = False, skip: bool = False) -> list[dict[str, Any]]:
    Path(name).write_text("\n".join(lines) + "\n")
    source = read_data({"path": name, "streaming": streaming}, on_bad_row="skip" if skip else "error")
    return list(source.parts[0].rows)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("date", DATES)
def test_dates_are_texts(date: str, streaming: bool) -> None:
    row = {
        "text": date,
        "n": 0.5,
        "messages": [{"role": "user", "content": date, "tags": [date]}],
        "tokens": [date, date],
    }
    trap = datasets.load_dataset("json", data_files=write_lines([row] * 2), split="train")
    assert "timestamp" in str(trap.features), "the trap is still there"
    assert rows(*[json.dumps(row)] * 2, streaming=streaming) == [row] * 2


def write_lines(of: list[dict[str, Any]]) -> str:
    Path("trap.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
    return "trap.jsonl"


def test_dates_in_a_file_that_is_one_piece() -> None:
    assert rows(json.dumps([{"text": DATES[0]}, {"text": DATES[1]}]), name="a.json") == [
        {"text": DATES[0]},
        {"text": DATES[1]},
    ]


@pytest.mark.parametrize("texts", [["abc", DATES[0]], [DATES[0], "abc"]])
def test_files_of_which_one_holds_dates_alone(texts: list[str]) -> None:
    """`datasets` casts the dates of the later file, or cannot load the texts."""
    for number, text in enumerate(texts):
        Path(f"part{number}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    assert list(read_data("part*.jsonl").parts[0].rows) == [{"text": text} for text in texts]


def test_a_bad_row_among_dates_is_left_out() -> None:
    lines = [json.dumps({"text": DATES[0]}), "{", json.dumps({"text": DATES[0]})]
    with pytest.raises(RowError, match=r"^rows.jsonl, line 2: it is no JSON"):
        rows(*lines)
    assert rows(*lines, skip=True) == [{"text": DATES[0]}] * 2


def test_rows_of_which_some_lack_a_date() -> None:
    date = DATES[0]
    found = rows(
        json.dumps({"text": date, "messages": [{"content": date, "at": date}]}),
        json.dumps({"text": None, "messages": [{"content": date}]}),
        json.dumps({"messages": []}),
    )
    assert [row["text"] for row in found] == [date, None, None]
    assert [[turn.get("at") for turn in row["messages"]] for row in found] == [[date], [None], []]
    assert found[1]["messages"][0]["content"] == date


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        ["5", "7"],
        ["123456789012345678901234567890", "7"],
        ["1.0", "1e5", "0.50"],
        ["true", "false"],
        ["9007199254740993", "0.5"],
    ],
)
def test_numbers_in_a_column_of_texts_are_as_written(values: list[str], streaming: bool) -> None:
    lines = [f'{{"text": {value}, "label": 1}}' for value in values]
    assert rows(*lines, streaming=streaming) == [{"text": value, "label": 1} for value in values]


@pytest.mark.parametrize("other", ["5", "1.0", "true", "123456789012345678901234567890"])
def test_mixed_types_are_refused_by_their_line(other: str) -> None:
    with pytest.raises(RowError, match=r"^rows.jsonl, line 2: the column 'text' is .*Write one type throughout"):
        rows('{"text": "a"}', f'{{"text": {other}}}')


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, r"'messages\[0\].content' is 5 \(int\), and should be text"),
        ({"prompt": 0, "completion": "a"}, r"'prompt' is '0' \(int\)"),
        ({"prompt": "a", "completion": None}, "'completion' is missing"),
    ],
)
def test_what_is_no_text_is_refused_by_its_value(row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said):
        Causal(make_tokenizer("{{ messages[0].content }}"), "all", Limit()).encode([row])
