"""Rows that are tokens already: which column is the target, and tokens that the model does not know."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

import scalekit
from scalekit.data.encoders.pretokenized import Targets
from scalekit.errors import ColumnError, NoLabelError, RowError

IDS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [14, 15, 16, 17, 18], [5, 7], [8, 9, 10], [6, 6, 6, 6], [4, 5]]
SMALL = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def bert(head: str, **more: Any) -> Any:
    torch.manual_seed(0)
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return getattr(transformers, f"BertFor{head}")(transformers.BertConfig(**SMALL, **off, **more))


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, max_position_embeddings=32))


def loss(model: Any, columns: dict[str, Any], micro_batch_size: int, folder: Path) -> Any:
    run = scalekit.fit(
        model, datasets.Dataset.from_dict(columns), strategy="single", precision="32-true", global_batch_size=8, max_steps=1,
        micro_batch_size=micro_batch_size, gradient_clip=None, output_dir=str(folder / str(micro_batch_size)),
    )  # fmt: skip
    return run.history[0]


def together(columns: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A batch as transformers' own collators would make it."""
    longest = max(map(len, IDS))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in IDS])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in IDS])
    return {"input_ids": ids, "attention_mask": mask, **{name: torch.tensor(value) for name, value in columns.items()}}


@pytest.mark.parametrize("micro", [8, 1])
@pytest.mark.parametrize("column", ["label", "label_ids", "labels"])
@pytest.mark.parametrize(("model", "labels"), [
    (lambda: bert("SequenceClassification", num_labels=3), [2, 0, 1, 0, 1, 2, 0, 2]),
    (lambda: bert("SequenceClassification", num_labels=1), [0.1 * i for i in range(8)]),
    (lambda: bert("SequenceClassification", num_labels=2, problem_type="multi_label_classification"), [[1, 0], [0, 1]] * 4),
])  # fmt: skip
def test_labels_by_their_usual_names(column: str, micro: int, model: Any, labels: Any, tmp_path: Path) -> None:
    batch = together({"labels": labels})
    if isinstance(labels[0], list):
        batch["labels"] = batch["labels"].float()
    expected = float(model()(**batch).loss)
    found = loss(model(), {"input_ids": IDS, column: labels}, micro, tmp_path)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("micro", [8, 1])
def test_a_causal_model_learns_its_tokens_but_no_padding(micro: int, tmp_path: Path) -> None:
    batch = together({})
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = float(llama()(**batch, labels=labels).loss)
    rows = {name: tensor.tolist() for name, tensor in batch.items()}
    # The class of each text, as `map` leaves it, is not what it learns.
    found = loss(llama(), {"label": [1] * 8, **rows}, micro, tmp_path / "padded")
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["items"] == sum(len(row) - 1 for row in IDS)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("MaskedLM", "the tokens that were masked"),
        ("TokenClassification", "a class for each token"),
        ("SequenceClassification", "a class or a number for each row"),
    ],
)
def test_other_models_are_given_no_labels_of_ours(head: str, said: str) -> None:
    with pytest.raises(ColumnError, match=f"add the column 'labels', {said}.* There are: input_ids, ner_tags"):
        scalekit.fit(bert(head), datasets.Dataset.from_dict({"input_ids": IDS, "ner_tags": IDS}), max_steps=1)


@pytest.mark.parametrize("token", [24, -1])
def test_a_token_beyond_the_embedding_is_named(token: int) -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [*IDS[:2], [1, token]]})
    with pytest.raises(
        RowError, match=f"row 2: the token id {token} is beyond the model's embedding, which has 24 rows"
    ):
        scalekit.fit(llama(), rows, max_steps=1)


@pytest.mark.parametrize(("rows", "bad"), [
    ({"input_ids": [[5, 6], [7], [8, 9]]}, 1),
    ({"input_ids": [[5, 6, 7], [7, 8, 9]], "attention_mask": [[1, 1, 0], [1, 0, 0]]}, 1),
    ({"input_ids": [[5, 6, 7], [7, 8, 9]], "labels": [[5, -100, -100], [-100, 8, -100]]}, 0),
])  # fmt: skip
def test_a_row_without_anything_to_count_is_a_bad_row(rows: Any, bad: int, tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(rows)
    with pytest.raises(NoLabelError, match=f"row {bad}: it has nothing that the loss counts"):
        scalekit.fit(llama(), data, max_steps=1)
    run = scalekit.fit(llama(), data, max_steps=1, on_bad_row="skip", output_dir=str(tmp_path / "run"))
    assert run.plan.samples == len(data) - 1
    assert f"row {bad}" in (tmp_path / "run" / "skipped_rows.jsonl").read_text()


def test_a_decoder_that_sees_pictures_learns_its_tokens() -> None:
    small = transformers.LlavaConfig(text_config=transformers.LlamaConfig(**SMALL).to_dict())
    small.architectures = ["LlavaForConditionalGeneration"]
    assert Targets.of(["input_ids"], small, None, has_loss=False).are_tokens
    t5 = transformers.T5Config(architectures=["T5ForConditionalGeneration"])
    with pytest.raises(ColumnError, match="the tokens of the target"):
        Targets.of(["input_ids"], t5, None, has_loss=False)
