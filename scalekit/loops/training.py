"""Lightning's loop over an epoch's batches."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from scalekit.loops.results import Results
from scalekit.strategies.base import BaseStrategy


@final
class EpochLoop(_TrainingEpochLoop):
    """Lightning's own, which counts global batches.

    Ranks do not meet before each micro-batch. Lightning has rank 0 tell the others there whether it was sent SIGTERM, for which
    a GPU has to catch up with its CPU. Here ranks hear of it with the loss of each step.

    Args:
        trainer: whose loop it is.
        strategy: its strategy.
        min_steps, max_steps: as Lightning counts them.
        total_steps: global batches, after which the job is done. Lightning counts what each optimizer does.
    """

    _counts_steps = False
    _results: Results

    def __init__(
        self, trainer: Trainer, strategy: BaseStrategy, min_steps: int | None, max_steps: int, total_steps: int
    ) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._strategy, self._total_steps = strategy, total_steps
        self._results = Results(strategy, training=True)

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing."""

    @property
    def done(self) -> bool:
        """Whether the job, or the epoch, is through; the evaluation of a step has been run by the time that it is asked.

        A job that a callback ends, as Lightning's `Timer` does, ends with the step that is under way.
        """
        if self._strategy.step >= self._total_steps:
            return True
        is_in_step = self._strategy.whole_step.is_under_way and not self._is_training_done
        return not is_in_step and super().done

    @property
    def batch_idx(self) -> int:
        """The place of a micro-batch in its epoch; while schedules are asked, that of its optimizer step.

        A schedule's ``frequency`` is one of optimizer steps. Lightning counts micro-batches for it, so that it would depend on
        accumulation.
        """
        place: int = super().batch_idx
        return place // self.trainer.accumulate_grad_batches if self._counts_steps else place

    def run(self, data_fetcher: Any) -> None:
        self._strategy.rows.of_pass = None
        super().run(data_fetcher)
        if self._strategy.step >= self._total_steps:
            self.max_steps = self.global_step  # the end, as Lightning counts it, which the loop of epochs looks for
        # Lightning leaves schedules out at the end of an epoch in which a job was resumed.
        self.trainer.fit_loop._restarting = False
        self._results.close_pass()

    def on_save_checkpoint(self) -> dict[str, Any]:
        """What has been logged of the epoch so far belongs to it wherever the job is resumed."""
        return {**super().on_save_checkpoint(), "logged": self._results.shares()}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        if self.trainer.global_rank == 0:
            self._results.restore(state_dict.get("logged", ()))

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Reduces what `on_train_batch_end` has logged, which schedules by the step may look at."""
        self._close_step()
        super().on_advance_end(data_fetcher)

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        """Reduces what a step has logged first: here for the callbacks that come next, and for schedules by the epoch."""
        if interval == "epoch" and update_plateau_schedulers:
            self._results.close_pass()
        elif not update_plateau_schedulers:
            self._close_step()
        super().update_lr_schedulers(interval, update_plateau_schedulers)
        if interval == "epoch" and update_plateau_schedulers:
            self._strategy.close_epoch()

    def _close_step(self) -> None:
        if not self._should_accumulate():
            self._results.close_step()

    def _update_learning_rates(self, interval: str, update_plateau_schedulers: bool) -> None:
        self._counts_steps = True
        try:
            super()._update_learning_rates(interval, update_plateau_schedulers)
        finally:
            self._counts_steps = False
