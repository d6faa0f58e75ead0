"""A loss that is a function of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor, nn

from scalekit.errors import ConfigError, InputsError, NoLossError, shown
from scalekit.objectives.counts import IGNORED, ItemCount, Samples
from scalekit.objectives.objective import ModelOutput, Objective, called, split

_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_TORCH = nn.modules.loss._Loss
_BY_ENTRY = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)


class LossFunction(Protocol):
    """``loss(output, target)``: a scalar mean over the samples, or one value a sample, shape [batch]."""

    def __call__(self, output: Any, target: Any) -> Tensor: ...


@final
@dataclass(frozen=True)
class Targets(ItemCount):
    """Targets of a cross-entropy, by their classes' weights; samples where they are probabilities.

    Attributes:
        loss: which may ignore one class, and weigh the others.
        shifted: whether the first column is not counted, since the target at position i is predicted at position i - 1.
    """

    loss: nn.CrossEntropyLoss | nn.NLLLoss
    shifted: bool = False

    def of(self, batch: Any, samples: int) -> float:
        _, target = split(batch)
        if target.is_floating_point():
            return samples
        target = target[:, 1:] if self.shifted else target
        target = target[target != self.loss.ignore_index]
        weight = self.loss.weight
        return int(target.numel()) if weight is None else float(weight.to(target.device)[target].sum())

    def __str__(self) -> str:
        return "label tokens, shifted by one" if self.shifted else "labels"


class FunctionLoss(Objective):
    """A loss function of the user's, on the model's output and the batch's target.

    A batch is ``(*inputs, target)`` or a mapping with the target under one of labels, label, target, targets, y.

    A loss of `torch.nn` is given a Hugging Face model's logits; a function of the user's is given what the model returns.

    Args:
        function: a `torch.nn` loss, or any `LossFunction`.
        count: what it is likely to be a mean over; samples by default, and for cross-entropy labels.
        shifted: whether the targets are a language model's tokens, each of which is predicted one position before its own.
    """

    def __init__(self, function: LossFunction, count: ItemCount | None = None, shifted: bool = False) -> None:
        self.function, self._shifted = function, shifted
        self.count = count or (Targets(function, shifted) if isinstance(function, _CLASSES) else Samples())

    def check(self, batch: Any, samples: int) -> None:
        """Whether a batch has a target, and can be counted.

        Raises:
            ModelError: it has no target.
            ConfigError: a count of the user's gives no number.
        """
        split(batch)
        self.items(batch, samples)

    def outcome(self, model: nn.Module, batch: Any) -> ModelOutput:
        inputs, target = split(batch)
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and isinstance(batch, Mapping):
            inputs = batch  # of its labels it makes what its decoder reads
        samples = len(target)
        output, target = self._beside(called(model, inputs), target)
        loss = self._compared(output, target)
        if loss.ndim or getattr(self.function, "reduction", "mean") == "sum":
            loss = loss.sum() / self.items(batch, samples)
        ignored = getattr(self.function, "ignore_index", IGNORED)
        if ignored != IGNORED and isinstance(target, Tensor) and not target.is_floating_point():
            target = target.masked_fill(target == ignored, IGNORED)
        return ModelOutput(loss, output, target)

    def _compared(self, output: Any, target: Any) -> Tensor:
        """What the function gives: a scalar, or a value for each sample or class.

        Raises:
            InputsError: output and target are of two shapes, which torch would broadcast.
            NoLossError: it is no function of the two, or gives something else.
        """
        if isinstance(self.function, _BY_ENTRY) and output.shape != target.shape:
            raise InputsError(
                f"{type(self.function).__name__} compares entry by entry, and the model gives {tuple(output.shape)} for "
                f"targets of {tuple(target.shape)}: give both one shape, as with .unsqueeze(-1) for the targets"
            )
        if isinstance(self.function, _CLASSES) and _are_tokens(output, target):
            output, target = output.flatten(0, 1), target.flatten()
        rule = "must be a function of the model's output and the target that gives a tensor"
        try:
            loss = self.function(output, target)
        except TypeError as error:
            raise NoLossError(f"loss={shown(self.function)} {rule}: {error}") from error
        if not isinstance(loss, Tensor):
            raise ConfigError(f"loss={shown(self.function)} {rule}, and gave {shown(loss)}")
        if loss.ndim > 1 and not isinstance(self.function, _CLASSES):
            raise NoLossError(f"the loss function must return a scalar or one value a sample, not {tuple(loss.shape)}")
        return loss

    def _beside(self, output: Any, target: Any) -> tuple[Any, Any]:
        """What stands beside a target: a Hugging Face model's logits, of tokens those that predict it."""
        logits = getattr(output, "logits", None)
        if not is_torch_loss(self.function) or not isinstance(logits, Tensor):
            return output, target
        if self._shifted:
            return logits[:, :-1], target[:, 1:]
        return (logits[..., 0] if logits.shape == (*target.shape, 1) else logits), target


def _are_tokens(output: Any, target: Any) -> bool:
    """Whether there are classes of each token, which torch's losses take in rows alone."""
    is_pair = isinstance(output, Tensor) and isinstance(target, Tensor)
    return is_pair and output.ndim == 3 and output.shape[:2] == target.shape


def is_torch_loss(loss: Any) -> bool:
    """Whether a loss is one of `torch.nn`, which compares tensors."""
    return isinstance(loss, _OF_TORCH)
