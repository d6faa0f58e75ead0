"""A job's rows, ready to be batched: tokens that are there already, classes by decoders, streams that are drawn again."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers

import scalekit
from scalekit.config.settings import Job
from scalekit.data.encoders.audio import Sounds
from scalekit.data.encoders.base import drawn_by_content
from scalekit.data.encoders.labelled import Head
from scalekit.data.encoders.masked import Masked
from scalekit.data.encoders.truncation import Limit
from scalekit.data.lengths import Lengths
from scalekit.data.prepared import Rows
from scalekit.data.preprocessing import undecoded
from scalekit.errors import RowError
from scalekit.models.labels import Classes
from scalekit.objectives.counts import IGNORED
from scalekit.training.prepared_job import prepare
from tests.support import parity_cases as parity
from tests.support.language_model import make_tokenizer, make_word_tokenizer

TOKENS = [{"input_ids": [1, 2, 3], "text": "abc"}, {"input_ids": [], "text": ""}, {"input_ids": [4, 5], "text": "de"}]


def rows_of(data: Any, **settings: Any) -> Any:
    return prepare(Job(parity.llama(True), data, processor=make_tokenizer(), max_steps=1, **settings))


def test_rows_without_tokens_are_refused_or_left_out() -> None:
    with pytest.raises(RowError, match="row 1: it has 0 tokens"):
        rows_of(TOKENS)
    rows = rows_of(TOKENS, on_bad_row="skip")
    assert [each.why[:15] for each in rows.skipped] == ["it has 0 tokens"]
    batch = rows.collate([rows.train[0], rows.train[1]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]  # not the text beside them


def test_a_decoder_tells_classes_by_the_last_token_before_the_padding(tmp_path: Path) -> None:
    settings = {"vocab_size": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(**settings, num_labels=2, bos_token_id=1, eos_token_id=2)
    rows = [{"text": "ab" * (1 + i % 4), "label": i % 2} for i in range(8)]
    model = transformers.GPT2ForSequenceClassification(config)
    assert model.config.pad_token_id is None
    job = {"strategy": "single", "global_batch_size": 4, "max_steps": 1, "precision": "32-true"}
    run = scalekit.fit(model, rows, validation=rows, processor=make_tokenizer(), output_dir=str(tmp_path), **job)
    model.eval()
    alone = [
        model(input_ids=torch.tensor([make_tokenizer()(row["text"])["input_ids"]]), labels=torch.tensor([row["label"]]))
        for row in rows
    ]
    assert run.evaluations[-1]["loss"] == pytest.approx(np.mean([each.loss.item() for each in alone]), rel=1e-5)


def test_a_streams_rows_are_drawn_anew_in_each_epoch() -> None:
    encoder = Masked(make_word_tokenizer(), Limit())
    (row,) = encoder.encode([{"text": "a b c d e " * 5}])
    drawn = [drawn_by_content(encoder, row, 1, epoch)["labels"] for epoch in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0] != IGNORED, drawn[2] != IGNORED)


def test_sounds_keep_the_rate_that_they_were_cast_to() -> None:
    rows = datasets.Dataset.from_dict({"audio": ["a.wav"], "label": [0]})
    rows = rows.cast_column("audio", datasets.Audio(sampling_rate=16_000))
    assert undecoded(rows).features["audio"].sampling_rate == 16_000
    found = prepare_encoder(rows)
    assert found.sampling_rate == 16_000


def prepare_encoder(rows: Any) -> Sounds:
    from scalekit.data import encoders

    wanted = encoders.EncoderSettings(
        "audio-classification", lambda: None, None, "all", None, None, None, Head(), columns=["audio", "label"]
    )
    found = encoders.encoder(wanted, [rows])
    assert isinstance(found, Sounds)
    assert found.labels == Classes(("0",))
    return found


def test_micro_batches_are_as_long_as_their_longest_row_in_the_mean() -> None:
    tokens = np.array([10, 3, 7, 7])
    rows = Rows(pipeline=None, train=None, longest=lambda: None, few=list, lengths=Lengths(tokens, 0, 0))
    for size in (1, 2, 3):
        mean = np.mean([max(drawn) for drawn in product(tokens, repeat=size)])
        assert rows.fill(size) == pytest.approx(mean / 10)
    assert replace(rows, packed=True).fill(2) == replace(rows, lengths=None).fill(2) == 1
