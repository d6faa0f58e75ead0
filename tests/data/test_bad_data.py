"""Rows that cannot be used are named before anything is trained, or left out and listed where the job says so."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import nn

import scalekit
from scalekit import errors
from tests.support import language_model
from tests.support import parity_cases as parity
from tests.support.processes import run

TEXTS = [{"text": "abcdef"[: 2 + i % 4]} for i in range(12)]


def lines(path: Path, rows: list[Any], at: int, broken: bytes) -> str:
    """A file of JSON lines with another line among them."""
    written = [json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join([*written[:at], broken, *written[at:]]) + b"\n")
    return str(path)


def png(cut: bool) -> dict[str, Any]:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue()[:1500] if cut else file.getvalue(), "path": None}


def wav(silent: bool) -> dict[str, Any]:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.zeros(800) if silent else np.sin(np.arange(800) / 7), 8000, format="WAV")
    return {"bytes": file.getvalue(), "path": None}


def labelled(column: str, value: Any, values: list[Any], labels: list[int] | None = None) -> datasets.Dataset:
    rows = [{column: each, "label": label} for each, label in zip(values, labels or [0] * len(values), strict=True)]
    features = datasets.Features({column: value, "label": datasets.ClassLabel(names=["a", "b", "c"])})
    return datasets.Dataset.from_list(rows, features=features) if labels is None else datasets.Dataset.from_list(rows)


def seen() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))


def heard() -> nn.Module:
    return nn.Linear(800, 3)


def told() -> nn.Module:
    return parity.bert()


Case = tuple[Any, Callable[[Path], Any], type[Exception], str, dict[str, Any]]
IMAGE = datasets.Image(decode=False)
SOUND = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
CLASSES = {"loss": nn.CrossEntropyLoss()}
CASES: dict[str, Case] = {
    "empty": (
        None,
        lambda p: lines(p / "r.jsonl", TEXTS, 5, b'{"text": " "}'),
        errors.RowError,
        r"r\.jsonl, .*'text' is empty",
        {},
    ),
    "utf-8": (
        None,
        lambda p: lines(p / "r.jsonl", TEXTS, 5, b'{"text": "a\xff"}'),
        errors.DataError,
        r"r\.jsonl, .*line 6.*UTF-8",
        {},
    ),
    "mixed": (
        None,
        lambda p: lines(p / "r.jsonl", TEXTS, 5, b'{"text": 7}'),
        errors.DataError,
        r"r\.jsonl, .*line 6",
        {},
    ),
    "no JSON": (
        None,
        lambda p: lines(p / "r.jsonl", TEXTS, 5, b'{"text": '),
        errors.DataError,
        r"r\.jsonl, .*line 6",
        {},
    ),
    "positions": (
        parity.gpt2,
        lambda p: [*TEXTS, {"text": "abc" * 20}],
        errors.RowError,
        r"row 12: it has 61 tokens, and the model 32 positions",
        {},
    ),
    "image": (
        seen,
        lambda p: labelled("image", IMAGE, [png(i == 4) for i in range(8)]),
        errors.RowError,
        r"row 4: its image cannot be read",
        CLASSES,
    ),
    "sound": (
        heard,
        lambda p: labelled("audio", SOUND, [wav(i == 4) for i in range(8)]),
        errors.RowError,
        r"row 4: its audio is silent",
        CLASSES,
    ),
    "label": (
        told,
        lambda p: labelled("text", None, ["ab"] * 8, [0, 1, 2, 0, 5, 0, 0, 0]),
        errors.RowError,
        r"row 4: the label 5 is out of range: there are 3 classes",
        {},
    ),
}


def fit(case: Case, folder: Path, **settings: Any) -> scalekit.Run:
    model, data, _, _, own = case
    return scalekit.fit(
        language_model.save_model(folder / "model") if model is None else model,
        data(folder),
        processor=None if model in (seen, heard) else language_model.make_tokenizer(),
        strategy="single",
        global_batch_size=2,
        max_steps=1,
        output_dir=str(folder / "run"),
        **own,
        **settings,
    )


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(case[2], match=case[3]) as caught:
        fit(case, tmp_path)
    assert "on_bad_row='skip'" in str(caught.value) or "Mend" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CASES)
def test_it_is_left_out_and_listed(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    fit(case, tmp_path, on_bad_row="skip")
    (skipped,) = [json.loads(line) for line in (tmp_path / "run" / "skipped_rows.jsonl").read_text().splitlines()]
    assert re.search(case[3], f"{skipped['where']}: {skipped['why']}")
    summary = json.loads((tmp_path / "run" / "data.json").read_text())
    assert summary["skipped_rows"] == 1
    assert summary["rows"] == (7 if case[0] in (seen, heard, told) else 12)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_parquet_file_cut_short_is_refused(tmp_path: Path, on_bad_row: str) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(TEXTS).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(errors.DataError, match=r"rows\.parquet.*cut short"):
        fit((None, lambda _: str(path), errors.DataError, "", {}), tmp_path, on_bad_row=on_bad_row)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.ColumnError, match=r"has no column that causal-lm can be trained on\. It has: words"):
        fit((None, lambda _: [{"words": "a"}], errors.DataError, "", {}), tmp_path)


@pytest.mark.parametrize("nproc", [1, 2])
def test_the_same_rows_are_skipped_on_any_ranks(tmp_path: Path, nproc: int) -> None:
    model = language_model.save_model(tmp_path / "model")
    data = lines(tmp_path / "r.jsonl", [*TEXTS, {"text": ""}], 5, b'{"text": 7}')
    settings = f"--model {model} --data {data} --on_bad_row skip --max_steps 2 --output_dir {tmp_path / 'run'}"
    run([sys.executable, "-m", "scalekit", "launch", "--nproc", str(nproc), "--", "fit", *settings.split()], 200)
    skipped = [json.loads(line)["where"] for line in (tmp_path / "run" / "skipped_rows.jsonl").read_text().splitlines()]
    assert [re.search(r"line (\d+)", where).group(1) for where in skipped] == ["6", "14"]


def test_a_text_model_takes_its_labels_from_the_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parity.bert().save_pretrained(tmp_path / "bert")
    rows = [{"text": "ab", "label": name} for name in ("no", "yes", "maybe", "never")]
    scalekit.fit(
        str(tmp_path / "bert"),
        rows,
        "sequence-classification",
        processor=language_model.make_tokenizer(),
        strategy="single",
        global_batch_size=2,
        max_steps=1,
        output_dir=str(tmp_path / "run"),
    )
    config = json.loads((tmp_path / "run" / "checkpoints" / "step-00000001" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "maybe", "1": "never", "2": "no", "3": "yes"}
