"""The loss that a model returns by itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scalekit.errors import NoLossError
from scalekit.models.adapters import innermost
from scalekit.objectives.counts import IGNORED, Entries, ItemCount
from scalekit.objectives.head_loss import Head
from scalekit.objectives.objective import ModelOutput, Objective, called


class ModelLoss(Objective):
    """The loss that a model returns by itself, as Hugging Face models do when they are given labels.

    Args:
        count: what it is likely to be a mean over; labels by default. What it is, is measured.
        in_parts: whether it is computed of hidden states, without the logits of a whole batch, where the model has a head for
            it. Whether that comes to the same is measured.

    Attributes:
        keeps_logits: whether somebody reads the logits of evaluations, which are whole then.
    """

    def __init__(self, count: ItemCount | None = None, in_parts: bool = False) -> None:
        self.count, self.in_parts = count or Entries("labels"), in_parts
        self.keeps_logits = False

    @classmethod
    def of(cls, model: nn.Module, count: ItemCount | None = None, in_parts: bool = False) -> ModelLoss:
        """Reads off a Hugging Face model whether it takes labels, and is likely to shift them.

        Raises:
            NoLossError: a Hugging Face model that takes no labels, such as one without a head.
        """
        config = getattr(model, "config", None)
        if config is None or not hasattr(model, "save_pretrained"):
            return cls(count, in_parts)
        accepted = inspect.signature(innermost(model).forward).parameters
        if not any(name in accepted for name in ("labels", "start_positions", "next_sentence_label")):
            raise NoLossError(
                f"{type(model).__name__} takes no labels and so has no loss. Use a class with a head, such as "
                "AutoModelForCausalLM, or give `loss=`"
            )
        loss_type = getattr(model, "loss_type", None)
        causal = loss_type in ("ForCausalLM", "ForConditionalGeneration") or type(model).__name__.endswith(
            "LMHeadModel"
        )
        is_shifted = causal and not getattr(config, "is_encoder_decoder", False)
        return cls(count or Entries("labels", shifted=is_shifted), in_parts)

    @property
    def is_shifted(self) -> bool:
        """Whether each label is predicted one position before its own."""
        return isinstance(self.count, Entries) and self.count.shifted

    def head(self, model: nn.Module, batch: Any) -> Head | None:
        """The model's head, where the loss of a batch is a mean over labels that it predicts; None otherwise."""
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        is_of_labels = isinstance(self.count, Entries) and (self.count.key, self.count.ignored) == ("labels", IGNORED)
        return Head.of(model) if is_of_labels and isinstance(labels, Tensor) and labels.ndim == 2 else None

    def mean_loss(self, model: nn.Module, batch: Any) -> Tensor:
        head = self.head(model, batch) if self.in_parts else None
        return self.outcome(model, batch).loss if head is None else self.of_parts(head, model, batch).loss

    def outcome(self, model: nn.Module, batch: Any) -> ModelOutput:
        head = self.head(model, batch) if self.in_parts and not self.keeps_logits else None
        return self._of_whole(model, batch) if head is None else self.of_parts(head, model, batch, predicts=True)

    def of_parts(self, head: Head, model: nn.Module, batch: Any, predicts: bool = False) -> ModelOutput:
        """What a head makes of a batch; see `Head.outcome`."""
        return head.outcome(model, batch, self.is_shifted, predicts)

    def _of_whole(self, model: nn.Module, batch: Any) -> ModelOutput:
        output = called(model, batch)
        loss = _own_loss(model, output)
        logits, labels = getattr(output, "logits", None), batch.get("labels") if isinstance(batch, Mapping) else None
        if logits is None or labels is None:
            return ModelOutput(loss)
        if self.is_shifted:
            return ModelOutput(loss, logits[:, :-1], labels[:, 1:])
        return ModelOutput(loss, logits, labels)


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
