"""The loss contract: the loss of a step is the sum over its global batch, divided once by that batch's item count.

A model gives each micro-batch's loss as a mean over the micro-batch's items. A mean of such means is wrong wherever
micro-batches differ in their item counts (padding, masked labels, a short last batch). So each is weighted by its share
of the global batch's items, which are counted over all ranks before the first backward pass:

    loss = sum_m (items_m / items) * mean_m            with items = sum_m items_m, over all micro-batches m of the step
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scalekit.errors import ConfigError, InputsError, NoLossError, shown

IGNORED = -100
"""The label that no loss counts: PyTorch's default `ignore_index`."""

_TARGETS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class MicroBatch:
    """What is known of a micro-batch beside its tensors.

    Attributes:
        items: what its loss is a mean over; 0 for a filler, which a rank runs when the others still have rows.
        local_items: the items of this rank's whole part of the global batch.
        samples: the rows of the global batch, over all ranks.
        rows: the indices of its rows in the data.
        seed: the job's.
        step: the optimizer step it belongs to, from 1.
        index: its place among the global batch's micro-batches, over all ranks.
        first, last: whether it opens or closes this rank's part of the global batch.
    """

    items: float
    local_items: float
    samples: int
    rows: tuple[int, ...]
    seed: int
    step: int
    index: int
    first: bool
    last: bool


@dataclass(frozen=True)
class StepLoss:
    """One optimizer step over all ranks.

    Attributes:
        loss: of its global batch.
        items: that the loss is a mean over.
        votes: how many ranks have been asked to stop.
        milliseconds: that it took, added up over the ranks.
        micro_batches: that it had, added up over the ranks.
    """

    loss: float
    items: float
    votes: int
    milliseconds: int
    micro_batches: int


class Ledger:
    """Adds up one global batch at a time.

    Args:
        world_size: over how many ranks the engine averages gradients.
        accumulation: by what Lightning divides each micro-batch's loss.
        sum_over_ranks: adds a tensor up over all ranks.
        device: where sums are kept.
    """

    def __init__(
        self, world_size: int, accumulation: int, sum_over_ranks: Callable[[Tensor], Tensor], device: torch.device
    ) -> None:
        self._factor = world_size * accumulation
        self._sum_over_ranks = sum_over_ranks
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._loss = torch.zeros_like(self._total)
        self.rows: list[tuple[int, ...]] = []
        self.losses: list[Tensor] = []

    def weigh(self, output: Any, micro: MicroBatch) -> Any:
        """Notes a micro-batch's mean loss, and gives it the weight with which the engine's mean becomes the contract's.

        Args:
            output: what `training_step` returned: a scalar loss, or a mapping with one under ``"loss"``.
        """
        loss = output["loss"] if isinstance(output, Mapping) else output
        if micro.first:
            self._open(micro)
        if micro.items:
            self._loss += loss.detach().double() * micro.items
            self.rows.append(micro.rows)
            self.losses.append(loss.detach())
        exact = torch.promote_types(loss.dtype, torch.float32)  # a weight in bfloat16 would be wrong by up to 0.4 %
        weighted = loss.to(exact) * (micro.items * self._factor / self._total).to(exact)
        return {**output, "loss": weighted} if isinstance(output, Mapping) else weighted

    def close(self, vote: bool = False, milliseconds: int = 0, micro_batches: int = 0) -> StepLoss:
        """The loss over the global batch, the same on every rank; what else ranks have to tell each other travels with it.

        Args:
            vote: whether this rank has been asked to stop.
            milliseconds: that the step took here.
            micro_batches: that it had here.
        """
        told = torch.tensor([vote, milliseconds, micro_batches], dtype=self._loss.dtype, device=self._loss.device)
        summed = self._sum_over_ranks(torch.cat([self._loss.reshape(1), told]))
        loss, items, *others = torch.cat([summed[:1] / self._total, self._total.reshape(1), summed[1:]]).tolist()
        return StepLoss(loss, int(items) if items == int(items) else items, *map(int, others))

    def unfinite_rows(self) -> list[int]:
        """The rows of this rank's micro-batches whose loss was NaN or infinite."""
        return [row for rows, loss in zip(self.rows, self.losses, strict=True) if not loss.isfinite() for row in rows]

    def _open(self, micro: MicroBatch) -> None:
        self._total = self._sum_over_ranks(torch.full_like(self._total, micro.local_items))
        self._loss = torch.zeros_like(self._total)
        self.rows, self.losses = [], []


@dataclass(frozen=True)
class Outcome:
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
    """How a model's mean loss over a micro-batch comes about, and how many items it is a mean over."""

    @abstractmethod
    def items(self, batch: Any, samples: int) -> float:
        """The items of a collated micro-batch of `samples` rows, counted before the model sees it."""

    @abstractmethod
    def outcome(self, model: nn.Module, batch: Any) -> Outcome:
        """Runs the model on a micro-batch."""

    def mean_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The scalar mean over the micro-batch's items."""
        return self.outcome(model, batch).loss

    @abstractmethod
    def describe(self) -> str:
        """In words, what the loss is a mean over."""


