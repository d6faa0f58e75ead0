"""In which folder a job runs, and from which checkpoint it resumes there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from scalekit.checkpoint.format import published, step_of
from scalekit.config.settings import Job
from scalekit.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class FoundRun:
    """What a folder says of the run in it, for a job that may resume it.

    Attributes:
        path: of the folder.
        checkpoints: that are complete, the oldest first.
        differing: settings in which a run with checkpoints is another job's; all of them where the folder does not say.
        begun_with: the run's own `resume`: the checkpoint of another run, ``"auto"`` or ``"never"``.
        total_steps: of the run, by its plan; 0 where the folder does not say.
    """

    path: Path
    checkpoints: tuple[Path, ...] = ()
    differing: tuple[str, ...] = ()
    begun_with: str = "auto"
    total_steps: int = 0

    @classmethod
    def read(cls, path: Path, job: Job) -> FoundRun:
        """Reads a folder that is there."""
        saved, checkpoints = _saved(path), tuple(published(path / "checkpoints"))
        return cls(
            path,
            checkpoints,
            tuple(job.differences(saved)) if checkpoints else (),
            str(saved.get("resume", "auto")),
            int(planned(path).get("total_steps") or 0),
        )

    @property
    def newest_step(self) -> int | None:
        """Of the newest checkpoint; None without any."""
        return step_of(self.checkpoints[-1]) or 0 if self.checkpoints else None

    def began_with(self, checkpoint: Path) -> bool:
        """Whether the run is this very job, begun with a checkpoint of another run that the job names."""
        is_elsewhere = checkpoint.absolute().parent != (self.path / "checkpoints").absolute()
        return is_elsewhere and Path(self.begun_with) == checkpoint and not self.differing


def checkpoints_to_resume(resume: str, run: FoundRun) -> list[Path]:
    """The checkpoints that a job may resume from in a folder that it names, the one to take first; none for a new run.

    Args:
        resume: the setting.
        run: what is in the folder.

    Raises:
        ConfigError: the folder holds a run, and the job says never to resume, or names an older checkpoint.
        CheckpointError: the folder holds another job's run.
    """
    if resume not in ("auto", "never"):
        return _from_checkpoint(Path(resume), run)
    if run.checkpoints and resume == "never":
        raise ConfigError(f"{run.path} holds a run with checkpoints, and resume='never': choose another output_dir")
    if run.checkpoints and run.differing:
        raise CheckpointError(
            f"{run.path} holds the run of another job: its config.yaml differs in {', '.join(run.differing)}. "
            "Choose another output_dir"
        )
    return list(run.checkpoints[::-1])


def _from_checkpoint(named: Path, run: FoundRun) -> list[Path]:
    """A job that was begun with a checkpoint, and is started again, resumes from its own later ones."""
    later = [each for each in run.checkpoints if (step_of(each) or 0) > (step_of(named) or 0)]
    if later and not run.began_with(named):
        raise ConfigError(f"{run.path} holds later checkpoints than {named}: choose another output_dir")
    return [*later[::-1], named]


def continues(resume: str, max_steps: int | None, run: FoundRun) -> bool:
    """Whether a job that names no folder continues the run that is found in one of its name: the same job, unfinished."""
    is_unfinished = run.newest_step is not None and run.newest_step < run.total_steps
    has_as_many = max_steps in (None, run.total_steps)
    is_allowed = resume == "auto" or (resume != "never" and run.began_with(Path(resume)))
    return is_unfinished and has_as_many and not run.differing and is_allowed


def folder_of(job: Job, name: str, parent: Path = Path("runs")) -> Path:
    """The folder that a job names, or the first of its model's name that is free, or whose run it continues."""
    if job.output_dir:
        return Path(job.output_dir)
    for number in count(1):
        path = parent / (name if number == 1 else f"{name}-{number}")
        if not path.exists() or continues(job.resume, job.max_steps, FoundRun.read(path, job)):
            break
    return path


def planned(path: Path) -> dict[str, Any]:
    """What a run's plan.json says; nothing where it says nothing."""
    try:
        return dict(json.loads((path / "plan.json").read_text()))
    except (OSError, ValueError):
        return {}


def _saved(path: Path) -> Mapping[str, Any]:
    """The settings of a folder's run; none where it does not say."""
    try:
        found = yaml.safe_load((path / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
