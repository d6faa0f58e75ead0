"""Lightning's loops, with what whole global batches and several ranks ask of them: counts, ends, and what is logged."""

from __future__ import annotations

from lightning.pytorch import Trainer

from scalekit.engines.engine import Engine
from scalekit.loops.evaluation import EvaluationLoop
from scalekit.loops.signals import SignalConnector
from scalekit.loops.training import EpochLoop


def replace_loops(trainer: Trainer, engine: Engine, total_steps: int) -> None:
    """Gives a trainer ScaleKit's loops in the place of its own.

    Args:
        trainer: that has been made, and has not run.
        engine: its strategy.
        total_steps: global batches, after which the job is done.
    """
    own = trainer.fit_loop.epoch_loop
    loop = EpochLoop(trainer, engine, own.min_steps, own.max_steps, total_steps)
    loop.val_loop = EvaluationLoop(trainer, engine)
    trainer.fit_loop.epoch_loop = loop
    trainer._signal_connector = SignalConnector(trainer)
