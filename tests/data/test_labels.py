"""Labels of every kind: one class, several, and numbers; found by the column's values, and by what the model says."""

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from torch import nn

import scalekit
from scalekit.data.encoders.labelled import Head, labels_of
from scalekit.errors import ColumnError, InputsError, RowError
from scalekit.models.labels import Classes, Labels, Numbers, SeveralClasses
from tests.support.language_model import make_word_tokenizer

TEXTS = ["a", "b c", "d", "e a b", "c", "b", "a d", "e"]
SHARES = [[1.0, 0.0, 1.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]]
THREE = Head(("LABEL_0", "LABEL_1", "LABEL_2"), is_built=True)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def labels(values: list[Any], head: Head | None = None, **features: Any) -> Labels:
    typed = datasets.Features({"label": features["label"]}) if features else None
    return labels_of([datasets.Dataset.from_dict({"label": values}, features=typed)], "label", head or Head())


@pytest.mark.parametrize(
    ("values", "kind", "encoded"),
    [
        ([0.5, -1.0, 3.0], Numbers, [0.5, -1.0, 3.0]),
        ([[0.5, -1.0], [3.0, 0.0]], Numbers, [[0.5, -1.0], [3.0, 0.0]]),
        (["b", "a", "b"], Classes, [1, 0, 1]),
        (["10", "9", "1"], Classes, [2, 1, 0]),
        (["5 stars", "10 stars", "1 star"], Classes, [1, 2, 0]),
        ([2, 0, 1], Classes, [2, 0, 1]),
        ([True, False, True], Classes, [1, 0, 1]),
        ([["b", "a"], [], ["b"]], SeveralClasses, [[1, 1], [0, 0], [0, 1]]),
        ([[2], [0, 1], []], SeveralClasses, [[0, 0, 1], [1, 1, 0], [0, 0, 0]]),
        ([[1, 0, 1], [0, 0, 0]], SeveralClasses, [[1, 0, 1], [0, 0, 0]]),
        (SHARES, SeveralClasses, SHARES),
        ([None, [0.5, 2.0], [3.0, 0.0]], Numbers, [None, [0.5, 2.0], [3.0, 0.0]]),
    ],
)
def test_values_say_what_labels_are(values: list[Any], kind: type, encoded: list[Any]) -> None:
    found = labels(values)
    assert isinstance(found, kind)
    assert [None if value is None else found.encode(value) for value in values] == encoded


def test_a_row_cut_short_does_not_change_what_the_others_are() -> None:
    found = labels([[0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0]])
    assert found.encode([0, 1, 0]) == [0.0, 1.0, 0.0]
    with pytest.raises(RowError, match="for each of 3 classes"):
        found.encode([1, 0])


def test_a_streams_first_rows_tell() -> None:
    stream = datasets.Dataset.from_dict({"label": [[1.5, 2.0], [0.0, 1.0]]}).to_iterable_dataset()
    assert isinstance(labels_of([stream], "label", Head()), Numbers)


def test_parts_with_labels_of_two_names_are_refused(folder: str) -> None:
    held_out = datasets.Dataset.from_dict({"text": TEXTS, "labels": [0, 1] * 4})
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [0, 1] * 4})
    with pytest.raises(ColumnError, match="has the columns text, labels, and other rows text, label: name them alike"):
        scalekit.fit(folder, rows, validation=held_out, max_steps=1)


@pytest.mark.parametrize(
    ("values", "head", "kind"),
    [
        ([0, 1, 4], Head(("LABEL_0",), is_built=True), Numbers),
        ([0, 1, 4], Head(problem="regression"), Numbers),
        (["1", "2.5"], Head(problem="regression"), Numbers),
        ([[0.0, 1.0, 1.0]], Head(THREE.names, True, "regression"), Numbers),
        ([[0.0, 1.0, 1.0]], THREE, SeveralClasses),
        ([0, 1], Head(problem="multi_label_classification"), Classes),
    ],
)
def test_the_model_says_what_values_leave_open(values: list[Any], head: Head, kind: type) -> None:
    assert isinstance(labels(values, head), kind)


def test_class_labels_in_lists_have_their_names() -> None:
    found = labels([[0], [1, 0]], label=datasets.List(datasets.ClassLabel(names=["x", "y"])))
    assert (found.names, found.encode([1])) == (("x", "y"), [0.0, 1.0])


