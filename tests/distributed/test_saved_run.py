"""`scalekit evaluate` and `scalekit predict`: the model of an earlier run on other rows, on one process and several."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

import scalekit
from scalekit.errors import ConfigError, ScaleKitError
from scalekit.training.saved_run import evaluate, predict
from tests.support import language_model, processes

CLASSES = ("cold", "hot", "warm")


def rows(number: int, classes: tuple[str, ...] = CLASSES) -> list[dict[str, Any]]:
    return [{"text": "abcde"[: 1 + i % 5] * (1 + i % 3), "label": classes[i % len(classes)]} for i in range(number)]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def cli(*words: object, nproc: int = 1) -> str:
    launched = ["launch", f"--nproc={nproc}"] if nproc > 1 else []
    return processes.run([sys.executable, "-m", "scalekit", *launched, *map(str, words)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has learned three classes; 9 rows are held out."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    language_model.make_word_tokenizer().save_pretrained(folder / "model")
    write(folder / "train.jsonl", rows(24))
    write(folder / "held.jsonl", rows(9))
    run = scalekit.fit(
        str(folder / "model"),
        str(folder / "train.jsonl"),
        "sequence-classification",
        validation=str(folder / "held.jsonl"),
        strategy="single",
        precision="32-true",
        max_steps=4,
        learning_rate=1e-2,
        output_dir=str(folder / "run"),
    )
    (folder / "evaluated.json").write_text(json.dumps(run.evaluations[-1]))
    return folder


@pytest.mark.parametrize("key", ["label", "labels"])
def test_a_run_predicts_rows_without_labels(tmp_path: Path, key: str) -> None:
    """Nobody has the labels of the rows that a model is asked about."""
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3
    )
    model, labelled = (
        BertForSequenceClassification(config),
        [{"text": row["text"], key: CLASSES.index(row["label"])} for row in rows(12)],
    )
    run = scalekit.fit(
        model,
        labelled,
        "sequence-classification",
        processor=language_model.make_word_tokenizer(),
        strategy="single",
        max_steps=1,
        output_dir=str(tmp_path / "run"),
    )
    found = run.predict([{"text": row["text"]} for row in labelled])
    assert torch.equal(torch.stack(found), torch.stack(run.predict(labelled)))


@pytest.fixture
def evaluated(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "evaluated.json").read_text())
    return {name: value for name, value in found.items() if name != "step"}


@pytest.mark.parametrize("nproc", [1, 2])
def test_it_scores_as_the_run_did(folder: Path, evaluated: dict[str, Any], nproc: int) -> None:
    said = cli("evaluate", folder / "run", folder / "held.jsonl", nproc=nproc)
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert found == pytest.approx(evaluated, rel=1e-5)


def test_it_is_the_same_in_parts(folder: Path, evaluated: dict[str, Any]) -> None:
    assert evaluate(folder / "run", str(folder / "held.jsonl"), micro_batch_size=2) == pytest.approx(
        evaluated, rel=1e-5
    )


@pytest.mark.parametrize(("nproc", "strategy"), [(1, "single"), (2, "fsdp2")])
def test_it_predicts_rows_without_labels_in_their_order(folder: Path, nproc: int, strategy: str) -> None:
    unlabelled = [{"text": row["text"]} for row in rows(9)]
    data = write(folder / f"unlabelled-{nproc}.jsonl", unlabelled)
    output = folder / "new" / f"predicted-{nproc}.jsonl"
    cli("predict", folder / "run", data, output, "--strategy", strategy, "--micro-batch-size", 2, nproc=nproc)
    found = [json.loads(line) for line in output.read_text().splitlines()]
    (checkpoint,) = (folder / "run" / "checkpoints").glob("step-*4")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint / "model").eval()
    tokenizer = language_model.make_word_tokenizer()
    with torch.no_grad():
        logits = [model(**tokenizer(row["text"], return_tensors="pt")).logits[0] for row in unlabelled]
    assert [each["label"] for each in found] == [CLASSES[int(each.argmax())] for each in logits]
    expected = [float(each.softmax(0).max()) for each in logits]
    assert [each["probability"] for each in found] == pytest.approx(expected, rel=1e-4)


def test_classes_keep_their_numbers_where_rows_have_some_of_them(folder: Path) -> None:
    some = write(folder / "some.jsonl", rows(6, ("warm", "hot")))
    whole = write(folder / "whole.jsonl", [*rows(6, ("warm", "hot")), {"text": "a", "label": "cold"}])
    kept, all_ = (evaluate(folder / "run", str(path)) for path in (some, whole))
    assert kept["items"] == 6
    alone = evaluate(folder / "run", str(write(folder / "one.jsonl", [{"text": "a", "label": "cold"}])))
    assert all_["loss"] * 7 == pytest.approx(kept["loss"] * 6 + alone["loss"], rel=1e-5)


def test_what_cannot_be_is_refused(folder: Path, tmp_path: Path) -> None:
    data = str(folder / "held.jsonl")
    with pytest.raises(ScaleKitError, match="neither a checkpoint nor a run's folder with one"):
        evaluate(tmp_path, data)
    with pytest.raises(ConfigError, match="single, ddp, fsdp2"):
        evaluate(folder / "run", data, strategy="zero3")
    with pytest.raises(ScaleKitError, match="lukewarm"):
        evaluate(folder / "run", str(write(folder / "other.jsonl", rows(6, ("hot", "lukewarm")))))
    moved = tmp_path / "moved"
    shutil.copytree(folder / "run" / "checkpoints" / "step-00000004", moved)
    with pytest.raises(ScaleKitError, match="A checkpoint stays in its run's folder"):
        evaluate(moved, data)
    (folder / "broken.jsonl").write_text('{"text": "a"}\n{"text": 3, \n{"text": "b"}\n')
    with pytest.raises(ScaleKitError, match="line 2"):
        predict(folder / "run", str(folder / "broken.jsonl"))
    (folder / "parts").mkdir()
    for part in ("train", "validation"):
        write(folder / "parts" / f"{part}.jsonl", rows(3))
    with pytest.raises(ScaleKitError, match="has the splits train, validation: name the one to test"):
        evaluate(folder / "run", str(folder / "parts"))
    assert evaluate(folder / "run", {"path": str(folder / "parts"), "split": "validation"})["items"] == 3
    plain = scalekit.fit(
        nn.Linear(1, 1),
        [{"x": [1.0], "y": [1.0]}] * 8,
        loss=nn.MSELoss(),
        strategy="single",
        max_steps=1,
        output_dir=str(tmp_path / "plain"),
    )
    with pytest.raises(ConfigError, match=r"run.test and run.predict"):
        predict(plain.folder, data)


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_language_model_goes_on(tmp_path: Path, nproc: int) -> None:
    model = language_model.save_model(tmp_path / "model")
    run = scalekit.fit(
        model,
        language_model.conversations(8),
        strategy="single",
        precision="32-true",
        max_steps=2,
        learning_rate=1e-2,
        output_dir=str(tmp_path / "run"),
    )
    asked = [*language_model.conversations(3), {"messages": [{"role": "user", "content": "what "}]}]
    data, output = write(tmp_path / "asked.jsonl", asked), tmp_path / "said.jsonl"
    cli("predict", run.folder, data, output, "--max-new-tokens", 5, nproc=nproc)
    found = [json.loads(line)["completion"] for line in output.read_text().splitlines()]
    trained = AutoModelForCausalLM.from_pretrained(run.checkpoint / "model").eval()
    tokenizer = language_model.make_tokenizer()
    for row, said in zip(asked, found, strict=True):
        turns = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = trained.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert said == tokenizer.decode(made, skip_special_tokens=True)
    with pytest.raises(ConfigError, match="each have the whole model"):
        predict(run.folder, str(data), strategy="fsdp2")
    with pytest.raises(ConfigError, match="prompt 1 needs"):
        predict(run.folder, str(data), max_new_tokens=100_000)
    with pytest.raises(ScaleKitError, match="row 1 is a conversation in which nobody but the assistant"):
        predict(run.folder, [{"messages": [{"role": "assistant", "content": "yes"}]}])
