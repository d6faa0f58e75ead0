"""The loggers of a job: Weights & Biases by name, or the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from scalekit.job import Job
from scalekit.planning.plan import Plan
from scalekit.tracking.wandb import Tracker, check_wandb, wandb_logger


def loggers_of(job: Job, plan: Plan, folder: Path, run_id: str, say: Callable[[str], None]) -> list[Any]:
    """As Lightning takes them.

    Args:
        job: its settings.
        plan: what is done about them.
        folder: the run's.
        run_id: of the run at Weights & Biases, which a resumed job goes on with.
        say: tells the user something.
    """
    loggers: list[Any] = []
    for each in _given(job):
        if each == "wandb":
            config = {"job": job.resolved(), "plan": plan.as_dict()}
            loggers.append(wandb_logger(folder, folder.name, config, run_id, say))
        else:
            loggers.append(each)
    return loggers


def check_loggers(job: Job) -> None:
    """Whether a job can have its loggers.

    Raises:
        DependencyError: wandb is missing.
    """
    if "wandb" in [each for each in _given(job) if isinstance(each, str)]:
        check_wandb()


def _given(job: Job) -> list[Any]:
    if job.logger is None:
        return []
    return list(job.logger) if isinstance(job.logger, (list, tuple)) else [job.logger]


def finish(logger: Any, trainer: Trainer) -> None:
    """Ends a W&B run, which otherwise stays open until the process ends."""
    run = logger if isinstance(logger, Tracker) else logger.experiment
    if trainer.is_global_zero and hasattr(run, "finish"):
        run.finish()
