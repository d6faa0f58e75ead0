"""Parts of Lightning's, without what ScaleKit's ranks tell each other in another way: see `preemption`."""

from __future__ import annotations

from typing import final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


def leave_signals(trainer: Trainer) -> None:
    """Has a trainer neither listen to signals nor have its ranks tell each other of any."""
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, loop.min_steps, loop.max_steps)
    trainer._signal_connector = SignalConnector(trainer)


@final
class EpochLoop(_TrainingEpochLoop):
    """Lightning's own, in which ranks do not meet before each micro-batch, and schedules count optimizer steps.

    Lightning has rank 0 tell the others there whether it was sent SIGTERM, for which a GPU has to catch up with its CPU. Here
    ranks hear of it with the loss of each step.
    """

    _counts_steps = False

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing."""

    @property
    def batch_idx(self) -> int:
        """The place of a micro-batch in its epoch; while schedules are asked, that of its optimizer step.

        A schedule's ``frequency`` is one of optimizer steps. Lightning counts micro-batches for it, so that it would depend on
        accumulation.
        """
        place: int = super().batch_idx
        return place // self.trainer.accumulate_grad_batches if self._counts_steps else place

    def _update_learning_rates(self, interval: str, update_plateau_schedulers: bool) -> None:
        self._counts_steps = True
        try:
            super()._update_learning_rates(interval, update_plateau_schedulers)
        finally:
            self._counts_steps = False


@final
class SignalConnector(_SignalConnector):
    """Lightning's own, whose answer to SIGTERM is a collective, which each rank would begin somewhere else."""

    def register_signal_handlers(self) -> None:
        """Nothing."""
