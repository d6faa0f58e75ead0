"""The loggers of a job: Weights & Biases by name, or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from scalekit.config.settings import Job
from scalekit.distributed.world import World
from scalekit.loggers.wandb import Tracker, check_wandb, wandb_logger
from scalekit.planning.plan import Plan
from scalekit.utils.byproducts import attempt


def loggers_of(job: Job, plan: Plan, folder: Path, run_id: str, world: World) -> list[Any]:
    """As Lightning takes them.

    Args:
        job: its settings.
        plan: what is done about them.
        folder: the run's.
        run_id: of the run at Weights & Biases, which a resumed job continues.
        world: the job's processes, of which rank 0 tracks.

    Raises:
        ConfigError: a mode that W&B has not.
        DependencyError: a package is missing.
    """
    loggers: list[Any] = []
    for each in check_loggers(job):
        if each == "wandb":
            config = {"job": job.resolved(), "plan": plan.as_dict()}
            tracker = wandb_logger(folder, folder.name, config, run_id, world.rank == 0)
            loggers += [tracker] if tracker is not None else []
        else:
            loggers.append(each)
    return loggers


def check_loggers(job: Job) -> list[Any]:
    """The loggers that a job names, before there is anything to tell them.

    Raises:
        ConfigError: a mode that W&B has not.
        DependencyError: a package is missing.
    """
    given = list(job.logger) if isinstance(job.logger, (list, tuple)) else [job.logger]
    if "wandb" in [each for each in given if isinstance(each, str)]:
        check_wandb()
    return [each for each in given if each is not None]


def tell(trainer: Trainer, method: str, *args: Any, **options: Any) -> None:
    """Calls a method of all of a trainer's loggers that have it, on rank 0. One that fails is told again the next time.

    Args:
        trainer: the job's.
        method: such as ``"log_metrics"``.
        args: of the method; `options` too.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if hasattr(logger, method):
            with attempt(f"the logger {type(logger).__name__}", "It is told again with the next numbers"):
                getattr(logger, method)(*args, **options)


def finish(logger: Any, trainer: Trainer) -> None:
    """Ends a W&B run, which otherwise stays open until the process ends."""
    if not trainer.is_global_zero:
        return
    with attempt(f"the logger {type(logger).__name__}", "What it was told before is its own to keep"):
        run: Any = logger if isinstance(logger, Tracker) else getattr(logger, "experiment", None)
        if hasattr(run, "finish"):
            run.finish()
