"""A folder's model on conversations: what the run leaves behind, and what Weights & Biases was told."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from scalekit.data.sources.provenance import draw
from tests.support import language_model
from tests.support.processes import torchrun

FIELDS = [
    "step",
    "loss",
    "items",
    "samples",
    "learning_rate",
    "grad_norm",
    "step_seconds",
    "data_seconds",
    "items_per_second",
]
FIELDS += ["mfu", "peak_memory_bytes"]
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    model = language_model.save_model(folder / "model")
    torchrun("text_job", "zero3", model, folder, nproc=4)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_four_ranks_of_zero3_start_with_the_folders_weights(folder: Path) -> None:
    saved = load_file(folder / "model" / "model.safetensors")
    initial = load_file(folder / "initial" / "model" / "model.safetensors")
    for name, value in saved.items():
        assert torch.equal(initial[name], value), name


def test_the_run_folder_is_as_designed(folder: Path) -> None:
    run = folder / "run"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "plan.json", "metrics.jsonl", "checkpoints"}
    records = lines(run / "metrics.jsonl")
    assert [list(record) for record in records] == [FIELDS] * STEPS
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["samples"] for record in records] == [8, 16, 24, 32, 40, 48]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["strategy"] == "zero3"
    assert config["global_batch_size"] == 8
    assert json.loads((run / "plan.json").read_text())["world_size"] == 4


def test_the_held_out_loss_falls_and_counts_each_row_once(folder: Path) -> None:
    evaluations = lines(folder / "run" / "evaluations.jsonl")
    assert [record["step"] for record in evaluations] == [0, 2, 4, 6]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    assert len({record["items"] for record in evaluations}) == 1


def test_the_held_out_loss_is_the_plain_models(folder: Path) -> None:
    """The last evaluation, done again with plain transformers on the folder that the run left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved = folder / "run" / "checkpoints" / "step-00000006" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    rows = [language_model.conversations(30)[place] for place in draw(30, 0.2, seed=4)["test"]]
    total, items = 0.0, 0
    for row in rows:
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        answers = answer_mask(text)
        labels = torch.where(torch.tensor([answers]), ids, -100)
        count = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=ids, labels=labels).loss.item() * count
        items += count
    last = lines(folder / "run" / "evaluations.jsonl")[-1]
    assert last["items"] == items
    torch.testing.assert_close(last["loss"], total / items, rtol=1e-5, atol=0)


def answer_mask(text: str) -> list[bool]:
    """Characters (which are tokens) after an `<a>`, up to and with the end token."""
    mask, inside = [], False
    for i in range(len(text)):
        if text[i - 3 : i] == "<a>":
            inside = True
        mask.append(inside)
        if text[i] == "#":
            inside = False
    return mask


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline run: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    data, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(data):
        left_in_block = 32768 - at % 32768
        if left_in_block < 7:
            at += left_in_block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # a record's only part, or its last
            yield b"".join(parts)
            parts = []


def test_wandb_has_one_run_with_every_metric(folder: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    (file,) = (folder / "run" / "wandb").glob("offline-run-*/*.wandb")
    history, config = [], {}
    for data in wandb_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            history.append((item.nested_key[0] if item.nested_key else item.key, json.loads(item.value_json)))
        for item in (*record.run.config.update, *record.config.update):
            config[item.key] = json.loads(item.value_json)
    records = lines(folder / "run" / "metrics.jsonl")
    for name in set(FIELDS) - {"step", "mfu"}:
        assert [value for key, value in history if key == name] == [record[name] for record in records], name
    evaluations = lines(folder / "run" / "evaluations.jsonl")
    assert [v for k, v in history if k == "evaluation/loss"] == [record["loss"] for record in evaluations]
    assert config["job"]["strategy"] == "zero3"
    assert config["plan"]["world_size"] == 4
    state = (folder / "run" / "checkpoints" / "step-00000006" / "state.json").read_text()
    assert file.stem.removeprefix("run-") in state
