"""Weights & Biases, through Lightning's own logger: one run for the job, on rank 0."""

from __future__ import annotations

import importlib.util
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger

from scalekit.errors import DependencyError


def wandb_logger(folder: Path, name: str, config: dict[str, Any], run_id: str | None) -> WandbLogger:
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
    project = os.environ.get("WANDB_PROJECT", "scalekit")
    return WandbLogger(
        project=project, name=name, save_dir=folder, id=run_id, resume="allow", offline=not _has_key(), config=config
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