class ModelLoss(Objective):
    """The loss that a model returns by itself, as Hugging Face models do when they are given labels.

    Args:
        shifted: whether the label at position i is predicted at position i - 1 (causal language models), so that the
            first label of a row is never counted.
    """

    def __init__(self, shifted: bool) -> None:
        self._shifted = shifted

    @classmethod
    def of(cls, model: nn.Module) -> ModelLoss:
        """Reads off a Hugging Face model whether it shifts its labels.

        Raises:
            NoLossError: a Hugging Face model that takes no labels, such as one without a head.
        """
        config = getattr(model, "config", None)
        if config is None or not hasattr(model, "save_pretrained"):
            return cls(shifted=False)
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
        return cls(shifted=causal and not getattr(config, "is_encoder_decoder", False))

    def items(self, batch: Any, samples: int) -> float:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return samples
        counted = labels[..., 1:] if self._shifted and labels.ndim > 1 else labels
        return int((counted != IGNORED).sum())

    def outcome(self, model: nn.Module, batch: Any) -> Outcome:
        if isinstance(batch, Mapping):
            output = _call(model, batch)
        elif isinstance(batch, (tuple, list)):
            output = model(*batch)
        else:
            output = model(batch)
        loss = _own_loss(model, output)
        logits, labels = getattr(output, "logits", None), batch.get("labels") if isinstance(batch, Mapping) else None
        if logits is None or labels is None:
            return Outcome(loss)
        if self._shifted:
            return Outcome(loss, logits[:, :-1], labels[:, 1:])
        return Outcome(loss, logits, labels)

    def describe(self) -> str:
        return "label tokens, shifted by one" if self._shifted else "labels"


class LossFunction(Protocol):
    """``loss(output, target)``: a scalar mean over the samples, or one value a sample, shape [batch]."""

    def __call__(self, output: Any, target: Any) -> Tensor: ...


class FunctionLoss(Objective):
    """A loss function of the user's, on the model's output and the batch's target.

    A batch is ``(*inputs, target)`` or a mapping with the target under one of labels, label, target, targets, y.

    Args:
        function: a `torch.nn` loss, or any `LossFunction`.
        count: gives the items of a batch where they are neither its samples nor, for cross-entropy, its labels.
    """

    def __init__(self, function: LossFunction, count: Callable[[Any], float] | None = None) -> None:
        self._function = function
        self._count = count

    def items(self, batch: Any, samples: int) -> float:
        if self._count is not None:
            return self._counted(batch)
        if not isinstance(self._function, (nn.CrossEntropyLoss, nn.NLLLoss)):
            return samples
        _, target = _split(batch)
        if target.is_floating_point():
            return samples
        target = target[target != self._function.ignore_index]
        weight = self._function.weight
        return int(target.numel()) if weight is None else float(weight.to(target.device)[target].sum())

    def check(self, batch: Any, samples: int) -> None:
        """Whether a batch has a target, and can be counted.

        Raises:
            ModelError: it has no target.
            ConfigError: `count` gives no number.
        """
        _split(batch)
        self.items(batch, samples)

    def _counted(self, batch: Any) -> float:
        rule = f"count={shown(self._count)} must be a function of a batch that gives a number"
        try:
            items = float(self._count(batch))  # type: ignore[misc]
        except Exception as error:
            raise ConfigError(f"{rule}: {type(error).__name__}: {error}") from error
        if not math.isfinite(items):
            raise ConfigError(f"{rule}, and gave {items}")
        return items

    def outcome(self, model: nn.Module, batch: Any) -> Outcome:
        inputs, target = _split(batch)
        output = model(*inputs) if isinstance(inputs, tuple) else _call(model, inputs)
        rule = "must be a function of the model's output and the target that gives a tensor"
        try:
            loss = self._function(output, target)
        except TypeError as error:
            raise NoLossError(f"loss={shown(self._function)} {rule}: {error}") from error
        if not isinstance(loss, Tensor):
            raise ConfigError(f"loss={shown(self._function)} {rule}, and gave {shown(loss)}")
        if loss.ndim > 1 and not isinstance(self._function, (nn.CrossEntropyLoss, nn.NLLLoss)):
            raise NoLossError(f"the loss function must return a scalar or one value a sample, not {tuple(loss.shape)}")
        if loss.ndim or getattr(self._function, "reduction", "mean") == "sum":
            loss = loss.sum() / self.items(batch, len(target))
        return Outcome(loss, output, target)

    def describe(self) -> str:
        if self._count is not None:
            return "items, as counted by the function given"
        return "labels" if isinstance(self._function, (nn.CrossEntropyLoss, nn.NLLLoss)) else "samples"


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


def _split(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return tuple(batch[:-1]), batch[-1]
    if isinstance(batch, Mapping):
        found = [name for name in _TARGETS if name in batch]
        if len(found) == 1:
            return {name: value for name, value in batch.items() if name != found[0]}, batch[found[0]]
    raise InputsError(
        "a loss function needs a target: a batch must be (inputs, target), or a mapping with exactly one of "
        + ", ".join(_TARGETS)
    )


def _call(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if takes_any or all(name in parameters for name in inputs):
        return model(**inputs)
    if len(inputs) == 1:
        return model(next(iter(inputs.values())))
    raise InputsError(
        f"{type(model).__name__}.forward takes {', '.join(parameters)}, but the data's columns are {', '.join(inputs)}"
    )
