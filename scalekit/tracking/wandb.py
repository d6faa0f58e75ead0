"""Weights & Biases, through Lightning's own logger: one run for the job, on rank 0."""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, final
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from scalekit.errors import DependencyError
from scalekit.log import WANDB, warn


@final
class Tracker(WandbLogger):
    """Lightning's own, whose failure does not end a job: what could not be told is in the run's folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._is_lost = False

    @property
    def sync_folder(self) -> Path | None:
        """Of a run that is offline, and that `wandb sync` takes; None of others."""
        run = self._experiment
        return Path(run.settings.sync_dir) if run is not None and not self._is_lost and self._offline else None

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
            warn(
                f"Weights & Biases does not answer any more: {error!r}. The training goes on without; metrics.jsonl "
                "in the run's folder has it all"
            )


def wandb_logger(folder: Path, name: str, config: dict[str, Any], run_id: str | None) -> Tracker:
    """A logger that is offline where there is no key.

    Args:
        folder: the run's folder, where an offline run is kept.
        name: of the run.
        config: what the run's config shows: the resolved job and its plan.
        run_id: of the run that a resumed job goes on with; None for a new one.

    Raises:
        DependencyError: wandb is missing.
    """
    if importlib.util.find_spec("wandb") is None:
        raise DependencyError("wandb", "wandb", "logger='wandb'")
    is_offline = not _has_key()
    _speak_through_log()
    return Tracker(
        project=os.environ.get("WANDB_PROJECT", "scalekit"),
        name=name,
        save_dir=folder,
        id=run_id,
        resume="allow",
        offline=is_offline,
        config=config,
        settings=_SETTINGS,
        **({"mode": "offline"} if is_offline else {}),
    )


_SETTINGS = {"show_info": False, "show_warnings": False}
"""What W&B would print, it gives to a logger."""


@rank_zero_only
def _speak_through_log() -> None:
    """W&B's lines, its closing block too, go where those of other libraries go."""
    import wandb

    wandb.setup()
    wandb.termsetup(wandb.Settings(**_SETTINGS), logging.getLogger(WANDB))


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
