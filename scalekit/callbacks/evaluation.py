"""When a job evaluates: before the first step, once an epoch or every so many steps, and after the last."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer


@final
@dataclass(frozen=True)
class EvaluationSteps:
    """The optimizer steps that an evaluation follows; the last one of the job always.

    Attributes:
        total: of the whole job.
        every: optimizer steps between two; None for the last alone.
        epoch: optimizer steps after which counting starts again; None where it never does.
    """

    total: int
    every: int | None = None
    epoch: int | None = None

    @classmethod
    def of(cls, evaluate_every: int | float | str | None, total_steps: int, epoch_steps: int | None) -> EvaluationSteps:
        """What the setting says.

        Args:
            evaluate_every: optimizer steps, a share of an epoch, ``"epoch"``, or None.
            total_steps: of the whole job.
            epoch_steps: optimizer steps an epoch; None for a stream, which has no epochs and is evaluated at its end then.
        """
        if evaluate_every is None or isinstance(evaluate_every, int):
            return cls(total_steps, evaluate_every)
        if epoch_steps is None:
            return cls(total_steps)
        share = 1.0 if isinstance(evaluate_every, str) else evaluate_every
        return cls(total_steps, max(1, int(epoch_steps * share)), epoch_steps)

    def due(self, step: int) -> bool:
        """Whether a step is followed by an evaluation, where there are rows to evaluate."""
        return is_due(self._in_epoch(step), self.every, total_steps=-1) or step == self.total

    def after(self, step: int) -> int:
        """How many evaluations follow a step."""
        if step >= self.total:
            return 0
        return self._until(self.total) - self._until(step) + (not self.due_before_end)

    @property
    def due_before_end(self) -> bool:
        """Whether the last step is one that an evaluation would follow anyway."""
        return is_due(self._in_epoch(self.total), self.every, total_steps=-1)

    def _in_epoch(self, step: int) -> int:
        return step if self.epoch is None else (step - 1) % self.epoch + 1

    def _until(self, step: int) -> int:
        """Evaluations up to a step, but for the one that is the job's last whatever it counts."""
        if self.every is None:
            return 0
        epochs, rest = divmod(step, self.epoch) if self.epoch is not None else (0, step)
        return epochs * ((self.epoch or 0) // self.every) + rest // self.every


class Evaluation(Callback):
    """Tells Lightning after which micro-batches to run the validation set.

    Lightning counts micro-batches, whose number an optimizer step varies at an epoch's end; steps are counted here.

    Args:
        steps: that are followed by one.
        resumed_step: the step that the job resumes from.
    """

    def __init__(self, steps: EvaluationSteps, resumed_step: int) -> None:
        self._steps, self._seen_step = steps, resumed_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.val_check_batch = sys.maxsize

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        strategy: Any = trainer.strategy
        step = strategy.step
        trainer.val_check_batch = 1 if self._steps.due(step) and step != self._seen_step else sys.maxsize
        self._seen_step = step


def is_due(step: int, every: int | None, total_steps: int) -> bool:
    """Whether something is done after a step that is done every so many steps, and after the last."""
    return step == total_steps or (every is not None and step % every == 0)
