"""What of Lightning's callbacks and hooks cannot be had, or not under every strategy: refused by name, with the way out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback, LightningModule, callbacks
from lightning.pytorch.utilities.model_helpers import is_overridden

from scalekit.config.settings import TRIAL, Job
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import ConfigError

_ANYWHERE: dict[type[Any], str] = {
    callbacks.GradientAccumulationScheduler: (
        "changes how many samples a step has, and here that is global_batch_size throughout: leave it out"
    ),
    callbacks.BatchSizeFinder: "tries batches out by training: leave it out, micro_batch_size='auto' is found beforehand",
    callbacks.LearningRateFinder: (
        "tries learning rates out by training, and its steps would be the job's: run it with Lightning's own Trainer first"
    ),
    callbacks.ModelPruning: (
        "puts other parameters in the place of the model's, which checkpoints would not open: prune the trained model"
    ),
}
"""Callbacks that no strategy has, and what to do instead."""

_SEE_GRADIENTS = ("on_after_backward", "on_before_optimizer_step")
"""Hooks in which people read or change gradients."""

_REMOVED = {
    "training_epoch_end": "on_train_epoch_end",
    "validation_epoch_end": "on_validation_epoch_end",
    "test_epoch_end": "on_test_epoch_end",
}
"""Hooks of Lightning 1, and those in their place."""

_NEEDS_LOGGER = (callbacks.LearningRateMonitor, callbacks.DeviceStatsMonitor, callbacks.ThroughputMonitor)

_WHOLE_WEIGHTS = (callbacks.StochasticWeightAveraging, callbacks.WeightAveraging)
"""Callbacks that copy the weights, of which a rank must have all."""


def check_anywhere(job: Job) -> None:
    """Whether a job's module and callbacks can be had at all.

    Raises:
        ConfigError: one cannot.
    """
    if isinstance(job.model, LightningModule):
        _check_module(job.model)
        if not job.model.automatic_optimization and isinstance(job.gradient_clip, float):
            raise ConfigError(
                f"gradient_clip={job.gradient_clip}: {type(job.model).__name__} steps its optimizers by itself, and so clips "
                "by itself: leave gradient_clip out, and call self.clip_gradients in its step"
            )
    for callback in job.callbacks:
        for kind, why in _ANYWHERE.items():
            if isinstance(callback, kind):
                raise ConfigError(f"the callback {type(callback).__name__} {why}")
        if isinstance(callback, _NEEDS_LOGGER) and not job.logger:
            raise ConfigError(
                f"the callback {type(callback).__name__} writes to a logger, and there is none: give `logger`, or leave it "
                "out; metrics.jsonl has the learning rate, time and memory of each step"
            )


def check_accumulated(job: Job, micro_batches: int) -> None:
    """Whether a job's callbacks save between steps alone.

    Args:
        micro_batches: of a step.

    Raises:
        ConfigError: one would save in the middle of a step.
    """
    for callback in job.callbacks:
        if micro_batches > 1 and isinstance(callback, callbacks.ModelCheckpoint) and callback._train_time_interval:
            raise ConfigError(
                f"the callback {type(callback).__name__} saves by train_time_interval, also in the middle of a step's "
                f"{micro_batches} micro-batches, which could not be resumed: leave it out, checkpoint_every='auto' saves by "
                "time, between steps"
            )


def _check_module(module: LightningModule) -> None:
    """Whether Lightning would run a module, and its batches are what its steps are given.

    Raises:
        ConfigError: it is written for an older Lightning, lacks what training needs, or takes batches by itself.
    """
    name = type(module).__name__
    for needed in ("training_step", "configure_optimizers"):
        if not is_overridden(needed, module):
            raise ConfigError(f"{name} has no {needed}, without which it cannot be trained: write it")
    for old, new in _REMOVED.items():
        if callable(getattr(module, old, None)):
            raise ConfigError(
                f"{name}.{old} is of Lightning 1, and Lightning 2 never calls it: rename it to {new}, and keep the steps' "
                "outputs in the module"
            )
    if "optimizer_idx" in inspect.signature(module.training_step).parameters:
        raise ConfigError(
            f"{name}.training_step takes optimizer_idx, which is of Lightning 1: set self.automatic_optimization = False, and "
            "step self.optimizers() in training_step"
        )
    for step in ("training_step", "validation_step", "test_step", "predict_step"):
        if is_overridden(step, module) and "dataloader_iter" in inspect.signature(getattr(module, step)).parameters:
            raise ConfigError(
                f"{name}.{step} takes dataloader_iter, so that ScaleKit cannot know which rows a step has: take `batch`"
            )


_RECORDS = (callbacks.Checkpoint, callbacks.EarlyStopping, *_NEEDS_LOGGER)
"""Callbacks that a trial leaves out."""


def tried(job: Job) -> Job:
    """A job's trial of a few steps: see `fast_dev_run`."""
    steps = int(job.fast_dev_run)
    return replace(
        job,
        max_steps=steps,
        max_epochs=None,
        limit_val_batches=None if job.overfit_batches is not None else steps,
        warmup_steps=min(job.warmup_steps, steps - 1),
        callbacks=[each for each in job.callbacks if not isinstance(each, _RECORDS)],
        **TRIAL,
    )


def refusal(job: Job, strategy: StrategyConfig) -> str | None:
    """Why a strategy cannot run what a job brings; None where it can."""
    return next(_refusals(job, strategy), None)


def _refusals(job: Job, strategy: StrategyConfig) -> Iterator[str]:
    is_deepspeed = strategy.engine == "deepspeed"
    for callback in job.callbacks:
        name = f"the callback {type(callback).__name__}"
        if isinstance(callback, _WHOLE_WEIGHTS) and strategy.engine not in ("single", "ddp"):
            yield (
                f"{name} copies weights, of which {strategy.name} leaves no rank all: take ddp, or `ema_decay`, which "
                "averages under every strategy"
            )
        if isinstance(callback, callbacks.BaseFinetuning) and is_deepspeed:
            yield (
                f"{name} gives the optimizer more parameters while it trains, which DeepSpeed cannot take: take ddp or fsdp2"
            )
    for owner in (job.model, *job.callbacks):
        hook = next((each for each in _SEE_GRADIENTS if is_deepspeed and _has_own(owner, each)), None)
        if hook is not None:
            yield (
                f"{type(owner).__name__}.{hook} finds no gradients under {strategy.name}: DeepSpeed takes them away as they "
                "come. Take that method out, or take ddp or fsdp2"
            )
    if is_deepspeed and job.gradient_clip_algorithm == "value":
        yield f"gradient_clip_algorithm='value': {strategy.name} clips by the norm alone: take ddp or fsdp2"
    if is_deepspeed and _has_own(job.model, "configure_gradient_clipping"):
        yield (
            f"{type(job.model).__name__}.configure_gradient_clipping has no effect under {strategy.name}: DeepSpeed clips "
            "inside its step, by the norm over all ranks. Take that method out and give `gradient_clip`, or take ddp or fsdp2"
        )


def _has_own(owner: Any, method: str) -> bool:
    """Whether a LightningModule or a callback of the user's has a method in the place of Lightning's."""
    if type(owner).__module__.startswith("lightning."):
        return False
    kinds = [kind for kind in (LightningModule, Callback) if isinstance(owner, kind)]
    return bool(kinds) and is_overridden(method, owner, kinds[0])
