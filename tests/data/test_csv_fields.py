"""CSV: text stays what stands in the file, and plain numbers are numbers."""

from pathlib import Path
from typing import Any

import pytest

from scalekit.data.encoders.labelled import Head, labels_of
from scalekit.data.sources.csv_fields import number_type
from scalekit.data.sources.data_part import DataPart
from scalekit.data.sources.read import read_data
from scalekit.errors import RowError

WORDS = ["NA", "null", "None", "nan", "N/A", "NULL", "<NA>", "True", "false", "001", "1e5", "1.0", "2024-01-01"]
WORDS += ["123456789012345678901234567890", "+1", "-0", "inf", "1_000", "0x10"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "cache"))


def column(name: str, fields: list[str], kind: str = "csv", streaming: bool = False) -> list[Any]:
    """A column of fields, as it is read."""
    between = {"csv": ",", "tsv": "\t"}[kind]
    rows = [f"{field}{between}z" for field in fields]
    Path(f"rows.{kind}").write_text("\n".join([f"{name}{between}other", *rows, ""]))
    part: DataPart = read_data({"path": f"rows.{kind}", "streaming": streaming}).parts[0]
    return [row[name] for row in part.rows]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
@pytest.mark.parametrize("streaming", [False, True])
def test_words_stay_words(kind: str, streaming: bool) -> None:
    assert column("text", WORDS, kind, streaming) == WORDS
    assert column("label", WORDS, kind, streaming) == WORDS


@pytest.mark.parametrize(
    "fields", [["1", "2"], ["0.5", "7"], ["true", "True"], ["NA"], ["1", "1.0", "x"], ["2024-01-01"]]
)
def test_a_column_that_is_used_as_text_is_text(fields: list[str]) -> None:
    assert column("completion", fields) == fields


@pytest.mark.parametrize(
    ("fields", "read_as"),
    [
        (["3", "-1", "0"], [3, -1, 0]),
        (["0.25", "3", "-1.25"], [0.25, 3.0, -1.25]),
        (["5.00", "4.75", "0.50"], [5.0, 4.75, 0.5]),
        (["1e-05", "0.5"], [1e-05, 0.5]),
        (["3", "NA", "", "4"], [3, None, None, 4]),  # the column says that a word among numbers is none
        (["001", "002", "010"], ["001", "002", "010"]),
        (["1", "01"], ["1", "01"]),
        (["1", "1.0"], ["1", "1.0"]),
        (["0.5", "0.50"], ["0.5", "0.50"]),
        (["0.50", "3"], ["0.50", "3"]),
        (["0", "-0"], ["0", "-0"]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["0.1234567890123456789", "1"], ["0.1234567890123456789", "1"]),
        (["NA", "null", ""], ["NA", "null", None]),
        (["1", "many"], ["1", "many"]),
    ],
)
def test_a_column_of_plain_numbers_is_one_of_numbers(fields: list[str], read_as: list[Any]) -> None:
    assert column("label", fields) == read_as


@pytest.mark.parametrize(
    ("fields", "classes"),
    [
        (["EU", "NA", "AS", "NA"], ("AS", "EU", "NA")),
        (["001", "002", "010", "001"], ("001", "002", "010")),
        (["True", "False"], ("False", "True")),
        (["0", "2", "1"], ("0", "1", "2")),
    ],
)
def test_classes_have_the_names_that_stand_in_the_file(fields: list[str], classes: tuple[str, ...]) -> None:
    Path("rows.csv").write_text("\n".join(["text,label", *(f"a,{field}" for field in fields), ""]))
    source = read_data("rows.csv", on_bad_row="skip")
    assert (labels_of([source.parts[0].rows], "label", Head()).names, source.skipped) == (classes, ())


def test_all_splits_have_one_type() -> None:
    Path("data").mkdir()
    Path("data/train.csv").write_text("text,label\na,1\nb,2\n")
    Path("data/test.csv").write_text("text,label\na,1\nb,002\n")
    source = read_data("data")
    assert [part.rows["label"][:] for part in (*source.parts, *source.validation)] == [["1", "2"], ["1", "002"]]


def test_a_word_late_in_a_stream_of_numbers_is_refused() -> None:
    with pytest.raises(
        RowError, match=r"the column 'label' holds numbers in the first rows .* and '007' in a later one"
    ):
        column("label", [*map(str, range(1100)), "007"], streaming=True)


def test_a_number_of_fixed_decimals_that_loses_digits_is_text() -> None:
    assert number_type(["0.1234567890123456789", "0.2234567890123456789"]) == ""
    assert number_type(["0.10", "0.20"]) == "float64"
    assert number_type([]) == ""
