"""Where the loss of a micro-batch comes from: the model itself, or a function of the user's; and what it is a mean over."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scalekit.errors import InputsError
from scalekit.models.adapters import innermost
from scalekit.objectives.counts import ItemCount

TARGETS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class ModelOutput:
    """What a model made of a micro-batch.

    Attributes:
        loss: the scalar mean over the micro-batch's items.
        outputs: of the model, such as logits, shape [..., classes]; where those never were there at once, the classes with the
            highest ones, shape [...]; None where it has none that stand beside `targets`.
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


def _without_cache(model: Any) -> dict[str, bool]:
    own = innermost(model)
    is_known = hasattr(own, "save_pretrained") and "use_cache" in inspect.signature(own.forward).parameters
    return {"use_cache": False} if is_known else {}


def called(model: nn.Module, inputs: Any) -> Any:
    """What a model gives for the inputs of a batch.

    A Hugging Face model is told to keep no keys and values, which it would copy for texts that it writes.

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
        return model(**_without_cache(model), **inputs) if "use_cache" not in inputs else model(**inputs)
    if len(inputs) == 1:
        return model(next(iter(inputs.values())))
    raise InputsError(
        f"{type(model).__name__}.forward takes {', '.join(parameters)}, but the data's columns are {', '.join(inputs)}"
    )
