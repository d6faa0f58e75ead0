"""Lightning's loop over an epoch, without what ScaleKit's ranks tell each other in another way."""

from __future__ import annotations

from typing import final

from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


@final
class EpochLoop(_TrainingEpochLoop):
    """Lightning's own, in which ranks do not meet before each micro-batch.

    Lightning has rank 0 tell the others there whether it was sent SIGTERM, for which a GPU has to catch up with its CPU. Here
    ranks hear of it with the loss of each step: see `preemption`.
    """

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing."""
