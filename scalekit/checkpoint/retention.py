"""Which checkpoints a job keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scalekit.config.markers import is_a
from scalekit.config.settings import Job
from scalekit.errors import ConfigError, UnknownNameError, shown
from scalekit.objectives.metrics import metrics_of

_MORE_IS_BETTER = {
    "loss": False,
    "perplexity": False,
    "accuracy": True,
    "token_accuracy": True,
    "f1": True,
    "mean_absolute_error": False,
}


@dataclass(frozen=True)
class Rotation:
    """What is kept of a job's checkpoints; all of them, where nothing is said.

    Attributes:
        last: how many of the newest.
        every: those whose step is a multiple of this, for good.
        best: the one with the best value of this metric of the validation set, among those that stand.
        more_is_better: of that metric.
    """

    last: int | None = None
    every: int | None = None
    best: str | None = None
    more_is_better: bool = False

    @classmethod
    def of(cls, job: Job, evaluates: bool) -> Rotation:
        """What a job's settings say.

        Args:
            job: its settings.
            evaluates: whether the job has a validation set.

        Raises:
            ConfigError: a metric that the job does not have.
        """
        best = job.keep_best
        if best is None:
            return cls(job.kept, job.keep_every)
        if not evaluates:
            raise ConfigError(
                f"keep_best={shown(best)} is found on the validation set, and there is none: give `validation`"
            )
        if not isinstance(best, str):
            return cls(job.kept, job.keep_every, best["metric"], best["mode"] == "max")
        known = _MORE_IS_BETTER | {name: metric.higher_is_better for name, metric in metrics_of(job.metrics).items()}
        if best not in known and is_a(job.model, "lightning.pytorch.LightningModule"):
            raise ConfigError(
                f"keep_best={shown(best)}: of what a module logs it is not known whether more is better: give "
                f"{{'metric': {shown(best)}, 'mode': 'max'}}, or 'min'"
            )
        if best not in known:
            raise UnknownNameError("metric in keep_best", best, known)
        if known[best] is None:
            raise ConfigError(f"keep_best={shown(best)}: the metric does not say whether more or less of it is better")
        return cls(job.kept, job.keep_every, best, bool(known[best]))

    def unwanted(self, standing: Sequence[int], evaluations: Sequence[Mapping[str, Any]]) -> list[int]:
        """The steps whose checkpoints go once the newest stands.

        Args:
            standing: steps that have a checkpoint, oldest first; the newest is kept always.
            evaluations: so far, each with its step.
        """
        if self.last is None:
            return []
        kept = {*standing[-max(self.last, 1) :], *(step for step in standing if self.every and step % self.every == 0)}
        best = self.best or ""
        values = {record["step"]: float(record[best]) for record in evaluations if best in record}
        found = [step for step in standing if not math.isnan(values.get(step, math.nan))]
        if found:
            kept.add((max if self.more_is_better else min)(found, key=lambda step: values[step]))
        return [step for step in standing if step not in kept]
