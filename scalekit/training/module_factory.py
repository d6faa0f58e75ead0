"""The LightningModule that a job trains: the user's own, or their model within ScaleKit's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from torch import nn

from scalekit.config.settings import Job
from scalekit.data.pipeline import DataPipeline
from scalekit.distributed.world import World
from scalekit.models.activation_checkpointing import recompute_blocks
from scalekit.models.resolve import Model
from scalekit.models.tasks import TASKS
from scalekit.objectives.counts import Counted, ItemCount, Samples
from scalekit.objectives.coupled_loss import CoupledLoss
from scalekit.objectives.function_loss import FunctionLoss
from scalekit.objectives.lightning_step import OwnStep
from scalekit.objectives.objective import Objective
from scalekit.optim.optimizers import build_schedule
from scalekit.strategies.base import BaseStrategy
from scalekit.training.scale_module import OptimizerSettings, ScaleModule


def objective_of(job: Job, shifted: bool = False, own_rows: Callable[[], int] | None = None) -> Objective | None:
    """What the job's loss makes of a model's outputs; None where it is the model's own.

    Args:
        job: with its loss.
        shifted: see `FunctionLoss`.
        own_rows: see `CoupledLoss`.
    """
    if job.loss is None:
        return None
    if job.loss_couples is not None:
        return CoupledLoss(job.loss, own_rows)
    return FunctionLoss(job.loss, None if job.item_count is None else Counted(job.item_count), shifted)


def module_of(
    job: Job, model: Model | None, pipeline: DataPipeline, world: World, total_steps: int, recompute: str
) -> pl.LightningModule:
    """The module that is trained.

    Args:
        job: its settings.
        model: the job's, with its head; None for a LightningModule.
        pipeline: of its rows.
        world: its processes.
        total_steps: optimizer steps of the whole job.
        recompute: what of its blocks is computed again in the backward pass.

    Raises:
        ConfigError: a schedule that cannot be.
    """
    if model is None:
        given: Any = job.model
        own: pl.LightningModule = given
        if recompute != "none":
            recompute_blocks(own, recompute)
        return own
    source = model.source

    def seeded() -> nn.Module:
        pl.seed_everything(job.seed, verbose=False)
        return source if isinstance(source, nn.Module) else source()

    def own_rows() -> int:
        strategy: Any = module.trainer.strategy
        running: BaseStrategy = strategy
        return running.rows.own

    build_schedule(job.lr_schedule, job.warmup_steps, total_steps)  # which is refused before the run has a folder
    module = ScaleModule(
        source if isinstance(source, nn.Module) else seeded,
        objective_of(job, pipeline.is_shifted, own_rows if world.size > 1 else None),
        OptimizerSettings(
            job.optimizer,
            job.learning_rate,
            job.lr_schedule,
            job.warmup_steps,
            job.weight_decay,
            job.optimizer_options or {},
        ),
        total_steps,
        job.item_count,
        pipeline.processor,
        recompute,
    )
    return module


def own_step_of(job: Job) -> OwnStep | None:
    """What is measured of a user's own step; None where the module is ScaleKit's."""
    if not isinstance(job.model, pl.LightningModule):
        return None
    return OwnStep(Samples() if job.item_count is None else Counted(job.item_count))


def item_count_of(module: pl.LightningModule, own: OwnStep | None) -> ItemCount:
    """What the loss is a mean over, as far as it is known by now."""
    if isinstance(module, ScaleModule):
        return module.objective.count
    return Samples() if own is None else own.count


def loss_in_words(module: pl.LightningModule, pipeline: DataPipeline) -> str:
    """What the loss is a mean over, for people."""
    if not isinstance(module, ScaleModule):
        return "samples, by its own training_step"
    if pipeline.task is not None and TASKS[pipeline.task].is_language and pipeline.job.loss is None:
        return "label tokens" + (" of completions" if pipeline.job.loss_on == "completions" else "")
    return module.describe_loss()


def parameters_of(module: pl.LightningModule) -> tuple[int, int] | None:
    """Elements of all parameters and of the trained ones; None where they are not built yet."""
    found = list(module.parameters())
    return (sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)) if found else None
