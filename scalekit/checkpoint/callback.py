"""When a job saves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.checkpoint.layout import checkpoint_name


class Checkpoints(Callback):
    """Saves every so many optimizer steps, and at the end.

    Args:
        folder: where checkpoints stand.
        total_steps: of the whole job.
        every: optimizer steps between two; None saves at the end alone.
        resumed_step: the step that the job resumes from.
        on_saved: called after each.
    """

    def __init__(
        self, folder: Path, total_steps: int, every: int | None, resumed_step: int, on_saved: Callable[[], None]
    ) -> None:
        self._folder, self._total, self._every, self._on_saved = folder, total_steps, every, on_saved
        self._seen_step = resumed_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step == self._total or (self._every is not None and step % self._every == 0)
        if due and step != self._seen_step:
            trainer.strategy.settle()  # type: ignore[attr-defined]
            trainer.save_checkpoint(self._folder / checkpoint_name(step))
            self._on_saved()
        self._seen_step = step
