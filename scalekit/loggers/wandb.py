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
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from scalekit.errors import ConfigError, DependencyError, PreemptedError
from scalekit.utils.byproducts import in_a_line
from scalekit.utils.log import log, warn
from scalekit.utils.log_handlers import WANDB

_START_SECONDS = 7
"""How long W&B may take to answer at the start. Going on without it takes a second more."""

_END_SECONDS = 120
"""How long it may take at the end to fetch what it has not got yet, which is in the run's folder."""

_MODES = ("online", "run", "shared", "offline", "dryrun", "disabled")


@final
class Tracker(WandbLogger):
    """Lightning's own, whose failure does not end a job: what could not be told is in the run's folder.

    Where W&B does not answer at the start or refuses the key, the run is kept in the folder, for `wandb sync` to send.

    Args:
        mode: W&B's own name for how it runs: ``"online"``, ``"offline"``, ...
        options: Lightning's.
    """

    def __init__(self, mode: str, **options: Any) -> None:
        super().__init__(mode=mode, **options)
        self._mode, self._is_lost = mode, False

    @property
    def sync_folder(self) -> Path | None:
        """Of a run that is offline, and that `wandb sync` takes; None of others."""
        run: Any = self._experiment
        is_offline = run is not None and not self._is_lost and self._wandb_init["mode"] in ("offline", "dryrun")
        return Path(run.settings.sync_dir) if is_offline else None

    @property
    def experiment(self) -> Any:
        """W&B's run, which begins when it is first asked for; one that does nothing on other ranks, and where W&B is lost."""
        if self._experiment is None:
            self._try(self._begin)
        return DummyLogger().experiment if self._is_lost else super().experiment

    def _begin(self) -> None:
        _speak_through_log()
        if self._mode in ("offline", "dryrun"):
            self._wandb_init["settings"] = dict(_QUIET)
            _ = super().experiment
            return
        # Its reports of its own errors would go to the server that does not answer, and hold up the end of the job.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._wandb_init["settings"] = _settings()
        try:
            run = self._begin_in_silence()
        except PreemptedError:
            raise
        except Exception as error:
            self._begin_offline(error)
        else:
            log("wandb", str(run.url))

    def _begin_offline(self, why: Exception) -> None:
        import wandb

        wandb.teardown()  # it holds the id of the run that has failed
        self._wandb_init["mode"] = "offline"
        run = self._begin_in_silence()
        warn(
            f"Weights & Biases takes no run at {_address()}: {in_a_line(why)}. The training continues, and is tracked "
            f"offline: `wandb sync {Path(run.dir).parent}` sends it later"
        )

    def _begin_in_silence(self) -> Any:
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        return super().experiment

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
        except PreemptedError:
            raise
        except Exception as error:
            self._is_lost = True
            warn(
                f"Weights & Biases does not answer any more: {in_a_line(error)}. The training continues without; "
                "metrics.jsonl in the run's folder has it all"
            )


def wandb_logger(
    folder: Path, name: str, config: dict[str, Any], run_id: str | None, is_rank_zero: bool
) -> Tracker | None:
    """A logger whose run has begun, offline where there is no key; None where W&B is disabled.

    Args:
        folder: the run's folder, where an offline run is kept.
        name: of the run.
        config: what the run's config shows: the resolved job and its plan.
        run_id: of the run that a resumed job continues; None for a new one.
        is_rank_zero: whether it is this process that tracks. Lightning does not know before there is a Trainer.

    Raises:
        DependencyError: wandb is missing.
        ConfigError: W&B has no such mode.
    """
    mode = check_wandb()
    if mode == "disabled":
        return None
    project = os.environ.get("WANDB_PROJECT", "scalekit")
    tracker = Tracker(mode, project=project, name=name, save_dir=folder, id=run_id, resume="allow", config=config)
    if is_rank_zero:
        _ = tracker.experiment  # so that it is told at the start, and not after the first step, where the run is
    return tracker


def check_wandb() -> str:
    """How W&B is to run.

    Raises:
        DependencyError: wandb is missing.
        ConfigError: W&B has no such mode.
    """
    if importlib.util.find_spec("wandb") is None:
        raise DependencyError("wandb", "wandb", "logger='wandb'")
    mode = os.environ.get("WANDB_MODE", "online")
    if mode not in _MODES:
        raise ConfigError(f"WANDB_MODE={mode!r} is no mode of W&B's: set one of {', '.join(_MODES)}, or unset it")
    return mode if mode in ("offline", "dryrun", "disabled") or _has_key() else "offline"


def _settings() -> dict[str, Any]:
    """W&B's, with the user's own from the environment; what it says is said in a line."""
    usual = {"init_timeout": _START_SECONDS, "finish_timeout": _END_SECONDS}
    chosen = {name: value for name, value in usual.items() if f"WANDB_{name.upper()}" not in os.environ}
    return {**chosen, "finish_timeout_raises": True, "silent": True}


_QUIET = {"show_info": False, "show_warnings": False}
"""What W&B would print, it gives to a logger."""


@rank_zero_only
def _speak_through_log() -> None:
    """W&B's lines, its closing block too, go where those of other libraries go."""
    import wandb

    wandb.setup()
    wandb.termsetup(wandb.Settings(**_QUIET), logging.getLogger(WANDB))


def _has_key() -> bool:
    """Whether somebody has logged in: by the environment, or by `wandb login`, which writes a netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(urlparse(_address()).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _address() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
