"""What is decided for rows by their look: their task, and whether packing pays."""

from typing import Any

import datasets
import numpy as np
import pytest

from scalekit.config.settings import Job
from scalekit.data.lengths import padding_share
from scalekit.data.pipeline import DataPipeline
from scalekit.data.remarks import pipeline_remarks
from scalekit.data.sources.read import read_data
from scalekit.errors import ColumnError, ConfigError
from tests.support import language_model
from tests.support import parity_cases as parity


def pipeline(model: Any, rows: list[dict], **settings: Any) -> DataPipeline:
    job = Job(model, rows, processor=language_model.make_tokenizer(), max_steps=1, **settings)
    return DataPipeline(job, read_data(rows), model)


def llama() -> Any:
    return parity.llama(True)


LOOKS = [
    (llama, {"messages": [{"role": "user", "content": "a"}]}, "causal-lm"),
    (llama, {"prompt": "a", "completion": "b"}, "causal-lm"),
    (llama, {"text": "a"}, "causal-lm"),
    (parity.t5, {"prompt": "a", "completion": "b"}, "seq2seq-lm"),
    (parity.bert, {"text": "a", "label": 1}, "sequence-classification"),
    (parity.bert, {"text": "a", "labels": 1}, "sequence-classification"),
    (parity.bert, {"tokens": ["a"], "tags": [1]}, "token-classification"),
    (parity.bert, {"tokens": ["a"], "ner_tags": [1]}, "token-classification"),
    (parity.bert, {"question": "a", "context": "b", "answers": {"text": ["b"], "answer_start": [0]}}, "question-answering"),
    (parity.mlp, {"image": "a.png", "label": 1}, "image-classification"),
    (parity.mlp, {"audio": "a.wav", "label": 1}, "audio-classification"),
    (parity.mlp, {"text": "a", "label": 1}, None),
    (llama, {"input_ids": [1, 2]}, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "row", "task"), LOOKS, ids=[f"{model.__name__}-{'-'.join(row)}" for model, row, _ in LOOKS]
)
def test_the_look_of_a_row_decides_its_task(model: Any, row: dict, task: str | None) -> None:
    found = pipeline(model(), [row])
    assert found.task == task
    assert (len(pipeline_remarks(found)) == 1) == (task is not None)


def test_what_the_job_says_counts() -> None:
    assert pipeline(parity.bert(), [{"text": "a", "label": 1}], task="masked-lm").task == "masked-lm"
    with pytest.raises(ColumnError, match="token-classification"):
        assert pipeline(parity.bert(), [{"text": "a", "label": 1}], task="token-classification").task


@pytest.mark.parametrize(
    ("lengths", "packs"),
    [
        (np.tile([4, 30], 100), True),  # half of a batch would be padding
        (np.full(200, 30), False),  # there is no padding
        (np.tile([33, 60], 100), False),  # there is, and packed rows would have as much
    ],
)
def test_packing_where_it_pays(lengths: np.ndarray, packs: bool) -> None:
    found = pipeline(llama(), [{"text": "a"}], sequence_length=64)
    assert found.packs(lengths) == packs
    assert 0 <= padding_share(lengths, 0) < 0.6


def test_packing_that_cannot_be_is_refused_where_the_job_asks_for_it() -> None:
    lengths = np.tile([4, 30], 100)
    with pytest.raises(ConfigError, match="sequence_length, the length of a packed row, is not given"):
        pipeline(llama(), [{"text": "a"}], packing=True).packs(lengths)
    with pytest.raises(ConfigError, match="causal language models alone"):
        pipeline(parity.bert(), [{"text": "a", "label": 1}], packing=True, sequence_length=64).packs(lengths)
    assert not pipeline(llama(), [{"text": "a"}], packing=False, sequence_length=64).packs(lengths)


def test_rows_that_the_user_formats_or_batches_are_left_alone() -> None:
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}]).with_format("numpy")
    assert pipeline(parity.bert(), rows).task is None
