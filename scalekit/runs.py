"""A run's folder: config.yaml, plan.json, metrics.jsonl, checkpoints/. Found again when a job goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scalekit.checkpoint.layout import checkpoint_name, read_tree
from scalekit.checkpoint.load import check, latest
from scalekit.errors import CheckpointError, ConfigError
from scalekit.files import write_at_once
from scalekit.job import Job
from scalekit.planning.plan import Plan


@dataclass(frozen=True)
class RunFolder:
    """Where a run stands, and what it goes on from.

    Attributes:
        path: of the folder.
        checkpoint: to resume from, or None for a new run.
        step: the checkpoint's optimizer step; 0 for a new run.
        state: what ScaleKit kept in the checkpoint beside Lightning's own state.
    """

    path: Path
    checkpoint: Path | None = None
    step: int = 0
    state: dict[str, Any] | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.path / "checkpoints"


def claim(job: Job, name: str, plan: Plan) -> RunFolder:
    """Finds or makes the run's folder; one process does it for all.

    A job that names its `output_dir` goes on with what it finds there. One that does not gets a folder of its own under
    ``runs/``, and goes on with an unfinished run of the same job only.

    Raises:
        ConfigError: the folder holds a run, and the job says never to resume.
        CheckpointError: the folder holds another job's run, or a damaged checkpoint.
    """
    folder = _open(job, name, plan)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(job.resolved(), sort_keys=False))
    write_plan(folder.path, plan.as_dict())
    return folder


def write_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Writes plan.json at once, since other processes may be reading it."""
    write_at_once(path / "plan.json", json.dumps(plan, indent=2) + "\n")


def write_data(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes data.json."""
    write_at_once(path / "data.json", json.dumps(summary, indent=2) + "\n")


def write_skipped(path: Path, skipped: Sequence[Any]) -> None:
    """Writes skipped_rows.jsonl, where rows were left out."""
    if skipped:
        lines = (json.dumps({"where": row.where, "why": row.why}) + "\n" for row in skipped)
        write_at_once(path / "skipped_rows.jsonl", "".join(lines))


def _open(job: Job, name: str, plan: Plan) -> RunFolder:
    path = Path(job.output_dir) if job.output_dir else _own_folder(job, Path("runs"), name, plan)
    if job.resume not in ("auto", "never"):
        return _resume(path, Path(job.resume), plan)
    newest = latest(path / "checkpoints")
    if newest is None:
        return RunFolder(path)
    if job.resume == "never":
        raise ConfigError(f"{path} holds a run with checkpoints, and resume='never': choose another output_dir")
    differing = _differences(job, path)
    if differing:
        raise CheckpointError(
            f"{path} holds the run of another job: its config.yaml differs in {', '.join(differing)}. "
            "Choose another output_dir"
        )
    return _resume(path, newest, plan)


def _own_folder(job: Job, parent: Path, name: str, plan: Plan) -> Path:
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        newest = latest(path / "checkpoints")
        if not path.exists():
            return path
        unfinished = newest is not None and newest.name < f"step-{plan.total_steps:08d}"
        if unfinished and job.resume == "auto" and not _differences(job, path):
            return path
        number += 1


def _resume(path: Path, checkpoint: Path, plan: Plan) -> RunFolder:
    check(checkpoint)
    state = read_tree(checkpoint / "state")
    step, kept = int(state["global_step"]), state["scalekit"]
    saved = kept.get("layout", {})
    differing = [f"{k} {saved.get(k)} (now {v})" for k, v in plan.layout().items() if saved.get(k) != v]
    if differing:
        raise CheckpointError(
            f"{checkpoint} was saved under {', '.join(differing)}: resume under the same, or start from its weights: "
            f"model={str(checkpoint / 'model')!r}"
        )
    newest = latest(path / "checkpoints")
    if newest is not None and newest.name > checkpoint_name(step):
        raise ConfigError(f"{path} holds later checkpoints than {checkpoint}: choose another output_dir")
    return RunFolder(path, checkpoint, step, kept)


def _differences(job: Job, path: Path) -> list[str]:
    """The settings in which a folder's run is another job's; all of them where it does not say."""
    try:
        saved = yaml.safe_load((path / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        saved = {}
    return job.differences(saved or {})
