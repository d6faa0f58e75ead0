"""What a loss is a mean over is measured: any micro-batch size gives the loss of the whole batch, or the job is refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

import scalekit
from scalekit.errors import LossReductionError
from scalekit.objectives.batch_parts import Parts
from scalekit.objectives.counts import IGNORED, Entries, Samples, Whole, candidates
from scalekit.objectives.reduction_check import measure

Row = tuple[Tensor, Tensor]


def tokens(seed: int = 0) -> list[dict[str, Tensor]]:
    """Rows of 3 to 9 tokens with a label each, of which the first, and some others, are not counted."""
    drawn = torch.Generator().manual_seed(seed)
    rows = []
    for length in (9, 3, 7, 4, 5, 8, 3, 6):
        ids = torch.randint(1, 12, (length,), generator=drawn)
        labels = ids.masked_fill(torch.rand(length, generator=drawn) < 0.2, IGNORED)
        rows.append({"ids": ids, "labels": labels})
    return rows


def padded(rows: list[dict[str, Tensor]], ignored: int = IGNORED) -> dict[str, Tensor]:
    return {
        "ids": pad_sequence([row["ids"] for row in rows], batch_first=True),
        "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=ignored),
    }


def sevens(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = padded(rows)
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == IGNORED, 7)}


class Tokens(nn.Module):
    """Takes of its labels a loss that each test says."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.loss = nn.Embedding(12, 8), nn.Linear(8, 12), loss

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.head(self.embedding(ids)), labels)


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def shifted(logits: Tensor, labels: Tensor) -> Tensor:
    return plain(logits[:, :-1], labels[:, 1:])


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def by_row(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row's mean first."""
    each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (each.sum(1) / (labels != IGNORED).sum(1)).mean()


def with_noise(logits: Tensor, labels: Tensor) -> Tensor:
    return shifted(logits + torch.randn_like(logits), labels)


def without_7(logits: Tensor, labels: Tensor) -> Tensor:
    """Another label than usual is not counted."""
    labels = labels.masked_fill(labels == IGNORED, 7)
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=7)


def coupled(logits: Tensor, labels: Tensor) -> Tensor:
    """Contrasts each row with the others."""
    rows = functional.normalize(logits.mean(1), dim=-1)
    return functional.cross_entropy(10 * rows @ rows.T, torch.arange(len(rows)))


def loss_of(model: nn.Module) -> Callable[[Any], float]:
    @torch.no_grad()
    def evaluate(batch: Any) -> float:
        return float(model(**batch).double())

    return evaluate


@pytest.mark.parametrize(("loss", "expected"), [
    (plain, Entries("labels")), (shifted, Entries("labels", shifted=True)), (summed, Whole()), (by_row, Samples()),
    (without_7, Entries("labels", 7)),
])  # fmt: skip
@pytest.mark.parametrize("likely", [Entries("labels"), Entries("labels", shifted=True), Samples()], ids=str)
def test_what_holds_is_found_whatever_was_likely(loss: Any, expected: Any, likely: Any) -> None:
    seven = SimpleNamespace(ignore_index=7)
    parts = Parts.of(tokens(), sevens if loss is without_7 else padded, seven, likely)
    found = measure(loss_of(Tokens(loss)), parts, candidates(parts.whole, seven, likely))
    assert found.count == expected


def test_a_loss_that_couples_samples_is_a_mean_over_nothing() -> None:
    parts = Parts.of(tokens(), padded, None, Samples())
    assert measure(loss_of(Tokens(coupled)), parts, candidates(parts.whole, None, Samples())).count is None


# -- jobs -------------------------------------------------------------------------------------------------------------


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def first_loss(model: Any, rows: list[Any], collate: Any, micro_batch_size: int, folder: Any, **more: Any) -> Any:
    data = torch.utils.data.DataLoader(Rows(rows), collate_fn=collate)
    run = scalekit.fit(
        model, data, strategy="single", precision="32-true", global_batch_size=len(rows), micro_batch_size=micro_batch_size,
        max_steps=1, gradient_clip=None, optimizer="sgd", learning_rate=0.1, lr_schedule="constant",
        output_dir=str(folder / str(micro_batch_size)), **more,
    )  # fmt: skip
    weights = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
    return run.history[0], weights


@pytest.mark.parametrize("loss", [plain, shifted, summed, by_row])
def test_a_job_is_the_same_in_any_micro_batches(loss: Any, tmp_path: Any) -> None:
    whole, right = first_loss(Tokens(loss), tokens(), padded, 8, tmp_path)
    expected = loss_of(Tokens(loss))(padded(tokens()))
    for size in (1, 2, 4):
        record, weights = first_loss(Tokens(loss), tokens(), padded, size, tmp_path)
        assert record["loss"] == pytest.approx(expected, rel=1e-5)
        assert record["items"] == whole["items"]
        torch.testing.assert_close(weights, right, rtol=1e-5, atol=1e-6)


