"""A run's folder: config.yaml, plan.json, metrics.jsonl, checkpoints/. Found again when a job is resumed."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import OnExceptionCheckpoint

from scalekit.checkpoint.format import published, step_of, sweep
from scalekit.checkpoint.load import check, first_few, state
from scalekit.config.documentation import config_yaml
from scalekit.config.settings import Job
from scalekit.distributed.run_lock import claim, holder, is_held_by, join
from scalekit.distributed.world import World, all_gather_object, run_on_rank_zero
from scalekit.errors import CheckpointError, ConfigError
from scalekit.planning.plan import Plan
from scalekit.training.resume_rules import FoundRun, checkpoints_to_resume, folder_of, planned
from scalekit.utils.files import atomic_write_text

_ENDED = "ended.json"


@dataclass(frozen=True)
class RunFolder:
    """Where a run stands, and what it resumes from.

    Attributes:
        path: of the folder.
        checkpoint: to resume from, or None for a new run.
        step: the checkpoint's optimizer step; 0 for a new run.
        state: what ScaleKit kept in the checkpoint beside Lightning's own state.
        plan: how the run was planned before; empty for a new run.
        is_held: whether the folder is this job's alone already; a new one does not exist before `begin`.
    """

    path: Path
    checkpoint: Path | None = None
    step: int = 0
    state: dict[str, Any] | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    is_held: bool = False

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.path / "checkpoints"


def check_folder(job: Job) -> None:
    """Whether a job may run in the folder that it names, as far as its own run tells before data is read; on every rank.

    Raises:
        ScaleKitError: see `open_run`.
    """
    is_decided = job.global_batch_size != "auto"  # else a DataLoader may say
    if job.output_dir and is_decided and not job.fast_dev_run and Path(job.output_dir).exists():
        checkpoints_to_resume(job.resume, FoundRun.read(Path(job.output_dir), job))


def open_run(job: Job, name: str, world: World, until_end: ExitStack, say: Callable[[str], None]) -> RunFolder:
    """Finds the run's folder, and what the job resumes from there; every rank calls it. Nothing is made or changed.

    A job that names its `output_dir` resumes what it finds there. One that does not gets a folder of its own under ``runs/``,
    and resumes an unfinished run of the same job only. Where the newest checkpoint is damaged, it resumes from the one before.
    A folder that is there is this job's alone until `until_end` is closed.

    Raises:
        ConfigError: the folder holds a run, and the job says never to resume; another job is at work in it; or it is not the
            same one on every node.
        CheckpointError: the folder holds another job's run, or no checkpoint that is sound.
    """
    folder, candidates = run_on_rank_zero(lambda: _find(job, name, until_end), world)
    if folder.is_held:
        _join(folder.path, world, until_end)
    checkpoint = _newest_sound(candidates, world, say)
    return run_on_rank_zero(lambda: folder if checkpoint is None else _resumed(folder, checkpoint), world)


def begin_run(job: Job, folder: RunFolder, plan: Plan, world: World, until_end: ExitStack) -> None:
    """Makes the run's folder this job's and writes into it how the job is run; every rank calls it.

    Raises:
        CheckpointError: the job has another number of steps than the one that it resumes, or one of its callbacks has left a
            checkpoint that the job would not resume.
        ConfigError: see `open_run`.
    """
    run_on_rank_zero(lambda: _check_left(job, folder), world)
    run_on_rank_zero(lambda: _check_steps(folder, plan), world)
    if not folder.is_held:
        run_on_rank_zero(lambda: _claim(folder.path, until_end), world)
        _join(folder.path, world, until_end)
    run_on_rank_zero(lambda: _write(job, folder, plan), world)


def _check_left(job: Job, folder: RunFolder) -> None:
    """A new run would be given what the callback left when the last one failed: Lightning restores it by itself."""
    for each in job.callbacks:
        if isinstance(each, OnExceptionCheckpoint) and folder.checkpoint is None and Path(each.ckpt_path).exists():
            raise CheckpointError(
                f"OnExceptionCheckpoint has left {each.ckpt_path}, and this is a new run: resume it by "
                f"resume='{each.ckpt_path}', or delete it"
            )


def _claim(path: Path, until_end: ExitStack) -> None:
    until_end.callback(os.close, claim(path))


def _join(path: Path, world: World, until_end: ExitStack) -> None:
    _expect_one_folder(path, world)
    until_end.callback(os.close, join(path))


def _expect_one_folder(path: Path, world: World) -> None:
    who = run_on_rank_zero(lambda: holder(path), world)
    seen = all_gather_object((is_held_by(path, who), socket.gethostname()), world)
    blind = [f"rank {rank} on {host}" for rank, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise ConfigError(
            f"{path} is not the same folder for all: {first_few(blind)} cannot see what rank 0 on {seen[0][1]} has done in it. "
            "Choose an output_dir on a file system that all nodes share, by its absolute path"
        )


def _newest_sound(candidates: Sequence[Path], world: World, say: Callable[[str], None]) -> Path | None:
    for number, checkpoint in enumerate(candidates):
        try:
            check(checkpoint, world.rank, partial(all_gather_object, world=world), world.size)
        except CheckpointError as error:
            if number + 1 == len(candidates):
                raise
            say(f"WARNING    {error}. The job resumes from {candidates[number + 1]}")
        else:
            return checkpoint
    return None


def _write(job: Job, folder: RunFolder, plan: Plan) -> None:
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    sweep(folder.checkpoints)
    # What stands and is later than the newest sound one is damaged: it must neither be counted nor be resumed from.
    for each in published(folder.checkpoints):
        if (step_of(each) or 0) > folder.step:
            each.rename(_free(each.with_name(f"damaged-{each.name}")))
    (folder.path / "STOP").unlink(missing_ok=True)
    atomic_write_text(folder.path / "config.yaml", config_yaml(job.resolved()), on_disk=True)
    write_plan(folder.path, plan.as_dict())


def _free(path: Path) -> Path:
    """A path that nothing has yet: the same, or with a number."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not each.exists())


