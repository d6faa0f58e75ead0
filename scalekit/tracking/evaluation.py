"""When a job evaluates: before the first step, every so many steps, and after the last."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Evaluation(Callback):
    """Tells Lightning after which micro-batches to run the rows held out.

    Lightning counts micro-batches, whose number an optimizer step varies at an epoch's end; steps are counted here.

    Args:
        total_steps: of the whole job.
        every: optimizer steps between two; None evaluates before the first step and after the last alone.
        resumed_step: the step that the job resumes from.
    """

    def __init__(self, total_steps: int, every: int | None, resumed_step: int) -> None:
        self._total, self._every, self._seen_step = total_steps, every, resumed_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.val_check_batch = sys.maxsize

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        trainer.val_check_batch = 1 if self.due(step) and step != self._seen_step else sys.maxsize
        self._seen_step = step

    def due(self, step: int) -> bool:
        """Whether a step is followed by an evaluation, where rows are held out."""
        return is_due(step, self._every, self._total)


def is_due(step: int, every: int | None, total_steps: int) -> bool:
    """Whether something is done after a step that is done every so many steps, and after the last."""
    return step == total_steps or (every is not None and step % every == 0)
