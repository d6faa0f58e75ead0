"""What is found on the rows held out beside the loss: torchmetrics' metrics, added up batch by batch; no logits are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, final

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import MeanMetric, Metric

from scalekit.errors import ConfigError
from scalekit.objectives.counts import IGNORED

LANGUAGE = ("causal-lm", "masked-lm", "seq2seq-lm", "image-text-to-text")


@final
class Scores:
    """Scores over all ranks' rows, each counted once, however uneven they are.

    Args:
        given: as `metrics_of` takes them; or None for the usual ones.
        task: of the rows, or None.
        classifies: whether the targets are classes, or tokens.

    Raises:
        ConfigError: something among them is no metric.
    """

    def __init__(self, given: Mapping[str, Any] | None, task: str | None, classifies: bool) -> None:
        self._given = metrics_of(given)
        self._accuracy = MeanMetric().set_dtype(torch.float64) if given is None and classifies else None
        self._accuracy_name: str | None = None
        self._tells_perplexity = given is None and task in LANGUAGE

    def update(self, output: Any, counts: bool = True) -> None:
        """Counts a micro-batch, as `ScaleModule.validation_step` returns it.

        Args:
            output: of the step.
            counts: whether it has rows of its own. From one without, a rank that has no others still learns what the scores are
                called and which shapes they have, without which ranks could not add them up.
        """
        outputs, targets = output["outputs"], output["targets"]
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            return
        outputs = outputs.detach()
        for metric in self._given.values():
            metric.to(outputs.device)
            if counts:
                metric.update(outputs, targets)
            else:
                _shape(metric, outputs, targets)
        if self._accuracy is not None and not targets.is_floating_point() and outputs.shape[:-1] == targets.shape:
            self._accuracy_name = "accuracy" if targets.ndim == 1 else "token_accuracy"
            self._accuracy.to(outputs.device)
            if counts:
                counted = targets != IGNORED
                self._accuracy.update((outputs.argmax(dim=-1)[counted] == targets[counted]).double())

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


def metrics_of(given: Mapping[str, Any] | None) -> dict[str, Metric]:
    """The metrics of a job, which take the model's outputs and the targets.

    Args:
        given: by names of the user's: torchmetrics' metrics, or their classes with their arguments, as
            ``{"class": "F1Score", "task": "multiclass", "num_classes": 3}``.

    Raises:
        ConfigError: something among them is no metric.
    """
    return {name: _metric(name, each) for name, each in (given or {}).items()}


def _shape(metric: Metric, outputs: Tensor, targets: Tensor) -> None:
    """Gives what a metric keeps, where that is still nothing at all, its types and shapes, with no row in it."""
    kept = {name: state for name, state in metric.metric_state.items() if isinstance(state, list)}
    if not kept or any(kept.values()):
        return
    trial = metric.clone()
    trial.update(outputs, targets)
    for name in kept:
        setattr(metric, name, [each[:0] for each in getattr(trial, name)])


def _metric(name: str, given: Any) -> Metric:
    if isinstance(given, Metric):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("class"), str):
        raise ConfigError(
            f"metrics: {name!r} is a {type(given).__name__}, and should be a torchmetrics Metric, or a mapping with its "
            "'class' and its arguments"
        )
    kind = getattr(torchmetrics, given["class"], None)
    if kind is None:
        near = get_close_matches(given["class"], torchmetrics.__all__, n=3, cutoff=0.3)
        raise ConfigError(f"metrics: torchmetrics has no {given['class']!r}. Near it are {', '.join(near) or 'none'}")
    try:
        made = kind(**{option: value for option, value in given.items() if option != "class"})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metrics: {name!r} cannot be made a {given['class']}: {error}") from error
    if not isinstance(made, Metric):
        raise ConfigError(f"metrics: {name!r}: {given['class']} is no metric")
    return made
