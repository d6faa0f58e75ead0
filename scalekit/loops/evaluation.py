"""Lightning's loops over the validation set, and over rows that are tested on."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from scalekit.loops.results import Results
from scalekit.strategies.base import BaseStrategy


@final
class EvaluationLoop(_EvaluationLoop):
    """Lightning's own, in which ranks reduce what was logged when all have run their rows.

    Args:
        trainer: whose loop it is.
        strategy: its strategy.
        function: what the trainer is asked for: to fit, to validate or to test.
    """

    _results: Results

    def __init__(self, trainer: Trainer, strategy: BaseStrategy, function: TrainerFn = TrainerFn.FITTING) -> None:
        stage = RunningStage.TESTING if function == TrainerFn.TESTING else RunningStage.VALIDATING
        super().__init__(trainer, function, stage, verbose=False, inference_mode=False)
        self._step = f"{'test' if stage == RunningStage.TESTING else 'validation'}_step"
        self._strategy, self._results = strategy, Results(strategy, training=False)

    def run(self) -> list[Any]:
        before, self._strategy.rows.of_pass = self._strategy.rows.of_pass, None
        try:
            found: list[Any] = super().run()
        finally:
            self._strategy.rows.of_pass = before
        return found

    def _evaluation_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        """Lightning's own; where this rank has no rows left, what the others' collectives need, of which no hook hears."""
        trainer = self.trainer
        if self._strategy.rows.next_count:
            super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        for count in (self.batch_progress.increment_ready, self.batch_progress.increment_started):
            count()
        run_without_rows(self, self._step, batch, batch_idx, dataloader_idx)
        for count in (self.batch_progress.increment_processed, self.batch_progress.increment_completed):
            count()
        self._has_run = self._has_run or not trainer.sanity_checking

    def _store_dataloader_outputs(self) -> None:
        self._results.close_pass()
        super()._store_dataloader_outputs()

    def _on_evaluation_epoch_end(self) -> None:
        super()._on_evaluation_epoch_end()
        self._results.close_pass()  # of what the hooks have logged
        self.trainer._logger_connector.on_epoch_end()


def run_without_rows(loop: Any, step: str, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
    """Runs a step as Lightning's loops do, of which no hook hears: for the collectives of the ranks that have rows.

    Args:
        loop: of an evaluation or of predictions.
        step: the name of the module's step.
        batch, batch_idx, dataloader_idx: as the loop has them.
    """
    trainer = loop.trainer
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    batch = call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=dataloader_idx)
    arguments = loop._build_step_args_from_hook_kwargs(loop._build_kwargs(batch, batch_idx, None), step)
    call._call_strategy_hook(trainer, step, *arguments)
