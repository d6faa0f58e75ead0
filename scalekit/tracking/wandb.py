"""Weights & Biases, through Lightning's own logger: one run for the job, on rank 0."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, final
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

from scalekit.errors import DependencyError


@final
class Tracker(WandbLogger):
    """Lightning's own, whose failure does not end a job: what could not be told is in the run's folder.

    Args:
        say: tells the user something.
        options: Lightning's.
    """

    def __init__(self, say: Callable[[str], None], **options: Any) -> None:
        super().__init__(**options)
        self._say, self._is_lost = say, False

    def log_metrics(self, *args: Any, **options: Any) -> None:
        self._try(super().log_metrics, *args, **options)

    def log_table(self, *args: Any, **options: Any) -> None:
        self._try(super().log_table, *args, **options)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        self._try(super().log_hyperparams, *args, **options)

    def finish(self) -> None:
        """Ends the run, which otherwise stays open until the process ends."""
        self._try(lambda: self.experiment.finish())

    def _try(self, tell: Callable[..., Any], *args: Any, **options: Any) -> None:
        if self._is_lost:
            return
        try:
            tell(*args, **options)
        except Exception as error:
            self._is_lost = True
            self._say(
                f"WARNING    Weights & Biases does not answer any more: {error!r}. The training goes on without; metrics.jsonl "
                "in the run's folder has it all"
            )


def check_wandb() -> None:
    """Whether wandb is installed.

    Raises:
        DependencyError: it is missing.
    """
    if importlib.util.find_spec("wandb") is None:
        raise DependencyError("wandb", "wandb", "logger='wandb'")


def wandb_logger(
    folder: Path, name: str, config: dict[str, Any], run_id: str | None, say: Callable[[str], None]
) -> Tracker:
    """A logger that is offline where there is no key.

    Args:
        folder: the run's folder, where an offline run is kept.
        name: of the run.
        config: what the run's config shows: the resolved job and its plan.
        run_id: of the run that a resumed job goes on with; None for a new one.
        say: tells the user something.

    Raises:
        DependencyError: wandb is missing.
    """
    check_wandb()
    project = os.environ.get("WANDB_PROJECT", "scalekit")
    return Tracker(
        say,
        project=project,
        name=name,
        save_dir=folder,
        id=run_id,
        resume="allow",
        offline=not _has_key(),
        config=config,
    )


def _has_key() -> bool:
    """Whether somebody has logged in: by the environment, or by `wandb login`, which writes a netrc."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
