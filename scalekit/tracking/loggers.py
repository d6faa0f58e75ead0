"""The loggers of a job: Weights & Biases by name, or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from scalekit.errors import ConfigError
from scalekit.job import Job
from scalekit.planning.plan import Plan
from scalekit.tracking.wandb import Tracker, wandb_logger


def loggers_of(job: Job, plan: Plan, folder: Path, run_id: str) -> list[Any]:
    """As Lightning takes them.

    Args:
        job: its settings.
        plan: what is done about them.
        folder: the run's.
        run_id: of the run at Weights & Biases, which a resumed job goes on with.

    Raises:
        ConfigError: an unknown name.
    """
    given = list(job.logger) if isinstance(job.logger, (list, tuple)) else [job.logger]
    loggers: list[Any] = []
    for each in given:
        if each == "wandb":
            config = {"job": job.resolved(), "plan": plan.as_dict()}
            loggers.append(wandb_logger(folder, folder.name, config, run_id))
        elif isinstance(each, str):
            raise ConfigError(f"logger={each!r} is unknown; give 'wandb', or a Lightning logger")
        elif each:
            loggers.append(each)
    return loggers


def finish(logger: Any, trainer: Trainer) -> None:
    """Ends a W&B run, which otherwise stays open until the process ends."""
    run = logger if isinstance(logger, Tracker) else logger.experiment
    if trainer.is_global_zero and hasattr(run, "finish"):
        run.finish()
