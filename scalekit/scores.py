"""What is found on the rows held out beside the loss: torchmetrics' metrics, added up batch by batch; no logits are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from scalekit.errors import ConfigError
from scalekit.loss import IGNORED

_LANGUAGE = ("causal-lm", "masked-lm", "seq2seq-lm", "image-text-to-text")


@final
class Scores:
    """Scores over all ranks' rows, each counted once, however uneven they are.

    Args:
        given: names of metrics of the user's, which take the model's outputs and the targets; or None for the usual ones.
        task: of the rows, or None.
        classifies: whether the targets are classes, or tokens.

    Raises:
        ConfigError: something among them is no metric.
    """

    def __init__(self, given: Mapping[str, Any] | None, task: str | None, classifies: bool) -> None:
        for name, metric in (given or {}).items():
            if not isinstance(metric, Metric):
                raise ConfigError(
                    f"metrics: {name!r} is a {type(metric).__name__}, and should be a torchmetrics Metric"
                )
        self._given = dict(given or {})
        self._accuracy = MeanMetric().set_dtype(torch.float64) if given is None and classifies else None
        self._accuracy_name: str | None = None
        self._tells_perplexity = given is None and task in _LANGUAGE

    def update(self, output: Any) -> None:
        """Counts a micro-batch, as `ScaleModule.validation_step` returns it."""
        outputs, targets = output["outputs"], output["targets"]
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            return
        for metric in self._given.values():
            metric.to(outputs.device).update(outputs.detach(), targets)
        if self._accuracy is not None and not targets.is_floating_point() and outputs.shape[:-1] == targets.shape:
            self._accuracy_name = "accuracy" if targets.ndim == 1 else "token_accuracy"
            counted = targets != IGNORED
            right = outputs.detach().argmax(dim=-1)[counted] == targets[counted]
            self._accuracy.to(outputs.device).update(right.double())

    def close(self, loss: float) -> dict[str, float]:
        """The scores, the same on every rank; every rank calls it, and what comes next starts anew."""
        found: dict[str, float] = {}
        if self._tells_perplexity:
            found["perplexity"] = math.exp(min(loss, 700.0))
        metrics = {
            **(
                {self._accuracy_name: self._accuracy}
                if self._accuracy is not None and self._accuracy_name is not None
                else {}
            ),
            **self._given,
        }
        for name, metric in metrics.items():
            value = metric.compute()
            metric.reset()
            if isinstance(value, Tensor) and value.numel() == 1:
                found[name] = float(value)
            elif isinstance(value, Mapping):
                found |= {f"{name}_{key}": float(each) for key, each in value.items()}
            else:
                raise ConfigError(f"metrics: {name!r} gives {type(value).__name__} of several values: average them")
        return found
