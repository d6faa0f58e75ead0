"""A language model's loss from its hidden states and its head, part by part: the logits of a batch never exist whole.

With a vocabulary of 128,000 they are what a step needs most memory for. So each part's logits give their share of the loss and
at once the gradients of hidden states and head, and are gone before the next part's come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalekit.errors import NoLossError
from scalekit.objectives.counts import IGNORED
from scalekit.objectives.objective import ModelOutput, called

MOST_PARTS = 16
"""More would make products too small for a device, and gradients of the head would be added up more often."""

_FROM_LABELS = "prepare_decoder_input_ids_from_labels"
"""The method by which a model makes of labels what its decoder reads."""

Transform = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Head:
    """A model's last layer, which makes logits of hidden states.

    Attributes:
        layer: with a weight of shape [vocabulary, hidden].
        transform: what the model's configuration says that it does with logits.
        parts: in how many the labels of a micro-batch are run. It depends on the model alone, so that the steps of all
            micro-batch sizes do the same, of other sizes, which is what the plan reckons with.
    """

    layer: nn.Linear
    transform: Transform
    parts: int

    @classmethod
    def of(cls, model: nn.Module) -> Head | None:
        """That of a Hugging Face model; None where it has no plain one, or logits are hardly larger than hidden states."""
        layer = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
            return None
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and not hasattr(model, _FROM_LABELS):
            return None
        parts = min(MOST_PARTS, layer.out_features // (2 * layer.in_features))
        return cls(layer, _transform(getattr(model, "config", None)), parts) if parts > 1 else None

    def outcome(self, model: nn.Module, batch: Mapping[str, Any], shifted: bool, predicts: bool) -> ModelOutput:
        """Runs a model up to its head, and the head with the loss.

        Args:
            model: that the head is of.
            batch: with labels, shape [samples, tokens].
            shifted: whether each label is predicted one position before its own.
            predicts: whether to tell which classes have the highest logits.

        Raises:
            NoLossError: the model runs its head more than once, or not at all.
        """
        labels: Tensor = batch["labels"]
        found: list[ModelOutput] = []

        def read(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden = args[0]
            known, targets = (hidden[:, :-1], labels[:, 1:]) if shifted else (hidden, labels)
            found.append(self._loss(known, targets, predicts))
            return (hidden[..., :0, :].detach(),)  # of which the head makes logits of no token

        handle = self.layer.register_forward_pre_hook(read)
        try:
            called(model, _without_labels(model, batch))
        finally:
            handle.remove()
        if len(found) != 1:
            raise NoLossError(f"{type(model).__name__} runs its head {len(found)} times")
        return found[0]

    def _loss(self, hidden: Tensor, targets: Tensor, predicts: bool) -> ModelOutput:
        flat = targets.reshape(-1)
        counted = _counted(flat)
        rows, wanted = hidden.reshape(-1, hidden.shape[-1])[counted], flat[counted]
        total, classes = _HeadLoss.apply(rows, self.layer.weight, self.layer.bias, wanted, self, predicts)
        predicted = torch.full_like(flat, IGNORED).masked_scatter(flat != IGNORED, classes) if predicts else None
        loss = total / max(len(wanted), 1)
        return ModelOutput(loss) if predicted is None else ModelOutput(loss, predicted.view_as(targets), targets)


class _HeadLoss(torch.autograd.Function):
    """The sum of the cross-entropies, and the classes with the highest logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, predicts: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients are of the sum, whose entries are near 1, so that float16 holds them; the backward pass scales them."""
        gradients = _Gradients.of(hidden, weight, bias) if any(ctx.needs_input_grad) else None
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        # Once, and not for each part, as autocast would.
        hidden, weight, bias = hidden.to(compute), weight.to(compute), None if bias is None else bias.to(compute)
        total, classes = torch.zeros((), dtype=torch.float32, device=hidden.device), [targets[:0]]
        size = max(1, -(-len(targets) // head.parts))
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            logits = nn.functional.linear(hidden[part], weight, bias)
            with torch.enable_grad():
                leaf = logits.requires_grad_(gradients is not None)
                loss = nn.functional.cross_entropy(head.transform(leaf).float(), targets[part], reduction="sum")
            if gradients is not None:
                gradients.add(part, hidden[part], weight, *torch.autograd.grad(loss, leaf))
            if predicts:
                classes.append(head.transform(leaf.detach()).argmax(dim=-1))
            total += loss.detach()
            del logits, leaf, loss
        ctx.gradients = gradients
        found = torch.cat(classes)
        ctx.mark_non_differentiable(found)
        return total, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        gradients: _Gradients = ctx.gradients
        del ctx.gradients
        return (*gradients.scaled(scale), None, None, None)


@dataclass
class _Gradients:
    """Of hidden states and head, added up part by part; those of the head in float32."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None
    weight_type: torch.dtype

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Gradients:
        def zeros(parameter: Tensor | None) -> Tensor | None:
            if parameter is None or not parameter.requires_grad:
                return None
            return torch.zeros_like(parameter, dtype=torch.float32)

        return cls(torch.empty_like(hidden), zeros(weight), zeros(bias), weight.dtype)

    def add(self, part: slice, hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
        """Adds those of a part.

        Args:
            part: its place among the labels.
            hidden: of the part.
            weight: of the head.
            logits: the part's gradient; all three are of the type that products are computed in.
        """
        self.hidden[part] = logits @ weight
        if self.weight is not None:
            if self.weight.dtype == logits.dtype:
                self.weight.addmm_(logits.T, hidden)
            else:
                self.weight += logits.T @ hidden
        if self.bias is not None:
            self.bias += logits.sum(dim=0)

    def scaled(self, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Times the gradient of the sum, in the tensors' own types."""
        head = [None if each is None else each.mul_(scale).to(self.weight_type) for each in (self.weight, self.bias)]
        return (self.hidden.mul_(scale), *head)


def _counted(labels: Tensor) -> Tensor:
    """The places of the labels that are counted; of fake ones, all."""
    if type(labels).__name__ == "FakeTensor":
        return torch.arange(len(labels), device=labels.device)
    return (labels != IGNORED).nonzero()[:, 0]


def _without_labels(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is given so that it stops at its logits; an encoder's partner still reads the labels before its own."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if getattr(model.config, "is_encoder_decoder", False):
        inputs.setdefault("decoder_input_ids", getattr(model, _FROM_LABELS)(batch["labels"]))
    return inputs


def _transform(config: Any) -> Transform:
    """What a model does with its logits, by its configuration; `HeadCheck` finds out whether that is all.

    Soft-capping is that of Gemma 2 (arXiv:2408.00118, section 2).
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap, divisor = getattr(text, "final_logit_softcapping", None), getattr(text, "logits_scaling", None)
    factor = (getattr(text, "logit_scale", None) or 1) / (divisor or 1)

    def transform(logits: Tensor) -> Tensor:
        scaled = logits if factor == 1 else logits * factor
        return scaled if cap is None else torch.tanh(scaled / cap) * cap

    return transform
