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
    """Lightning's own, in which ranks do not meet before each micro-batch.

    Lightning has rank 0 tell the others there whether it was sent SIGTERM, for which a GPU has to catch up with its CPU. Here
    ranks hear of it with the loss of each step.
    """

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing."""


@final
class SignalConnector(_SignalConnector):
    """Lightning's own, whose answer to SIGTERM is a collective, which each rank would begin somewhere else."""

    def register_signal_handlers(self) -> None:
        """Nothing."""
