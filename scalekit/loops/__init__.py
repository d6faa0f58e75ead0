"""Lightning's loops, with what whole global batches and several ranks ask of them: counts, ends, and what is logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from scalekit.distributed.world import World
from scalekit.loops.data_module import AttachedData
from scalekit.loops.evaluation import EvaluationLoop
from scalekit.loops.prediction import PredictionLoop
from scalekit.loops.signal_connector import SignalConnector
from scalekit.loops.training import EpochLoop
from scalekit.strategies.base import BaseStrategy
from scalekit.utils.log import alarm


class _JobTrainer(Trainer):
    """Lightning's Trainer, which saves nothing where an exception has ended a job of several ranks."""

    def save_checkpoint(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Lightning's own. All ranks save together, and of an exception on one of them the others may know nothing."""
        if self.interrupted and self.world_size > 1:
            alarm(f"{filepath} is not saved: where an exception has ended a job, its ranks no longer save together")
            return
        super().save_checkpoint(filepath, *args, **kwargs)


def make_trainer(
    strategy: BaseStrategy,
    device: str,
    world: World,
    callbacks: Sequence[Callback],
    data: Any = None,
    total_steps: int = 0,
    **options: Any,
) -> Trainer:
    """Lightning's Trainer on a job's processes, with ScaleKit's loops in the place of its own.

    Args:
        strategy: its strategy.
        device: ``"cuda"`` or ``"cpu"``.
        world: the job's processes.
        callbacks: of the user's and ScaleKit's.
        data: where the rows are from: of a LightningDataModule the hooks are run.
        total_steps: global batches, after which training is done.
        options: further ones of Lightning's.
    """
    attached = [AttachedData(data)] if isinstance(data, LightningDataModule) else []
    brought = {
        kind: any(isinstance(each, kind) for each in callbacks) for kind in (Checkpoint, ProgressBar, ModelSummary)
    }
    trainer = _JobTrainer(
        strategy=strategy,
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=world.local_size,
        num_nodes=world.num_nodes,
        plugins=[TorchElasticEnvironment() if world.launched else LightningEnvironment()],
        callbacks=[*attached, *callbacks],
        enable_checkpointing=brought[Checkpoint],
        enable_progress_bar=brought[ProgressBar],
        enable_model_summary=brought[ModelSummary],
        use_distributed_sampler=False,
        **options,
    )
    own = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, strategy, own.min_steps, own.max_steps, total_steps)
    trainer.fit_loop.epoch_loop.val_loop = EvaluationLoop(trainer, strategy)
    trainer.validate_loop = EvaluationLoop(trainer, strategy, TrainerFn.VALIDATING)
    trainer.test_loop = EvaluationLoop(trainer, strategy, TrainerFn.TESTING)
    trainer.predict_loop = PredictionLoop(trainer, strategy)
    trainer._signal_connector = SignalConnector(trainer)
    return trainer
