"""A run's folder: config.yaml, plan.json, metrics.jsonl, checkpoints/. Found again when a job goes on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from scalekit.checkpoint.layout import published, step_of, sweep
from scalekit.checkpoint.load import check, first_few, latest, state
from scalekit.errors import CheckpointError, ConfigError
from scalekit.files import write_at_once
from scalekit.job import Job
from scalekit.lock import claim, holder, is_held_by, join
from scalekit.planning.plan import Plan
from scalekit.world import World, first, gather


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


def open_run(
    job: Job, name: str, plan: Plan, world: World, held_until_end: ExitStack, say: Callable[[str], None]
) -> RunFolder:
    """Finds or makes the run's folder, and what the job goes on from there; every rank calls it.

    A job that names its `output_dir` goes on with what it finds there. One that does not gets a folder of its own under
    ``runs/``, and goes on with an unfinished run of the same job only. Where the newest checkpoint is damaged, it goes on from
    the one before. The folder is this job's alone until `held_until_end` is closed.

    Raises:
        ConfigError: the folder holds a run, and the job says never to resume; another job is at work in it; or it is not the
            same one on every node.
        CheckpointError: the folder holds another job's run, or no checkpoint that is sound.
    """
    path, candidates = first(lambda: _find(job, name, plan, held_until_end), world)
    _expect_one_folder(path, world)
    held_until_end.callback(os.close, join(path))
    checkpoint = _newest_sound(candidates, world, say)
    return first(lambda: _claim(job, path, checkpoint, plan), world)


def _expect_one_folder(path: Path, world: World) -> None:
    who = first(lambda: holder(path), world)
    seen = gather((is_held_by(path, who), socket.gethostname()), world)
    blind = [f"rank {rank} on {host}" for rank, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise ConfigError(
            f"{path} is not the same folder for all: {first_few(blind)} cannot see what rank 0 on {seen[0][1]} has done in it. "
            "Choose an output_dir on a file system that all nodes share, by its absolute path"
        )


def _newest_sound(candidates: Sequence[Path], world: World, say: Callable[[str], None]) -> Path | None:
    for number, checkpoint in enumerate(candidates):
        try:
            check(checkpoint, world.rank, partial(gather, world=world), world.size)
        except CheckpointError as error:
            if number + 1 == len(candidates):
                raise
            say(f"WARNING    {error}. The job goes on from {candidates[number + 1]}")
        else:
            return checkpoint
    return None


def _claim(job: Job, path: Path, checkpoint: Path | None, plan: Plan) -> RunFolder:
    folder = RunFolder(path) if checkpoint is None else _resume(path, checkpoint, plan)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    sweep(folder.checkpoints)
    # What stands and is later than the newest sound one is damaged: it must neither be counted nor be gone on from.
    for each in published(folder.checkpoints):
        if (step_of(each) or 0) > folder.step:
            each.rename(_free(each.with_name(f"damaged-{each.name}")))
    (path / "STOP").unlink(missing_ok=True)
    write_at_once(folder.path / "config.yaml", yaml.safe_dump(job.resolved(), sort_keys=False), on_disk=True)
    write_plan(folder.path, plan.as_dict())
    return folder


def _free(path: Path) -> Path:
    """A path that nothing has yet: the same, or with a number."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not each.exists())


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


def _find(job: Job, name: str, plan: Plan, held_until_end: ExitStack) -> tuple[Path, list[Path]]:
    """The run's folder, and the checkpoints that the job may go on from, the one to take first."""
    path = Path(job.output_dir) if job.output_dir else _own_folder(job, Path("runs"), name, plan)
    held_until_end.callback(os.close, claim(path))
    standing = published(path / "checkpoints")
    if job.resume not in ("auto", "never"):
        chosen = Path(job.resume)
        later = [each for each in standing if (step_of(each) or 0) > (step_of(chosen) or 0)]
        if later and _has_begun_with(job, path):
            return path, [*later[::-1], chosen]
        if later:
            raise ConfigError(f"{path} holds later checkpoints than {chosen}: choose another output_dir")
        return path, [chosen]
    if standing and job.resume == "never":
        raise ConfigError(f"{path} holds a run with checkpoints, and resume='never': choose another output_dir")
    differing = _differences(job, path) if standing else []
    if differing:
        raise CheckpointError(
            f"{path} holds the run of another job: its config.yaml differs in {', '.join(differing)}. "
            "Choose another output_dir"
        )
    return path, standing[::-1]


def _own_folder(job: Job, parent: Path, name: str, plan: Plan) -> Path:
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        newest = latest(path / "checkpoints")
        if not path.exists():
            return path
        unfinished = newest is not None and (step_of(newest) or 0) < plan.total_steps
        if unfinished and not _differences(job, path) and (job.resume == "auto" or _has_begun_with(job, path)):
            return path
        number += 1


def _resume(path: Path, checkpoint: Path, plan: Plan) -> RunFolder:
    found = state(checkpoint)
    step, kept = int(found["global_step"]), found["scalekit"]
    if kept["total_steps"] != plan.total_steps:
        raise CheckpointError(
            f"{checkpoint} is of a job of {kept['total_steps']} steps, on which its schedule depends, and this one has "
            f"{plan.total_steps}: go on with as many, or start from its weights: model={str(checkpoint / 'model')!r}"
        )
    return RunFolder(path, checkpoint, step, kept)


def _differences(job: Job, path: Path) -> list[str]:
    """The settings in which a folder's run is another job's; all of them where it does not say."""
    return job.differences(_saved(path))


def _has_begun_with(job: Job, path: Path) -> bool:
    """Whether a folder's run is this very job, begun with the checkpoint of another run that it names."""
    is_elsewhere = Path(job.resume).absolute().parent != (path / "checkpoints").absolute()
    return is_elsewhere and _saved(path).get("resume") == job.resume and not _differences(job, path)


def _saved(path: Path) -> dict[str, Any]:
    """The settings of a folder's run; none where it does not say."""
    try:
        return yaml.safe_load((path / "config.yaml").read_text()) or {}
    except (OSError, yaml.YAMLError):
        return {}
