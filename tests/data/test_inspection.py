"""`scalekit inspect` and `scalekit prepare`: what is said of a job's rows before it runs."""

import json
import sys
from pathlib import Path

import pytest

from scalekit.cli import main
from tests.support import language_model
from tests.support.processes import run

ROWS = [{"prompt": "ab"[: 1 + i % 2], "completion": "cdefgh"[: 1 + i % 6]} for i in range(40)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("inspect")
    language_model.save_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = [f"model: {folder / 'model'}", f"data: {folder / 'rows.jsonl'}", "max_steps: 1", "loss_on: completions"]
    (folder / "job.yaml").write_text("\n".join([*lines, "sequence_length: 8"]))
    return str(folder / "job.yaml")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


def test_rows_are_shown_as_the_model_sees_them(job: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = said(capsys, "inspect", job, "--rows", "40", "--packing", "false", "--plot", str(tmp_path / "lengths.png"))
    assert "causal-lm, by the columns prompt, completion" in output
    assert "cut        6 of 40 rows of the data to sequence_length" in output
    assert "\nab[cdefgh]\n" in output  # its end is cut off
    assert "row 0: 3 tokens, 2 with loss\na[c#]\n" in output
    assert (tmp_path / "lengths.png").read_bytes()[:4] == b"\x89PNG"


def test_packed_rows_show_their_documents(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = said(capsys, "inspect", job, "--packing", "true")
    assert "packing    40 documents in" in output
    assert "padding" in output
    assert "of a batch of packed rows" in output


def test_tokens_are_coloured_for_people(job: str) -> None:
    program = "import sys; sys.stdout.isatty = lambda: True; from scalekit.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "inspect", job, "--rows", "40"]
    output = run(command, 120)
    assert "\x1b[2;36ma\x1b[0m" in output  # a prompt, faint
    assert "\x1b[1;33mc\x1b[0m" in output  # the second document's completion


def test_preparing_ahead(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = said(capsys, "prepare", job, "--packing", "false")
    assert "rows              40" in output
    assert "cut_rows          6" in output
