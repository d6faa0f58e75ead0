"""The examples run as they are, and do what they say."""

import json
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml

from scalekit.config.job_file import JobFile
from tests.support.processes import run

EXAMPLES = Path(__file__).parents[1] / "examples"
LAUNCH = [sys.executable, "-m", "scalekit", "launch", "--nproc", "2", "--"]

Prepared = Callable[[str], Path]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """What `prepare_NAME.py` writes, as `build/NAME`; it runs once."""
    place = tmp_path_factory.mktemp("prepared")

    def folder(name: str) -> Path:
        if not (place / "build" / name).is_dir():
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                run([sys.executable, str(EXAMPLES / f"prepare_{name}.py")], 180)
        return place / "build" / name

    return folder


def test_regression_ends_in_the_weights_of_the_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(EXAMPLES / "regression.py"))
    hand, model = example["by_hand"](), example["by_scalekit"]().model
    torch.testing.assert_close(model.weight, hand.weight, rtol=1e-6, atol=0)
    torch.testing.assert_close(model.bias, hand.bias, rtol=1e-6, atol=1e-6)


def test_regression_on_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    output = run([*LAUNCH, str(EXAMPLES / "regression.py")], 180)
    # The ranks share one output, where a line of one may begin before the other's has ended.
    lines = re.findall(r"by (?:ScaleKit|hand) +y = (\d\.\d{6} x \+ \d\.\d{6})", output)
    assert len(lines) == 4
    assert len(set(lines)) == 1


@pytest.mark.parametrize("name", ["finetune", "topics", "digits_vit", "phonemes"])
def test_a_job_file_is_a_job(name: str) -> None:
    job = JobFile(EXAMPLES / f"{name}.yaml").job()
    assert yaml.safe_load(yaml.safe_dump(job.resolved())) == job.resolved()


def test_the_finetuning_job_shards_and_logs() -> None:
    job = JobFile(EXAMPLES / "finetune.yaml").job()
    assert (job.strategy, job.precision, job.logger) == ("zero2", "auto", "wandb")


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("topics", lambda rows: [row["text"].splitlines()[0].lower() for row in rows]),
        ("phonemes", lambda rows: [row["prompt"] for row in rows]),
    ],
)
def test_no_text_held_out_is_trained_on(prepared: Prepared, name: str, held_out: Callable[[Any], list[str]]) -> None:
    train, validation = (_lines(prepared(name) / f"{part}.jsonl") for part in ("train", "validation"))
    assert not set(held_out(train)) & set(held_out(validation))
    assert len(set(held_out(validation))) == len(validation)


def test_no_voice_held_out_is_trained_on(prepared: Prepared) -> None:
    sounds = datasets.load_from_disk(str(prepared("speech") / "sounds"))
    train, validation = (
        {voice.partition("+")[2] for voice in sounds[part]["voice"]} for part in ("train", "validation")
    )
    assert train
    assert validation
    assert not train & validation


def _run(program: str, strategy: str, seconds: float = 400, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """An example's evaluations, on two processes, in the working directory."""
    path = str(EXAMPLES / program)
    words = ["fit", path, "--strategy", strategy, *others] if path.endswith(".yaml") else [path, strategy]
    run([*LAUNCH, *words], seconds)
    (evaluations,) = Path("runs").glob("*/evaluations.jsonl")
    return _lines(evaluations)


def test_an_example_runs(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some steps of the one about images; what all of them learn is seen by `make test-all`, the demo by `test_demo.py`."""
    (tmp_path / "build").symlink_to(prepared("digits").parent)
    monkeypatch.chdir(tmp_path)
    few = ["--max_steps", "40", "--warmup_steps", "5", "--evaluate_every", "40"]
    *_, result = _run("digits_vit.yaml", "ddp", others=few)
    assert result["accuracy"] > 0.15, "ten kinds of digits, told apart by chance in a tenth of all cases"


@pytest.mark.parametrize(
    ("program", "folder", "strategy"),
    [
        pytest.param("topics.yaml", "topics", "ddp", marks=pytest.mark.long),
        pytest.param("digits.py", "digits", "ddp", marks=pytest.mark.long),
        pytest.param("digits_vit.yaml", "digits", "zero2", marks=pytest.mark.long),
        pytest.param("speech.py", "speech", "ddp", marks=pytest.mark.long),
        pytest.param("phonemes.yaml", "phonemes", "zero2", marks=pytest.mark.long),
        pytest.param("topics.yaml", "topics", "zero2", marks=pytest.mark.long),
        pytest.param("digits.py", "digits", "zero2", marks=pytest.mark.long),
        pytest.param("digits_vit.yaml", "digits", "ddp", marks=pytest.mark.long),
        pytest.param("speech.py", "speech", "zero2", marks=pytest.mark.long),
        pytest.param("phonemes.yaml", "phonemes", "ddp", marks=pytest.mark.long),
    ],
)
def test_an_example_learns_what_its_baseline_cannot(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, folder: str, strategy: str
) -> None:
    (tmp_path / "build").symlink_to(prepared(folder).parent)
    monkeypatch.chdir(tmp_path)
    result = _run(program, strategy)[-1]
    baseline = json.loads((prepared(folder) / "baseline.json").read_text())
    if "loss" in baseline:
        assert result["loss"] < 0.5 * baseline["loss"]
    else:
        assert 1 - result["accuracy"] < 0.7 * (1 - baseline["accuracy"])


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_finetuning_learns_what_the_model_did_not_know(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    (tmp_path / "build").symlink_to(prepared("finetune").parent)
    monkeypatch.chdir(tmp_path)
    before, after = _run("finetune.yaml", strategy)
    assert before["step"] == 0
    assert after["loss"] < 0.6 * before["loss"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
