"""A language model's loss from its hidden states and its head, part by part: the logits of a batch never exist whole.

With a vocabulary of 128,000 they are what a step needs most memory for. So each part's logits give their share of the loss and
at once the gradients of hidden states and head, and are gone before the next part's come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from scalekit.errors import ModelError, ScaleKitError
from scalekit.objectives.counts import IGNORED
from scalekit.objectives.objective import ModelOutput, called

MOST_PARTS = 16
LEAST_LABELS = 128
"""Of a part. Fewer would make products too small for a device, and gradients of the head would be added up more often."""

_SCALED_ROWS = 1024

_FROM_LABELS = "prepare_decoder_input_ids_from_labels"
"""The method by which a model makes of labels what its decoder reads."""


@final
@dataclass(frozen=True)
class Transform:
    """What a model does with its logits, as its configuration has it; `check_head` finds out whether that is all.

    Attributes:
        factor: by which they are multiplied.
        cap: they are soft-capped at, as ``cap * tanh(logits / cap)`` (Gemma 2, arXiv:2408.00118, section 2); None where not.
    """

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> Transform | None:
        """By a configuration; None where what it says is no number."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        names = ("logit_scale", "logits_scaling", "final_logit_softcapping")
        factor, divisor, cap = (getattr(text, name, None) for name in names)
        if not all(value is None or isinstance(value, (int, float)) for value in (factor, divisor, cap)):
            return None
        return cls((factor or 1.0) / (divisor or 1.0), cap or None)

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        return self != Transform()

    def __call__(self, logits: Tensor) -> Tensor:
        scaled = logits if self.factor == 1 else logits * self.factor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


class HeadError(ScaleKitError):
    """A model's loss cannot be computed of its hidden states."""


@final
@dataclass(frozen=True)
class Head:
    """A model's last layer, which makes logits of hidden states.

    Attributes:
        layer: with a weight of shape [vocabulary, hidden].
        transform: what the model's configuration says that it does with logits.
        parts: in how many the labels of a micro-batch are run at most. That depends on the model alone, so that steps of all
            larger micro-batches do the same, of other sizes, which is what the plan reckons with.
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
        transform = Transform.of(getattr(model, "config", None))
        return cls(layer, transform, parts) if parts > 1 and transform is not None else None

    def outcome(self, model: nn.Module, batch: Mapping[str, Any], shifted: bool, predicts: bool) -> ModelOutput:
        """Runs a model up to its head, and the head with the loss.

        Args:
            model: that the head is of.
            batch: with labels, shape [samples, tokens].
            shifted: whether each label is predicted one position before its own.
            predicts: whether to tell which classes have the highest logits.

        Raises:
            HeadError: the model runs its head more than once, or not at all, or on hidden states that are none of its labels'.
        """
        labels: Tensor = batch["labels"]
        found: list[ModelOutput] = []

        def read(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden = args[0]
            known, targets = (hidden[:, :-1], labels[:, 1:]) if shifted else (hidden, labels)
            if known.shape[:-1] != targets.shape:
                raise HeadError(
                    f"hidden states of {tuple(known.shape[:-1])} stand beside labels of {tuple(targets.shape)}"
                )
            found.append(self._loss(known, targets, predicts))
            return (hidden[..., :0, :].detach(),)  # of which the head makes logits of no token

        handle = self.layer.register_forward_pre_hook(read)
        try:
            called(model, _without_labels(model, batch))
        finally:
            handle.remove()
        if len(found) != 1:
            raise HeadError(f"{type(model).__name__} runs its head {len(found)} times")
        return found[0]

    def _loss(self, hidden: Tensor, targets: Tensor, predicts: bool) -> ModelOutput:
        flat = targets.reshape(-1)
        counted = _counted(flat)
        rows, wanted = hidden.reshape(-1, hidden.shape[-1])[counted], flat[counted]
        # Within `forward` autograd is off, whoever asks.
        asked = self, predicts, torch.is_grad_enabled()
        total, classes = _HeadLoss.apply(rows, self.layer.weight, self.layer.bias, wanted, *asked)
        predicted = torch.full_like(flat, IGNORED).masked_scatter(flat != IGNORED, classes) if predicts else None
        loss = total / max(len(wanted), 1)
        return ModelOutput(loss) if predicted is None else ModelOutput(loss, predicted.view_as(targets), targets)


class _HeadLoss(torch.autograd.Function):
    """The sum of the cross-entropies, and the classes with the highest logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: Head,
        predicts: bool,
        trains: bool,
    ) -> tuple[Tensor, Tensor]:
        """Gradients are of the sum, whose entries are near 1, so that float16 holds them; the backward pass scales them."""
        gradients = _Gradients.of(hidden, weight, bias) if trains and any(ctx.needs_input_grad) else None
        device = hidden.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        # Once, and not for each part, as autocast would.
        hidden, weight, bias = hidden.to(compute), weight.to(compute), None if bias is None else bias.to(compute)
        total, classes = torch.zeros((), dtype=torch.float32, device=hidden.device), [targets[:0]]
        size = max(LEAST_LABELS, -(-len(targets) // head.parts))
        for start in range(0, max(len(targets), 1), size):  # without any label, gradients are zeros
            part = slice(start, start + size)
            logits = nn.functional.linear(hidden[part], weight, bias)
            with torch.set_grad_enabled(trains):
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
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise ModelError(
                "a loss that is computed in parts has one backward pass: call backward() once a micro-batch"
            )
        ctx.gradients = None
        return (*gradients.scaled(scale), None, None, None, None)


@dataclass
class _Gradients:
    """Of hidden states and head, added up part by part; those of the head in float32."""

    hidden: Tensor
    weight: Tensor | None
    bias: Tensor | None
    weight_type: torch.dtype
    is_weight_trained: bool

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Gradients:
        zeros = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and bias.requires_grad else None
        return cls(torch.empty_like(hidden), None, zeros, weight.dtype, weight.requires_grad)

    def add(self, part: slice, hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
        """Adds those of a part.

        Args:
            part: its place among the labels.
            hidden: of the part.
            weight: of the head.
            logits: the part's gradient; all three are of the type that products are computed in.
        """
        self.hidden[part] = logits @ weight
        if self.bias is not None:
            self.bias += logits.sum(dim=0)
        if not self.is_weight_trained:
            return
        if self.weight is None:
            self.weight = (logits.T @ hidden).float()
        elif self.weight.dtype == logits.dtype:
            self.weight.addmm_(logits.T, hidden)
        else:
            self.weight += logits.T @ hidden

    def scaled(self, scale: Tensor) -> tuple[Tensor | None, ...]:
        """Times the gradient of the sum, in the tensors' own types."""
        head = [None if each is None else each.mul_(scale).to(self.weight_type) for each in (self.weight, self.bias)]
        # In float32: a GPU would round the factor to the hidden states' own type, the same way for all of them.
        for start in range(0, len(self.hidden), _SCALED_ROWS):
            part = self.hidden[start : start + _SCALED_ROWS]
            part.copy_(part.float() * scale)
        return (self.hidden, *head)


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