def test_a_loss_that_draws_noise_is_measured_without(tmp_path: Any) -> None:
    first_loss(Tokens(with_noise), tokens(), padded, 2, tmp_path)
    assert "label tokens, shifted by one" in (tmp_path / "2" / "log.txt").read_text()


@pytest.mark.parametrize("micro", [8, 2])
def test_a_collator_that_draws_is_measured_by_its_own_batch(micro: int, tmp_path: Any) -> None:
    """transformers' masking: rows that are collated once more are masked otherwise."""
    from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

    from tests.support.language_model import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "?"})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForMaskedLM(BertConfig(vocab_size=64, **sizes))
    rows = [{"input_ids": row["ids"].repeat(3).tolist()} for row in tokens()]
    masked: list[int] = []

    def collate(part: list[Any]) -> Any:
        batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4)(part)
        masked.append(int((batch["labels"] != IGNORED).sum()))
        return batch

    record, _ = first_loss(model, rows, collate, micro, tmp_path)
    assert record["items"] == sum(masked[-8 // micro :])


def test_a_coupled_loss_runs_whole_or_not_at_all(tmp_path: Any) -> None:
    record, _ = first_loss(Tokens(coupled), tokens(), padded, 8, tmp_path)
    assert record["loss"] == pytest.approx(loss_of(Tokens(coupled))(padded(tokens())), rel=1e-5)
    with pytest.raises(LossReductionError, match=r"4 rows together is .* one by one.*`item_count=`"):
        first_loss(Tokens(coupled), tokens(), padded, 4, tmp_path)


def test_a_count_of_the_users_is_checked_and_needs_no_loss_of_theirs(tmp_path: Any) -> None:
    def right(batch: Any) -> int:
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    record, _ = first_loss(Tokens(shifted), tokens(), padded, 1, tmp_path, item_count=right)
    assert record["loss"] == pytest.approx(loss_of(Tokens(shifted))(padded(tokens())), rel=1e-5)
    first_loss(Tokens(shifted), tokens(), padded, 2, tmp_path, item_count=lambda batch: len(batch["ids"]))
    assert (
        "Weighted by `item_count`, the single losses do not give the loss of the batch"
        in (tmp_path / "2" / "log.txt").read_text()
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ctc(reduction: str, tmp_path: Any) -> None:
    """transformers' Wav2Vec2ForCTC sums over labels, or takes a mean over samples."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Wav2Vec2ForCTC(Wav2Vec2Config(
            vocab_size=12, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2, ctc_loss_reduction=reduction, mask_time_prob=0.0, hidden_dropout=0.0,
            attention_dropout=0.0, feat_proj_dropout=0.0, activation_dropout=0.0, layerdrop=0.0, final_dropout=0.0,
        ))  # fmt: skip

    drawn = torch.Generator().manual_seed(1)
    rows = [
        {"input_values": torch.randn(400, generator=drawn), "labels": torch.randint(1, 12, (n,), generator=drawn)}
        for n in (3, 9, 5, 7)
    ]

    def collate(part: list[Any]) -> dict[str, Tensor]:
        labels = pad_sequence([row["labels"] for row in part], batch_first=True, padding_value=IGNORED)
        return {"input_values": torch.stack([row["input_values"] for row in part]), "labels": labels}

    with torch.no_grad():
        expected = float(build().train()(**collate(rows)).loss)
    for size in (4, 2, 1):
        record, _ = first_loss(build(), rows, collate, size, tmp_path)
        assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_map_with_its_own_ignored_label(tmp_path: Any) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    def build() -> nn.Module:
        torch.manual_seed(0)
        return SegformerForSemanticSegmentation(SegformerConfig(
            num_labels=3, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1],
            decoder_hidden_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0,
            classifier_dropout_prob=0.0,
        ))  # fmt: skip

    drawn = torch.Generator().manual_seed(1)
    rows = []
    for share in (0.1, 0.9, 0.5, 0.0):
        labels = torch.randint(0, 3, (64, 64), generator=drawn)
        labels[torch.rand(64, 64, generator=drawn) < share] = 255
        rows.append({"pixel_values": torch.randn(3, 64, 64, generator=drawn), "labels": labels})
    # Batch norm couples samples while it trains; here it does not.
    models = [build().eval() for _ in range(3)]
    for model in models:
        model.train = lambda mode=True, model=model: nn.Module.train(model, False)  # type: ignore[method-assign]
    collate = torch.utils.data.default_collate
    with torch.no_grad():
        expected = float(models[0](**collate(rows)).loss)
    for size, model in ((2, models[1]), (1, models[2])):
        record, _ = first_loss(model, rows, collate, size, tmp_path)
        assert record["loss"] == pytest.approx(expected, rel=1e-5)
        assert record["items"] == sum(int((row["labels"] != 255).sum()) for row in rows)
