"""What the loss is a mean over, for each kind of model."""

import pytest
import torch
from torch import nn

from scalekit.errors import ModelError, NoLossError
from scalekit.objectives.counts import Counted
from scalekit.objectives.function_loss import FunctionLoss
from scalekit.objectives.model_loss import ModelLoss
from scalekit.training.scale_module import ScaleModule
from tests.support import parity_cases as parity


def test_causal_labels_are_shifted() -> None:
    labels = torch.tensor([[5, 6, -100, 7], [-100, 8, -100, -100]])
    assert ModelLoss.of(parity.llama(tied=True)).items({"labels": labels}, 2) == 3
    assert ModelLoss.of(parity.gpt2()).items({"labels": labels}, 2) == 3


def test_other_labels_are_not() -> None:
    labels = torch.tensor([[5, 6, -100, 7], [-100, 8, -100, -100]])
    assert ModelLoss.of(parity.t5()).items({"labels": labels}, 2) == 4
    assert ModelLoss.of(parity.bert()).items({"labels": torch.tensor([0, 1, 2])}, 3) == 3


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "bert", "t5"])
def test_item_counts_are_those_that_the_model_divides_by(name: str) -> None:
    """Two parts weighted by their items must give the whole, or the count is not what the model's mean is over."""
    case = parity.CASES[name]
    torch.manual_seed(0)
    model, rows = case.build().eval(), case.rows()[:7]
    objective = ModelLoss.of(model)
    parts = [parity.collate(rows[:2]), parity.collate(rows[2:])]
    items = [objective.items(part, n) for part, n in zip(parts, (2, 5), strict=True)]
    with torch.no_grad():
        means = [objective.mean_loss(model, part) for part in parts]
        whole = objective.mean_loss(model, parity.collate(rows))
    torch.testing.assert_close((means[0] * items[0] + means[1] * items[1]) / sum(items), whole, rtol=1e-6, atol=0)


def test_cross_entropy_counts_labels_and_weights() -> None:
    target = torch.tensor([0, 1, -100, 2])
    batch = {"x": torch.zeros(4, 3), "y": target}
    assert FunctionLoss(nn.CrossEntropyLoss()).items(batch, 4) == 3
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]))
    assert FunctionLoss(weighted).items(batch, 4) == 7
    assert FunctionLoss(nn.MSELoss()).items(batch, 4) == 4
    assert FunctionLoss(nn.MSELoss(), Counted(lambda batch: 9)).items(batch, 4) == 9


class Returns(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.weight, self.make = nn.Parameter(torch.ones(())), make

    def forward(self, x):
        return self.make(self.weight * x.mean())


@pytest.mark.parametrize(
    "make", [lambda v: v, lambda v: (v, 1), lambda v: {"loss": v}], ids=["tensor", "tuple", "dict"]
)
def test_a_models_own_loss_in_any_form(make) -> None:
    model = Returns(make)
    assert ModelLoss.of(model).mean_loss(model, {"x": torch.ones(3)}).item() == 1.0


def test_models_without_a_loss() -> None:
    from transformers import BertConfig, BertModel

    with pytest.raises(NoLossError, match="takes no labels"):
        ModelLoss.of(BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, vocab_size=9)))
    model = nn.Linear(3, 2)
    with pytest.raises(NoLossError, match="returned no scalar loss"):
        ModelLoss.of(model).mean_loss(model, torch.ones(4, 3))
    with pytest.raises(ModelError, match="needs a target"):
        FunctionLoss(nn.MSELoss()).mean_loss(model, {"a": torch.ones(4, 3)})


def test_a_loss_of_torch_is_a_part_of_its_module() -> None:
    """With its tensors, which go where the model does."""
    weights = torch.ones(3)
    for loss in (nn.CrossEntropyLoss(weights), FunctionLoss(nn.CrossEntropyLoss(weights), shifted=True)):
        module = ScaleModule(nn.Linear(2, 3), loss).double()
        assert [buffer.dtype for buffer in module.buffers()] == [torch.float64]


class Smooth(nn.CrossEntropyLoss):
    """A user's own."""


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=0), Smooth(ignore_index=0)])
def test_tokens_stand_beside_what_predicts_them(loss: nn.Module) -> None:
    """So that scores are those of the model's own loss."""
    from tests.support.parity_cases import llama

    model, labels = llama(True), torch.tensor([[1, 2, 0, 3]])
    found = FunctionLoss(loss, shifted=True).outcome(model, {"input_ids": labels, "labels": labels})
    assert found.outputs.shape == (1, 3, parity.VOCABULARY)
    assert found.targets.tolist() == [[2, -100, 3]]
    expected = nn.functional.cross_entropy(model(labels).logits[0, :-1], labels[0, 1:], ignore_index=0)
    assert float(found.loss) == pytest.approx(float(expected))


def test_an_encoder_and_decoder_keeps_its_labels() -> None:
    from tests.support.parity_cases import t5

    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[4, 5]])}
    model = t5()
    found = FunctionLoss(nn.CrossEntropyLoss()).mean_loss(model, batch)
    assert float(found) == pytest.approx(float(model(**batch).loss), rel=1e-6)
