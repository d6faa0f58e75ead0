"""Columns that a task leaves alone are named; what is shown or heard beside a text is never dropped without a word."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import scalekit
from scalekit.config.settings import Job
from scalekit.data.encoders.causal import Causal
from scalekit.data.encoders.pretokenized import Targets, main_input
from scalekit.data.encoders.truncation import Limit
from scalekit.data.pipeline import DataPipeline
from scalekit.data.remarks import pipeline_remarks
from scalekit.data.sources.read import read_data
from scalekit.errors import ColumnError
from tests.support import parity_cases as parity
from tests.support.language_model import conversations, make_tokenizer, save_model

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SEEN = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "a"}]}]
PICTURE = Image.fromarray(np.zeros((4, 4, 3), np.uint8))


def remarks(model: Any, rows: Any, **settings: Any) -> str:
    settings = {"processor": make_tokenizer(), "max_steps": 1, **settings}
    pipeline = DataPipeline(Job(model, rows, **settings), read_data(rows), model)
    return " ".join(" ".join(each.split()) for each in pipeline_remarks(pipeline))


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"messages": TURNS, "source": "x", "id": 3}, "source, id"),
        ({"messages": TURNS, "text": "a"}, "text"),
        ({"text": "a", "label": 1}, "label"),
        ({"prompt": "a", "completion": "b", "score": 0.5}, "score"),
        ({"messages": TURNS, "tools": []}, ""),
        ({"input_ids": [1, 2], "label": 0, "source": "x"}, "label, source"),
        ({"input_ids": [1, 2], "token_type_ids": [0, 0]}, "token_type_ids"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 1], "position_ids": [0, 1]}, ""),
    ],
)
def test_columns_that_are_not_used_are_named(row: dict[str, Any], unread: str) -> None:
    said = remarks(parity.llama(True), [row], **({"task": "causal-lm"} if "input_ids" not in row else {}))
    assert said == (f"columns not used: {unread}" if unread else "")


def test_what_a_model_does_not_take_is_not_given_to_it(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]] * 4, "turns": [1, 2, 3, 4], "source": ["x"] * 4})
    alone = {
        "max_steps": 1,
        "global_batch_size": 4,
        "precision": "32-true",
        "learning_rate": 0.0,
    }
    torch.manual_seed(0)
    model = parity.llama(True)
    run = scalekit.fit(model, rows, output_dir=str(tmp_path / "run"), **alone)
    batch = torch.tensor([[1, 2, 3]] * 4)
    with torch.no_grad():
        assert run.history[0]["loss"] == pytest.approx(float(model(batch, labels=batch).loss), rel=1e-5)
    assert "not used: turns, source" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("model", "row", "said"),
    [
        (
            parity.llama,
            {"messages": TURNS, "images": [PICTURE]},
            "pictures beside their text, in 'images', and llama takes",
        ),
        (parity.llama, {"messages": TURNS, "image": PICTURE}, "in 'image', and llama takes none"),
        (parity.llama, {"messages": SEEN}, "in 'messages', and llama takes none"),
        (parity.llama, {"conversations": SEEN}, "in 'messages', and llama takes none"),
        (parity.llama, {"prompt": SEEN, "completion": TURNS[1:]}, "in 'messages', and llama takes none"),
        (parity.llama, {"prompt": "a", "completion": "b", "image": PICTURE}, "in 'image', and llama takes none"),
        (
            parity.llama,
            {"messages": TURNS, "audio": {"bytes": b"x", "path": None}},
            "sounds beside .* no task takes them",
        ),
    ],
)
def test_what_is_shown_beside_a_text_is_not_dropped(model: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ColumnError, match=said):
        scalekit.fit(lambda: model(True), [row] * 2, processor=make_tokenizer(), max_steps=1)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return save_model(tmp_path / "model")


def test_new_tokens_get_a_row_each_the_mean_of_the_others(folder: str, tmp_path: Path) -> None:
    narrow = transformers.AutoModelForCausalLM.from_pretrained(folder)
    narrow.resize_token_embeddings(64)  # of which the tokenizer needs 59
    narrow.save_pretrained(folder)
    tokens = ["a", *(f"<{number}>" for number in range(10, 16)), "<think>", "</think>"]
    wider = make_tokenizer()
    wider.add_tokens(tokens)
    rows = [{"text": f"<think>{each['messages'][0]['content']}</think> yes"} for each in conversations(8)]
    with pytest.raises(scalekit.errors.RowError, match=r"'<think>' \(id 65\) is beyond .* name it in new_tokens"):
        scalekit.fit(folder, rows, processor=wider, max_steps=1)
    run = scalekit.fit(
        folder,
        rows,
        new_tokens=tokens,
        max_steps=1,
        learning_rate=0.0,
        precision="32-true",
        output_dir=str(tmp_path / "run"),
    )
    opened = transformers.AutoModelForCausalLM.from_pretrained(run.checkpoint / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.checkpoint / "model")
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    after = opened.get_input_embeddings().weight
    assert tokenizer.tokenize("a<think>b") == ["a", "<think>", "b"]
    assert after.shape[0] == len(tokenizer) == opened.config.vocab_size == 67
    assert opened.lm_head.weight is after
    torch.testing.assert_close(after[:-3], before)
    torch.testing.assert_close(after[-3:], before.mean(0).expand(3, -1))


def test_new_tokens_of_a_frozen_embedding_are_refused(folder: str) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(scalekit.errors.ConfigError, match="frozen, so that they would never be learned"):
        scalekit.fit(model, [{"text": "<x>abc"}] * 2, processor=make_tokenizer(), new_tokens=["<x>"], max_steps=1)


def test_what_a_turn_holds_and_nothing_reads_is_named() -> None:
    row = {"messages": [{"role": "user", "content": "a", "trainable": True}, {**TURNS[1], "trainable": False}]}
    assert "columns not used: messages.trainable" in remarks(parity.llama(True), [row])
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'][0] }}>{{ m['trainable'] }}{{ m['content'] }}#{% endfor %}"
    )
    assert "not used" not in remarks(parity.llama(True), [row], processor=tokenizer)


def test_a_template_without_an_end_of_turns_is_told_of() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}{% endfor %}"
    said = (
        "turns the chat template writes no end behind what the assistant says, so that the model is not taught to stop"
    )
    assert said in remarks(parity.llama(True), [{"messages": TURNS}], processor=tokenizer)
    assert said not in remarks(parity.llama(True), [{"messages": TURNS}])


def test_two_systems_are_one_too_many() -> None:
    row = {"system": "a", "messages": [{"role": "system", "content": "b"}, *TURNS]}
    with pytest.raises(scalekit.errors.RowError, match="a system's turn, and another one in the column 'system'"):
        scalekit.fit(lambda: parity.llama(True), [row] * 2, processor=make_tokenizer(), max_steps=1)


@pytest.mark.parametrize("column", ["system", "tools"])
@pytest.mark.parametrize("row", [{"text": "abc"}, {"prompt": "a", "completion": "b"}])
def test_what_belongs_to_a_conversation_is_not_dropped_beside_a_text(row: dict[str, Any], column: str) -> None:
    with pytest.raises(scalekit.errors.RowError, match=f"'{column}' stands beside a text, which has no place for it"):
        scalekit.fit(lambda: parity.llama(True), [{**row, column: "x"}] * 2, processor=make_tokenizer(), max_steps=1)


def test_a_system_beside_a_prompt_of_turns_is_its_first_turn() -> None:
    row = {"system": "be kind", "prompt": TURNS[:1], "completion": TURNS[1:]}
    encoded = Causal(make_tokenizer(), "completions", Limit()).encode([row])[0]
    assert make_tokenizer().decode(encoded["input_ids"]) == "<s>be kind#<u>a#<a>b#"
    assert [label for label in encoded["labels"] if label != -100] == encoded["input_ids"][-2:]
    with pytest.raises(scalekit.errors.RowError, match=r"'system' is .*should be text"):
        Causal(make_tokenizer(), "completions", Limit()).encode([{**row, "system": ["be kind"]}])


class Delegates(transformers.LlamaForCausalLM):
    """A model whose forward pass names nothing."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_a_forward_pass_that_names_nothing_is_given_all() -> None:
    model = Delegates(parity.llama(True).config)
    assert remarks(model, [{"input_ids": [1, 2], "labels": [1, 2]}]) == ""


def test_a_named_task_does_not_change_what_is_read() -> None:
    vit, gpt2 = transformers.ViTConfig(), transformers.GPT2Config(architectures=["GPT2LMHeadModel"])
    assert main_input(vit, "image-classification") == "pixel_values"
    for task in (None, "causal-lm"):
        assert Targets.of(["input_ids", "length"], gpt2, task, False).unread(["input_ids", "length"]) == ["length"]
