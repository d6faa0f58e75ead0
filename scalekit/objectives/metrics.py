"""What is found on the validation set beside the loss: torchmetrics' metrics, added up batch by batch; no logits are kept."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, final

import torch
import torchmetrics
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, Metric
from torchmetrics.classification import BinaryF1Score

from scalekit.errors import ConfigError
from scalekit.models.tasks import TASKS
from scalekit.objectives.counts import IGNORED


@final
class Scores:
    """Scores over all ranks' rows, each counted once, however uneven they are.

    Args:
        given: as `metrics_of` takes them; or None for the usual ones.
        task: of the rows, or None.
        problem: transformers' `problem_type` of what is learned, tokens being classes; or None.

    Raises:
        ConfigError: something among them is no metric.
    """

    def __init__(self, given: Mapping[str, Any] | None, task: str | None, problem: str | None) -> None:
        self._given = metrics_of(given)
        self._usual = _USUAL[problem]() if given is None and problem in _USUAL else None
        self._tells_perplexity = given is None and task is not None and TASKS[task].is_language

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
        if self._usual is not None:
            self._usual.update(outputs, targets, counts)

    def close(self, loss: float) -> dict[str, float]:
        """The scores, the same on every rank; every rank calls it, and what comes next starts again."""
        found: dict[str, float] = {}
        if self._tells_perplexity:
            found["perplexity"] = math.exp(min(loss, 700.0))
        usual = {} if self._usual is None else self._usual.named
        for name, metric in {**usual, **self._given}.items():
            value = metric.compute()
            metric.reset()
            if isinstance(value, Tensor) and value.numel() == 1:
                found[name] = float(value)
            elif isinstance(value, Mapping):
                found |= {f"{name}_{key}": float(each) for key, each in value.items()}
            else:
                raise ConfigError(f"metrics: {name!r} gives {type(value).__name__} of several values: average them")
        return found


class _Usual(ABC):
    """A score that is found without being asked for, where outputs and targets have the form of its problem.

    Attributes:
        named: its metric by the score's name; nothing as long as no output had that form.
    """

    def __init__(self, metric: Metric) -> None:
        self.named: dict[str, Metric] = {}
        self._metric = metric.set_dtype(torch.float64)

    def update(self, outputs: Tensor, targets: Tensor, counts: bool) -> None:
        """Counts a micro-batch, as `Scores.update` does."""
        name = self._name(outputs, targets)
        if name is None:
            return
        self.named = {name: self._metric.to(outputs.device)}
        if counts:
            self._count(outputs, targets)

    @abstractmethod
    def _name(self, outputs: Tensor, targets: Tensor) -> str | None:
        """The score's; None where outputs or targets are of another form."""

    @abstractmethod
    def _count(self, outputs: Tensor, targets: Tensor) -> None: ...


@final
class _Accuracy(_Usual):
    """The share of rows, or of tokens that are counted, whose class is the one with the highest logit."""

    def __init__(self) -> None:
        super().__init__(MeanMetric())

    def _name(self, outputs: Tensor, targets: Tensor) -> str | None:
        is_class = not outputs.is_floating_point() and outputs.shape == targets.shape
        if targets.is_floating_point() or not (is_class or outputs.shape[:-1] == targets.shape):
            return None
        return "accuracy" if targets.ndim == 1 else "token_accuracy"

    def _count(self, outputs: Tensor, targets: Tensor) -> None:
        counted = targets != IGNORED
        classes = outputs if outputs.shape == targets.shape else outputs.argmax(dim=-1)
        self._metric.update((classes[counted] == targets[counted]).double())


@final
class _SeveralF1(_Usual):
    """F1 over all classes of all rows together: of those that a row is of, and those whose logit is above 0."""

    def __init__(self) -> None:
        super().__init__(BinaryF1Score())

    def _name(self, outputs: Tensor, targets: Tensor) -> str | None:
        return "f1" if outputs.shape == targets.shape else None

    def _count(self, outputs: Tensor, targets: Tensor) -> None:
        self._metric.update((outputs > 0).int().flatten(), (targets > 0.5).int().flatten())


@final
class _Error(_Usual):
    """The mean absolute difference of outputs and numbers, in the numbers' own unit."""

    def __init__(self) -> None:
        super().__init__(MeanAbsoluteError())

    def _name(self, outputs: Tensor, targets: Tensor) -> str | None:
        return "mean_absolute_error" if outputs.numel() == targets.numel() else None

    def _count(self, outputs: Tensor, targets: Tensor) -> None:
        self._metric.update(outputs.double().flatten(), targets.double().flatten())


_USUAL: dict[str, Callable[[], _Usual]] = {
    "single_label_classification": _Accuracy,
    "multi_label_classification": _SeveralF1,
    "regression": _Error,
}
"""By transformers' `problem_type`."""


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
