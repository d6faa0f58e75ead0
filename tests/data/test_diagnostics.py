"""Files that cannot be read, or would be read as something else than what they say."""

import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalekit.data import diagnostics
from scalekit.data.diagnostics import json_files
from scalekit.data.sources.data_part import DataPart, Skipped
from scalekit.data.sources.read import Source, read_data
from scalekit.errors import DataError, EmptyDataError, RowError

ROWS = [{"text": f"row {i}"} for i in range(10)]
CHAT = [{"messages": [{"role": "user", "content": f"hello {i}"}]} for i in range(10)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def with_row(rows: list[Any], place: int, row: Any) -> list[Any]:
    return [*rows[:place], row, *rows[place:]]


def write(name: str, content: bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content)
    return name


def only(source: Source) -> DataPart:
    (part,) = source.parts
    return part


def texts(part: DataPart) -> list[Any]:
    return [row["text"] for row in part.rows]


BAD_LINES = {
    "bytes that are no UTF-8": (ROWS, b'{"text": "caf\xe9"}\n', "byte 14 of the line, 0xe9, is no UTF-8"),
    "half an object": (ROWS, b'{"text": "a\n', "it is no JSON: .* at column"),
    "a comma too many": (ROWS, b'{"text": "a",}\n', "it is no JSON: .* at column"),
    "a list": (ROWS, b'["a"]\n', r"it is a list \(\['a'\]\), and a row is an object"),
    "a text": (ROWS, b'"a"\n', r"it is text \('a'\), and a row is an object"),
    "a key twice": (
        ROWS,
        b'{"text": "a", "text": "b"}\n',
        r"Arrow cannot read it: Column\(/text\) was specified twice",
    ),
    "half a surrogate pair": (ROWS, b'{"text": "\\ud800"}\n', "Arrow cannot read it: The surrogate pair"),
    "a number among texts": (ROWS, {"text": 7}, r"the column 'text' is a number here \(7\), and text in other rows"),
    "a number among texts that is one": (ROWS, {"text": 7.5}, r"is a number here \(7.5\)"),
    "a text among numbers": ([{"n": i} for i in range(10)], {"n": "7"}, r"'n' is text here \('7'\), and a number"),
    "true among numbers": ([{"n": i} for i in range(10)], {"n": True}, "'n' is true or false here"),
    "a list among texts": (ROWS, {"text": ["a"]}, r"the column 'text' is a list here \(\['a'\]\), and text"),
    "an object among texts": (ROWS, {"text": {"a": 1}}, r"the column 'text' is an object here"),
    "a text among conversations": (
        CHAT,
        {"messages": "hi"},
        r"the column 'messages' is text here \('hi'\), and a list",
    ),
    "a number within": (
        CHAT,
        {"messages": [{"role": "user", "content": 3}]},
        r"'messages\[\].content' is a number here \(3\), and text",
    ),
    "a number within, and a key missing": (
        CHAT,
        {"messages": [{"content": 3}]},
        r"'messages\[\].content' is a number here",
    ),
    "a text as a message": (CHAT, {"messages": ["hi"]}, r"'messages\[\]' is text here \('hi'\), and an object"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_named_or_left_out(case: str) -> None:
    rows, bad, said = BAD_LINES[case]
    write("rows.jsonl", lines(*with_row(rows, 6, bad)))
    with pytest.raises(RowError, match=rf"^rows\.jsonl, line 7: .*{said}.*leave such rows out with on_bad_row='skip'"):
        read_data("rows.jsonl")
    source = read_data("rows.jsonl", on_bad_row="skip")
    assert list(only(source).rows) == rows
    assert [each.where for each in source.skipped] == ["rows.jsonl, line 7"]
    assert [only(source).name_row(i) for i in (5, 6)] == ["rows.jsonl, row 5 (line 6)", "rows.jsonl, row 6 (line 8)"]


def test_the_kind_of_most_rows_is_right_wherever_the_others_stand() -> None:
    write("rows.jsonl", lines({"text": 5}, *ROWS, {"text": 7}))
    with pytest.raises(RowError, match=r"line 1: the column 'text' is a number here \(5\), and text"):
        read_data("rows.jsonl")
    source = read_data("rows.jsonl", on_bad_row="skip")
    assert source.skipped == (
        Skipped("rows.jsonl, line 1", "the column 'text' is a number here (5), and text in other rows"),
        Skipped("rows.jsonl, line 12", "the column 'text' is a number here (7), and text in other rows"),
    )
    assert texts(only(source)) == [row["text"] for row in ROWS]


def test_several_faults_of_several_files_are_all_left_out() -> None:
    write("shards/a.jsonl", lines(*ROWS[:5], b"{\n", {"text": 7}))
    write("shards/b.jsonl", lines(b"\xff\n", *ROWS[5:], b"\n", [1]))
    source = read_data("shards/*.jsonl", on_bad_row="skip")
    assert texts(only(source)) == [row["text"] for row in ROWS]
    assert [each.where for each in source.skipped] == [
        "shards/a.jsonl, line 6",
        "shards/a.jsonl, line 7",
        "shards/b.jsonl, line 1",
        "shards/b.jsonl, line 8",
    ]
    assert only(source).name_row(5) == "shards/b.jsonl, row 0 (line 2)"


def test_files_of_a_folder_are_named_too() -> None:
    write("folder/train.jsonl", lines(*ROWS))
    write("folder/validation.jsonl", lines(*ROWS[:3], {"text": 7}))
    with pytest.raises(RowError, match=r"^folder/validation.jsonl, line 4: "):
        read_data("folder")
    source = read_data("folder", on_bad_row="skip")
    assert (len(only(source).rows), len(source.validation[0].rows)) == (10, 3)


def test_what_was_left_out_is_known_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    write("rows.jsonl", lines(*ROWS, b"{\n", {"text": 7}))
    first = read_data("rows.jsonl", on_bad_row="skip")

    def again(*_: Any) -> Any:
        raise AssertionError("searched again")

    monkeypatch.setattr(json_files, "faults", again)
    second = read_data("rows.jsonl", on_bad_row="skip")
    assert (second.skipped, texts(only(second))) == (first.skipped, texts(only(first)))


def test_data_that_changes_is_judged_anew() -> None:
    write("rows.jsonl", lines(*ROWS, {"text": 7}))
    assert len(read_data("rows.jsonl", on_bad_row="skip").skipped) == 1
    write("rows.jsonl", lines(*ROWS, {"text": 7}, {"text": 8}))
    assert len(read_data("rows.jsonl", on_bad_row="skip").skipped) == 2


def test_good_rows_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    write("rows.jsonl", lines(*ROWS))
    monkeypatch.setattr(diagnostics, "_found", None)
    assert read_data("rows.jsonl", on_bad_row="skip").skipped == ()


# What `datasets` would change without a word.

LONG = [{"text": "word " * 200 + str(i)} for i in range(11_000)]  # more than the 10 MiB that it reads at once


@pytest.mark.parametrize("value", [7, {"a": 1}, ["a"]])
def test_a_row_beyond_the_first_batch(value: Any) -> None:
    write("rows.jsonl", lines(*with_row(LONG, 10_900, {"text": value})))
    loaded = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
    assert loaded[-1]["text"].startswith('"word'), "the texts around are put in quotes: the trap is still there"
    with pytest.raises(
        RowError, match=r"rows.jsonl, line 10901: the column 'text' is .* here .*, and text in other rows"
    ):
        read_data("rows.jsonl")
    source = read_data("rows.jsonl", on_bad_row="skip")
    assert len(source.skipped) == 1
    assert texts(only(source)) == [row["text"] for row in LONG]


def test_a_file_of_numbers_beside_one_of_texts() -> None:
    write("shards/a.jsonl", lines(*ROWS))
    write("shards/b.jsonl", lines({"text": 7}, {"text": 8}))
    with pytest.raises(RowError, match=r"^shards/b.jsonl, line 1: the column 'text' is a number here"):
        read_data("shards/*.jsonl")
    assert texts(only(read_data("shards/*.jsonl", on_bad_row="skip"))) == [row["text"] for row in ROWS]


def test_a_parquet_file_of_numbers_beside_one_of_texts() -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), "0.parquet")
    pq.write_table(pa.table({"text": [7, 8]}), "1.parquet")
    for on_bad_row in ("error", "skip"):
        with pytest.raises(DataError, match=r"^1.parquet: the column 'text' is a number here, and text in 0.parquet"):
            read_data("*.parquet", on_bad_row=on_bad_row)
    chats = [[{"content": "a"}]], [[{"content": 1}]]
    for i, chat in enumerate(chats):
        pq.write_table(pa.table({"messages": chat}), f"{i}.parquet")
    with pytest.raises(DataError, match=r"^1.parquet: 'messages\[\].content' is a number here, and text"):
        read_data("*.parquet")


def test_objects_of_different_keys_are_no_fault() -> None:
    calls = [{"tool": {"name": "f", "arguments": {f"x{i}": i if i % 2 else "a"}}} for i in range(10)]
    source = read_data(write("rows.jsonl", lines(*calls)))
    assert list(only(source).rows) == calls
    messages = [
        {"messages": [{"role": "a", "content": "42"}, {"role": "b", "tool_calls": [{"x": i}]}]} for i in range(5)
    ]
    assert list(only(read_data(write("chats.jsonl", lines(*messages)))).rows) == messages


def test_what_few_objects_have_is_not_compared() -> None:
    calls: list[Any] = [{"tool": {"arguments": {f"x{i}": i}}} for i in range(10)]
    calls += [{"tool": {"arguments": {"v": value}}} for value in (1, "a", [1, "a"])]
    assert list(only(read_data(write("rows.jsonl", lines(*calls)))).rows) == calls
    write("rows.jsonl", lines(*calls, b"{\n"))
    assert [each.where for each in read_data("rows.jsonl", on_bad_row="skip").skipped] == ["rows.jsonl, line 14"]


def test_a_column_that_only_rows_after_the_first_thousand_have_is_judged_by_its_first() -> None:
    write("rows.jsonl", lines(*ROWS * 101, {"text": "a", "id": 1}, {"text": "b", "id": "x"}, {"text": "c", "id": 2}))
    with pytest.raises(RowError, match=r"^rows.jsonl, line 1012: the column 'id' is text here \('x'\), and a number"):
        read_data("rows.jsonl")


def test_a_message_may_be_a_text_or_a_list_of_parts() -> None:
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    rows = with_row(CHAT, 4, parts)
    assert list(only(read_data(write("rows.jsonl", lines(*rows)))).rows) == rows
    number = {"messages": [{"role": "user", "content": "42"}]}
    write("rows.jsonl", lines(*with_row(rows, 8, number)))
    loaded = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
    assert loaded[8]["messages"][0]["content"] == 42, "the text becomes a number: the trap is still there"
    with pytest.raises(
        RowError, match=r"line 9: 'messages\[\].content' is a text here .* would take this text \('42'\)"
    ):
        read_data("rows.jsonl")
    assert list(only(read_data("rows.jsonl", on_bad_row="skip")).rows) == rows


def test_an_empty_line_does_not_give_all_objects_all_keys() -> None:
    calls = [{"arguments": {"x": 1}}, {"arguments": {"y": 1}}]
    write("rows.jsonl", lines(*calls, b"\n"))
    loaded = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
    assert loaded[0] == {"arguments": {"x": 1, "y": None}}, "keys are added: the trap is still there"
    with pytest.raises(RowError, match=r"^rows.jsonl, line 3: it is empty, for which `datasets` adds keys"):
        read_data("rows.jsonl")
    assert list(only(read_data("rows.jsonl", on_bad_row="skip")).rows) == calls
    write("rows.jsonl", lines({"arguments": {"x": 1}}, b"\n"))
    assert len(only(read_data("rows.jsonl")).rows) == 1


def test_an_empty_line_among_rows_that_need_json() -> None:
    rows = with_row(CHAT, 4, {"messages": [{"role": "user", "content": []}]})
    write("rows.jsonl", lines(*rows, b"\n"))
    with pytest.raises(RowError, match=r"^rows.jsonl, line 12: it is empty. Take it out"):
        read_data("rows.jsonl")
    assert len(only(read_data("rows.jsonl", on_bad_row="skip")).rows) == 11


def test_whole_numbers_and_fractions_are_both_numbers() -> None:
    source = read_data(write("rows.jsonl", lines({"n": 1}, {"n": 1.5}, {"n": None}, {})))
    assert only(source).rows["n"][:] == [1.0, 1.5, None, None]


def test_a_column_that_comes_too_late() -> None:
    write("shards/a.jsonl", lines(*ROWS))
    write("shards/b.jsonl", lines({"text": "a"}, {"text": "b", "id": 3}))
    with pytest.raises(
        DataError, match=r"^shards/b.jsonl, line 2: the column 'id' comes too late.*a.jsonl that column"
    ):
        read_data("shards/*.jsonl", on_bad_row="skip")


# A file that is one piece of JSON.


def test_a_piece_of_json_is_named_by_its_rows() -> None:
    write("rows.json", json.dumps(with_row(ROWS, 7, {"text": 7})).encode())
    for on_bad_row in ("error", "skip"):
        with pytest.raises(RowError, match=r"^rows.json, row 7: the column 'text' is a number here"):
            read_data("rows.json", on_bad_row=on_bad_row)
    write("rows.json", json.dumps(ROWS, indent=1).encode()[:-20])
    with pytest.raises(DataError, match=r"^rows.json, line \d+: the file is no JSON"):
        read_data("rows.json")


# CSV.


def table(*rows: bytes) -> bytes:
    return b"a,b\n" + b"".join(rows)


@pytest.mark.parametrize(
    ("bad", "length", "said"),
    [
        (b"1,2,3\n", 1, "it has 3 fields, and the header has 2"),
        (b'1,"two\nlines",3\n', 2, "it has 3 fields, and the header has 2"),
        (b"1,caf\xe9\n", 1, "byte 6 of the line, 0xe9, is no UTF-8"),
        (b'1,"two\n', 1, "a quotation mark opens here and is never closed"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_a_bad_csv_row_is_named_or_left_out(bad: bytes, length: int, said: str, place: int) -> None:
    rows = [f"{i},x{i}\n".encode() for i in range(5)]
    write("rows.csv", table(*with_row(rows, place, bad)))
    with pytest.raises(RowError, match=rf"^rows.csv, line {place + 2}: {said}"):
        read_data("rows.csv")
    source = read_data("rows.csv", on_bad_row="skip")
    assert [each.where for each in source.skipped] == [f"rows.csv, line {place + 2}"]
    assert only(source).rows[:] == {"a": list(range(5)), "b": [f"x{i}" for i in range(5)]}
    assert only(source).name_row(4) == f"rows.csv, row 4 (line {6 + length})"


def test_a_folder_of_tables_keeps_its_separator() -> None:
    write("folder/train.tsv", b"a\tb\n1\tx\n1\t2\t3\n4\ty\n")
    with pytest.raises(RowError, match=r"^folder/train.tsv, line 3: it has 3 fields"):
        read_data("folder")
    assert only(read_data("folder", on_bad_row="skip")).rows[:] == {"a": [1, 4], "b": ["x", "y"]}


def test_a_csv_header_that_names_too_few_columns_is_refused() -> None:
    write("rows.csv", table(b"1,2,3\n", b"4,5,6\n"))
    loaded = datasets.load_dataset("csv", data_files="rows.csv", split="train")
    assert loaded[0] == {"a": 2, "b": 3}, "the first field is lost: the trap is still there"
    with pytest.raises(RowError, match=r"line 2: it has 3 fields.*name every column in the header"):
        read_data("rows.csv")
    with pytest.raises(
        EmptyDataError, match=r"no rows but bad ones, the first being rows.csv, line 2: it has 3 fields"
    ):
        read_data("rows.csv", on_bad_row="skip")


def test_texts_that_look_like_numbers_stay_texts() -> None:
    write("rows.csv", table(*[b"x,y\n"] * 10_000, b"007,1.50\n"))
    loaded = datasets.load_dataset("csv", data_files="rows.csv", split="train")
    assert loaded[-1] == {"a": "7", "b": "1.5"}, "zeros are lost: the trap is still there"
    assert only(read_data("rows.csv")).rows[-1] == {"a": "007", "b": "1.50"}


def test_a_text_in_a_csv_column_that_began_as_numbers() -> None:
    write("rows.csv", table(*[b"1,2\n"] * 10_000, b"3,x\n"))
    rows = only(read_data("rows.csv")).rows
    assert rows[0] == {"a": 1, "b": "2"}
    assert rows[-1] == {"a": 3, "b": "x"}


def test_csv_files_of_different_columns() -> None:
    write("a.csv", b"a,b\n1,2\n")
    write("b.csv", b"a,c\n1,2\n")
    with pytest.raises(DataError, match=r"^b.csv, line 1: its columns are a, c; those of a.csv are a, b"):
        read_data("*.csv")


def test_a_csv_file_with_one_column_more() -> None:
    write("a.csv", b"a,b\n1,2\n")
    write("b.csv", b"a,b,c\n1,2,3\n")
    with pytest.raises(DataError, match=r"^b.csv, line 1: its columns are a, b, c; those of a.csv are a, b"):
        read_data("*.csv")


def test_long_csv_fields_are_no_fault() -> None:
    text = "x" * 300_000
    part = only(read_data(write("rows.csv", f'a,b\n1,"{text}"\n2,\n'.encode())))
    assert part.rows[0]["b"] == text
    assert part.name_row(1) == "rows.csv, row 1 (line 3)"


# Files that are not whole.


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("content", [b"", b"PAR1 no more", None], ids=["empty", "junk", "cut short"])
def test_a_damaged_parquet_file_is_named(on_bad_row: str, content: bytes | None) -> None:
    for i in range(3):
        pq.write_table(pa.table({"text": [f"{j}" for j in range(1000)]}), f"{i}.parquet")
    Path("1.parquet").write_bytes(Path("1.parquet").read_bytes()[:-100] if content is None else content)
    with pytest.raises(DataError, match=r"^1.parquet: it is cut short, or no Parquet file"):
        read_data("*.parquet", on_bad_row=on_bad_row)


def test_a_damaged_page_of_a_parquet_file_is_named() -> None:
    for i in range(2):
        pq.write_table(pa.table({"text": [f"{j}" for j in range(1000)]}), f"{i}.parquet", compression="snappy")
    content = bytearray(Path("1.parquet").read_bytes())
    content[50:1500] = b"\xff" * 1450
    Path("1.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"^1.parquet: it is damaged after row 0"):
        read_data("*.parquet")


def test_a_damaged_arrow_file_is_named() -> None:
    batch = pa.table({"text": [f"{j}" for j in range(1000)]})
    with pa.OSFile("rows.arrow", "wb") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        writer.write_table(batch)
    Path("rows.arrow").write_bytes(Path("rows.arrow").read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"^rows.arrow: it is cut short, or no Arrow file"):
        read_data("rows.arrow")


def test_a_tar_file_that_was_cut_between_members_is_named() -> None:
    with tarfile.open("rows.tar", "w") as tar:
        for i in range(20):
            member = Path(write(f"members/{i:02}.txt", b"x" * 1000))
            tar.add(member, member.name)
    whole = Path("rows.tar").read_bytes()
    assert len(only(read_data("rows.tar")).rows) == 20
    Path("rows.tar").write_bytes(whole[: 512 * 3 * 12])
    with pytest.raises(DataError, match=r"^rows.tar: it is cut short, or no tar file"):
        read_data("rows.tar")


def test_a_file_of_a_pattern_that_is_gone_is_named() -> None:
    write("a.jsonl", lines(*ROWS))
    Path("b.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(DataError, match=r"there is no file b.jsonl"):
        read_data("*.jsonl")


def test_empty_files() -> None:
    for name in ("a.jsonl", "a.csv", "a.txt"):
        with pytest.raises(DataError, match=r"a\.\w+.*empty|no rows"):
            read_data(write(name, b""))
    write("b.jsonl", lines(*ROWS))
    assert texts(only(read_data("*.jsonl"))) == [row["text"] for row in ROWS]


def test_a_text_file_that_is_no_utf8() -> None:
    write("rows.txt", b"one\ncaf\xe9\n")
    with pytest.raises(
        DataError, match=r"^rows.txt, line 2: byte 4 of the line, 0xe9, is no UTF-8. Save the file as UTF-8$"
    ):
        read_data("rows.txt", on_bad_row="skip")


# Lists in Python.


@pytest.mark.parametrize("bad", [{"text": 7}, {"text": ["a"]}, {"text": b"a"}, {"text": True}])
def test_a_row_of_a_list_is_named_or_left_out(bad: dict[str, Any]) -> None:
    rows = with_row(ROWS, 6, bad)
    with pytest.raises(RowError, match=r"^row 6: the column 'text' is .* here .*, and text in other rows"):
        read_data(rows)
    source = read_data(rows, on_bad_row="skip")
    assert texts(only(source)) == [row["text"] for row in ROWS]
    assert [each.where for each in source.skipped] == ["row 6"]
    assert [only(source).name_row(i) for i in (5, 6)] == ["row 5", "row 7"]


def test_a_list_that_makes_no_table_for_another_reason() -> None:
    with pytest.raises(DataError, match="do not make a table"):
        read_data([{"text": object()}])