@pytest.mark.parametrize(
    ("values", "head", "said"),
    [
        (
            [0.5, 1.0],
            THREE,
            r"tells 3 classes \(LABEL_0, LABEL_1, LABEL_2\) apart, and .* has 1 number a row: build the ",
        ),
        ([[1.0, 0.0]], THREE, "has 2 numbers a row: build the model with num_labels=2"),
        (
            ["a", "b"],
            Head(THREE.names, True, "multi_label_classification"),
            "holds string values, .* single_label_class",
        ),
        (
            [0.5],
            Head(("LABEL_0",), True, "single_label_classification"),
            "float64 values, which can be learned as regr",
        ),
        ([[0, 1], [1, 0]], Head(), "may be of class numbers, or of 0 and 1 for each class"),
        ([None, None], Head(), "floating-point numbers to learn numbers"),
    ],
)
def test_what_data_and_model_do_not_share_is_refused(values: list[Any], head: Head, said: str) -> None:
    with pytest.raises(ColumnError, match=said):
        labels(values, head)


@pytest.mark.parametrize(
    ("found", "value", "said"),
    [
        (Numbers(("x",)), None, "the label None should be a finite number"),
        (Numbers(("x",)), math.nan, "the label nan should be a finite number"),
        (Numbers(("x",)), "many", "the label 'many' should be a finite number"),
        (Numbers(("x", "y")), [1.0], r"the label \[1.0\] should be 2 finite numbers"),
        (SeveralClasses(("x", "y")), [1.0], r"for each of 2 classes \(x, y\), and has 1"),
        (SeveralClasses(("x", "y")), [1.0, 2.0], "a number from 0 to 1"),
        (SeveralClasses(("x", "y"), Classes(("x", "y"))), ["z"], "the label 'z' is out of range"),
        (SeveralClasses(("x", "y"), Classes(("x", "y"))), "x", "the label 'x' should be a list"),
    ],
)
def test_a_row_with_another_label_is_refused(found: Labels, value: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        found.encode(value)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model of text with a head for two classes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=15, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    make_word_tokenizer().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ([0.1 * i for i in range(8)], "mean_absolute_error"),
        ([["x"], [], ["x", "y"], ["y"]] * 2, "f1"),
        (["x", "y"] * 4, "accuracy"),
    ],
)
@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_a_saved_model_gets_the_head_and_its_loss_and_score(
    folder: str, values: list[Any], score: str, micro_batch_size: int
) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, values, strict=True)]
    run = scalekit.fit(
        folder,
        rows,
        validation=rows,
        global_batch_size=8,
        micro_batch_size=micro_batch_size,
        learning_rate=0.0,
        max_steps=1,
        precision="32-true",
        output_dir="run",
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run.checkpoint / "model")
    tokens = make_word_tokenizer()(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    targets = torch.tensor(
        [
            label if isinstance(label, float) else "xy".index(label) if isinstance(label, str) else _hot(label)
            for label in values
        ]
    )
    with torch.no_grad():
        output = model(**tokens, labels=targets)
    *_, evaluated = [json.loads(each) for each in Path("run/evaluations.jsonl").read_text().splitlines()]
    assert run.history[0]["loss"] == pytest.approx(float(output.loss), rel=1e-5)
    assert evaluated["loss"] == pytest.approx(float(output.loss), rel=1e-5)
    assert evaluated[score] == pytest.approx(_score(score, output.logits, targets), rel=1e-5)


def _hot(names: list[str]) -> list[float]:
    return [float(name in names) for name in "xy"]


def _score(name: str, logits: torch.Tensor, targets: torch.Tensor) -> float:
    from sklearn.metrics import f1_score

    if name == "accuracy":
        return float((logits.argmax(-1) == targets).float().mean())
    if name == "f1":
        return float(f1_score(targets.int(), (logits > 0).int(), average="micro", zero_division=0))
    return float((logits[:, 0] - targets).abs().mean())


def test_outputs_and_targets_of_two_shapes_are_not_broadcast() -> None:
    rows = [{"x": [float(i)], "y": float(i)} for i in range(8)]
    loader = torch.utils.data.DataLoader(
        rows, batch_size=4, collate_fn=lambda rows: {k: torch.tensor([row[k] for row in rows]) for k in ("x", "y")}
    )
    with pytest.raises(InputsError, match=r"the model gives .*, 1\) for targets of .*,\)"):
        scalekit.fit(nn.Linear(1, 1), loader, loss=nn.MSELoss(), max_steps=1, global_batch_size=4, output_dir="run")