def write_plan(path: Path, plan: Mapping[str, Any]) -> None:
    """Writes plan.json at once, since other processes may be reading it."""
    atomic_write_text(path / "plan.json", json.dumps(plan, indent=2) + "\n")


def write_data(path: Path, summary: Mapping[str, Any]) -> None:
    """Writes data.json."""
    atomic_write_text(path / "data.json", json.dumps(summary, indent=2) + "\n")


def write_skipped(path: Path, skipped: Sequence[Any]) -> None:
    """Writes skipped_rows.jsonl, where rows were left out."""
    if skipped:
        lines = (json.dumps({"where": row.where, "why": row.why}) + "\n" for row in skipped)
        atomic_write_text(path / "skipped_rows.jsonl", "".join(lines))


def write_end(path: Path, job: Job, step: int) -> None:
    """Notes that a callback has ended a job before its last step, so that it does not continue when it is started again."""
    atomic_write_text(path / _ENDED, json.dumps({"step": step, "job": job.resolved()}, indent=2) + "\n", on_disk=True)


def is_finished(folder: RunFolder, job: Job) -> bool:
    """Whether a callback has ended this job, just as it is, at the step that it resumes from."""
    try:
        found = json.loads((folder.path / _ENDED).read_text())
    except (OSError, ValueError):
        return False
    if not folder.step or found.get("step") != folder.step:
        return False
    saved, now = found.get("job", {}), job.resolved()
    return all(saved.get(name) == value for name, value in now.items() if name != "checkpoint_every")


def _find(job: Job, name: str, until_end: ExitStack) -> tuple[RunFolder, list[Path]]:
    """The run's folder, and the checkpoints that the job may resume from, the one to take first."""
    path = folder_of(job, name)
    if not path.exists():
        return RunFolder(path), [] if job.resume in ("auto", "never") else [Path(job.resume)]
    _claim(path, until_end)
    return RunFolder(path, is_held=True), checkpoints_to_resume(job.resume, FoundRun.read(path, job))


def _resumed(folder: RunFolder, checkpoint: Path) -> RunFolder:
    found = state(checkpoint)
    kept = found["scalekit"]
    step = int(kept.get("step", found["global_step"]))
    return replace(folder, checkpoint=checkpoint, step=step, state=kept, plan=planned(folder.path))


def _check_steps(folder: RunFolder, plan: Plan) -> None:
    before = plan.total_steps if folder.state is None else folder.state["total_steps"]
    if before != plan.total_steps:
        raise CheckpointError(
            f"{folder.checkpoint} is of a job of {before} steps, on which its schedule depends, and this one has "
            f"{plan.total_steps}: resume with as many, or start from its weights: model='{folder.checkpoint}/model'"
        )
