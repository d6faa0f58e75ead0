"""Where the loss of a micro-batch comes from: the model itself, or a function of the user's; and what it is a mean over."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor, nn

from scalekit.errors import ConfigError, InputsError, NoLossError, shown
from scalekit.objectives.counts import IGNORED, Entries, ItemCount, Samples

_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_OF_TORCH = nn.modules.loss._Loss
_BY_ENTRY = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss)
TARGETS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class ModelOutput:
    """What a model made of a micro-batch.

    Attributes:
        loss: the scalar mean over the micro-batch's items.
        outputs: of the model, such as logits, shape [..., classes]; None where it has none that stand beside `targets`.
        targets: what they should have been, shape [...]; -100 where nothing is counted.
    """

    loss: Tensor
    outputs: Tensor | None = None
    targets: Tensor | None = None


class Objective(ABC):
    """How a model's mean loss over a micro-batch comes about, and what it is a mean over.

    Attributes:
        count: of the items that it is a mean over.
    """

    count: ItemCount
    function: Any = None
    """The user's own, where it is one; a `torch.nn` loss may hold tensors, which go where the model does."""

    def items(self, batch: Any, samples: int) -> float:
        """The items of a collated micro-batch of `samples` rows, counted before the model sees it."""
        return self.count.of(batch, samples)

    @abstractmethod
    def outcome(self, model: nn.Module, batch: Any) -> ModelOutput:
        """Runs the model on a micro-batch."""

    def mean_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar mean over the micro-batch's items."""
        return self.outcome(model, batch).loss

    def prediction(self, model: nn.Module, batch: Any) -> Any:
        """What the model gives for a batch; of a Hugging Face model the logits. A loss function's target is left out."""
        is_target = self.function is not None and has_target(batch)
        output = called(model, split(batch)[0] if is_target else batch)
        logits = getattr(output, "logits", None)
        return output if logits is None else logits

    def describe(self) -> str:
        """In words, what the loss is a mean over."""
        return str(self.count)


class ModelLoss(Objective):
    """The loss that a model returns by itself, as Hugging Face models do when they are given labels.

    Args:
        count: what it is likely to be a mean over; labels by default. What it is, is measured.
    """

    def __init__(self, count: ItemCount | None = None) -> None:
        self.count = count or Entries("labels")

    @classmethod
    def of(cls, model: nn.Module, count: ItemCount | None = None) -> ModelLoss:
        """Reads off a Hugging Face model whether it takes labels, and is likely to shift them.

        Raises:
            NoLossError: a Hugging Face model that takes no labels, such as one without a head.
        """
        config = getattr(model, "config", None)
        if config is None or not hasattr(model, "save_pretrained"):
            return cls(count)
        accepted = inspect.signature(_innermost(model).forward).parameters
        if not any(name in accepted for name in ("labels", "start_positions", "next_sentence_label")):
            raise NoLossError(
                f"{type(model).__name__} takes no labels and so has no loss. Use a class with a head, such as "
                "AutoModelForCausalLM, or give `loss=`"
            )
        loss_type = getattr(model, "loss_type", None)
        causal = loss_type in ("ForCausalLM", "ForConditionalGeneration") or type(model).__name__.endswith(
            "LMHeadModel"
        )
        return cls(count or Entries("labels", shifted=causal and not getattr(config, "is_encoder_decoder", False)))

    def outcome(self, model: nn.Module, batch: Any) -> ModelOutput:
        output = called(model, batch)
        loss = _own_loss(model, output)
        logits, labels = getattr(output, "logits", None), batch.get("labels") if isinstance(batch, Mapping) else None
        if logits is None or labels is None:
            return ModelOutput(loss)
        if isinstance(self.count, Entries) and self.count.shifted:
            return ModelOutput(loss, logits[:, :-1], labels[:, 1:])
        return ModelOutput(loss, logits, labels)


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


def _innermost(model: Any) -> Any:
    """The Hugging Face model itself, where PEFT wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _own_loss(model: nn.Module, output: Any) -> Tensor:
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, (tuple, list)):
        loss = output[0] if output else None
    else:
        loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.ndim:
        raise NoLossError(
            f"{type(model).__name__} returned no scalar loss. Give `loss=`, a function of the model's output and the "
            "target, or let the model return its loss alone, first in a tuple, or under 'loss'"
        )
    return loss


def has_target(batch: Any) -> bool:
    """Whether a batch has a target beside its inputs."""
    if isinstance(batch, Mapping):
        return sum(name in batch for name in TARGETS) == 1
    return isinstance(batch, (tuple, list)) and len(batch) > 1


def split(batch: Any) -> tuple[Any, Any]:
    """The inputs of a batch, and its target.

    Raises:
        InputsError: it has none, or several.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return tuple(batch[:-1]), batch[-1]
    if isinstance(batch, Mapping):
        found = [name for name in TARGETS if name in batch]
        if len(found) == 1:
            return {name: value for name, value in batch.items() if name != found[0]}, batch[found[0]]
    raise InputsError(
        "a loss function needs a target: a batch must be (inputs, target), or a mapping with exactly one of "
        + ", ".join(TARGETS)
    )


def called(model: nn.Module, inputs: Any) -> Any:
    """What a model gives for the inputs of a batch.

    Raises:
        InputsError: the model takes others.
    """
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    if not isinstance(inputs, Mapping):
        return model(inputs)
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if takes_any or all(name in parameters for name in inputs):
        return model(**inputs)
    if len(inputs) == 1:
        return model(next(iter(inputs.values())))
    raise InputsError(
        f"{type(model).__name__}.forward takes {', '.join(parameters)}, but the data's columns are {', '.join(inputs)}"
    )
