"""Lightning's loop over rows that are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

from lightning.pytorch import Trainer
from lightning.pytorch.loops.prediction_loop import _PredictionLoop

from scalekit.loops.evaluation import run_without_rows
from scalekit.strategies.base import BaseStrategy


@final
class PredictionLoop(_PredictionLoop):
    """Lightning's own, in which each row is predicted once, and callbacks hear the places of a batch's rows.

    Args:
        trainer: whose loop it is.
        strategy: its strategy.
    """

    def __init__(self, trainer: Trainer, strategy: BaseStrategy) -> None:
        super().__init__(trainer, inference_mode=False)
        self._strategy = strategy

    def _predict_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Iterator[Any] | None
    ) -> None:
        """Lightning's own; where this rank has no rows left, what the others' collectives need, of which no hook hears."""
        if self._strategy.rows.next_count:
            super()._predict_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        run_without_rows(self, "predict_step", batch, batch_idx, dataloader_idx)

    def _get_batch_indices(self, dataloader: object) -> Mapping[int, list[int]]:  # type: ignore[override]
        """The rows' places, for the batch that is run next."""
        return {self.batch_progress.current.ready - 1: list(self._strategy.rows.next_places)}
