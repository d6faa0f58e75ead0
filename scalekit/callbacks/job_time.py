"""How long a whole job takes, data, evaluations and saves included: predicted before its first step, and corrected once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.callbacks.evaluation import EvaluationSteps
from scalekit.callbacks.metrics import Metrics
from scalekit.planning.plan import Plan
from scalekit.planning.timing.step_time import save_seconds
from scalekit.utils.log import duration, log

_MEASURED_STEPS = 3
"""Steps that are measured before a prediction is corrected; the first one of a job, which is slower, is none of them."""

_LEAST_CORRECTION = 0.1


@dataclass(frozen=True)
class JobTime:
    """What is left of a job, and how long it takes.

    Attributes:
        steps, evaluations: how many are left.
        step_seconds: of one step; None where it is not known.
        evaluation_seconds: of one evaluation.
        end_seconds: of writing the last checkpoint.
    """

    steps: int
    evaluations: int
    step_seconds: float | None
    evaluation_seconds: float = 0.0
    end_seconds: float = 0.0

    @classmethod
    def predicted(cls, plan: Plan, resumed_step: int, evaluations: EvaluationSteps) -> JobTime:
        """Of a job that begins after a step.

        Args:
            plan: how it runs.
            resumed_step: the step that it resumes from; 0 for a new one.
            evaluations: when the job evaluates, beside once before its first step.
        """
        rows = plan.validation_samples or 0
        due = evaluations.after(resumed_step) + (resumed_step == 0) if rows else 0
        found, share = plan.predicted, plan.micro_batch_size * plan.world_size
        state = 4.0 * ((plan.parameters or 0) + 2 * (plan.trained_parameters or 0))
        return cls(
            plan.total_steps - resumed_step,
            due,
            found.get("step_seconds"),
            math.ceil(rows / share) * found.get("forward_seconds", 0.0),
            save_seconds(state),
        )

    @property
    def seconds(self) -> float | None:
        """All of it; None where a step's time is not known."""
        if self.step_seconds is None:
            return None
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds + self.end_seconds

    def describe(self, epoch_steps: int | None) -> str:
        """In words.

        Args:
            epoch_steps: of an epoch; None where there are no epochs.
        """
        return str(self) + (f" (an epoch is {epoch_steps:,} step{'s' * (epoch_steps != 1)})" if epoch_steps else "")

    def __str__(self) -> str:
        seconds = self.seconds
        steps = f"{self.steps:,} step{'' if self.steps == 1 else 's'}"
        if seconds is None:
            return f"{steps}; how long they take is not known yet"
        return f"{steps}, {duration(max(seconds, 1))}, done {_clock(seconds)}"


@final
class JobClock(Callback):
    """Corrects a job's predicted end by the first steps that were measured, once, and on rank 0.

    Args:
        expected: of the whole job, as it was predicted.
        metrics: where the time of each step is found.
        steps: as for `JobTime.predicted`.
    """

    def __init__(self, expected: JobTime, metrics: Metrics, steps: EvaluationSteps) -> None:
        self._expected, self._metrics, self._steps = expected, metrics, steps
        self._evaluation_began = time.monotonic()
        self._evaluations: list[float] = []
        self._is_corrected = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluations.append(time.monotonic() - self._evaluation_began)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        total = self._steps.total
        done = len(self._metrics.history) - (total - self._expected.steps)
        if self._is_corrected or done <= _MEASURED_STEPS or len(self._metrics.history) >= total:
            return
        self._is_corrected = True
        before = self._left()
        latest = [record["step_seconds"] for record in self._metrics.history[-_MEASURED_STEPS:]]
        after = corrected(before, latest, self._evaluations)
        if is_other(before, after):
            was = "" if before.step_seconds is None else f" where {before.step_seconds:.3g} s were predicted"
            log("time", f"{after.step_seconds:.3g} s a step{was}: {after}")

    def _left(self) -> JobTime:
        step = len(self._metrics.history)
        due = self._steps.after(step) if self._expected.evaluations else 0
        return replace(self._expected, steps=self._steps.total - step, evaluations=due)


def corrected(left: JobTime, step_seconds: Sequence[float], evaluation_seconds: Sequence[float]) -> JobTime:
    """What is left of a job, by what was measured of it."""
    evaluation = evaluation_seconds[-1] if evaluation_seconds else left.evaluation_seconds
    return replace(left, step_seconds=median(step_seconds), evaluation_seconds=evaluation)


def is_other(before: JobTime, after: JobTime) -> bool:
    """Whether a correction is worth a line."""
    if before.seconds is None or after.seconds is None:
        return True
    return abs(after.seconds - before.seconds) > max(_LEAST_CORRECTION * before.seconds, 1.0)


def _clock(seconds: float) -> str:
    """When it is so much later: by the clock, and with the day where that is another one."""
    end = time.localtime(time.time() + seconds)
    is_today = time.strftime("%Y-%m-%d", end) == time.strftime("%Y-%m-%d")
    return time.strftime("at %H:%M" if is_today else "%a %d %b at %H:%M", end)
