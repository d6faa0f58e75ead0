"""The Trainer of a job: ScaleKit's callbacks beside the user's, and what Lightning is told of the job."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ProgressBar

from scalekit.callbacks.checkpoints import Checkpoints
from scalekit.callbacks.evaluation import Evaluation
from scalekit.callbacks.generation import GeneratedSamples
from scalekit.callbacks.job_time import JobClock, JobTime
from scalekit.callbacks.metrics import Metrics
from scalekit.callbacks.packing_check import PackingCheck
from scalekit.callbacks.progress import Progress
from scalekit.callbacks.watchdog import Watchdog
from scalekit.config.settings import Job
from scalekit.distributed.preemption import StopRequest
from scalekit.loops import make_trainer
from scalekit.objectives.reduction_check import ReductionCheck
from scalekit.training.prepared_job import PreparedJob

_USUAL_LOG_STEPS = 50


def build_trainer(
    prepared: PreparedJob, metrics: Metrics, job_time: JobTime, loggers: Sequence[Any], request: StopRequest
) -> pl.Trainer:
    """The Trainer that runs a job.

    Args:
        prepared: the job.
        metrics: which write what each step comes to.
        job_time: how long it is expected to take.
        loggers: that are told.
        request: which notes that somebody wants it to stop.
    """
    job, order, folder, plan = prepared.job, prepared.order, prepared.folder, prepared.plan
    is_manual = not prepared.module.automatic_optimization
    return make_trainer(
        prepared.strategy,
        prepared.device,
        prepared.world,
        [*job.callbacks, *_callbacks(prepared, metrics, job_time, request)],
        job.data,
        folder.step if prepared.has_ended else prepared.total_steps,
        accumulate_grad_batches=order.accumulation,
        **_clipping(job),
        log_every_n_steps=_log_every(job, plan.steps_per_epoch or prepared.total_steps),
        max_steps=folder.step if prepared.has_ended and not is_manual else _max_steps(prepared),
        max_epochs=-1 if job.max_epochs is None else math.ceil(job.max_epochs),
        num_sanity_val_steps=-1 if folder.step == 0 else 0,
        **_evaluation(job),
        logger=loggers or False,
        default_root_dir=folder.path,
    )


def _callbacks(prepared: PreparedJob, metrics: Metrics, job_time: JobTime, request: StopRequest) -> list[Callback]:
    """Those of ScaleKit's that the job asks for, in the order in which they run."""
    job, rows, world, folder = prepared.job, prepared.rows, prepared.world, prepared.folder
    evaluations, pipeline = prepared.evaluations, rows.pipeline
    found: list[Callback] = [metrics, Evaluation(evaluations, folder.step)]
    if job.generate:
        found.append(GeneratedSamples(job.generate, pipeline.processor, folder.path, world, folder.step))
    if rows.packed:
        found.append(PackingCheck(pipeline.is_flat))
    if job.loss_couples is None and prepared.module.automatic_optimization:
        splits = prepared.order.micro_batch_size < prepared.order.global_batch_size
        few = rows.few()
        found.append(
            ReductionCheck(few, rows.collate, splits, world, prepared.own_step, keeps_logits=bool(job.metrics))
        )
    if not any(isinstance(each, ProgressBar) for each in job.callbacks):
        found.append(Progress(metrics, prepared.total_steps, folder.step, prepared.plan.loss))
    found.append(JobClock(job_time, metrics, evaluations))
    if job.watchdog_seconds is not None:
        limit = None if isinstance(job.watchdog_seconds, str) else job.watchdog_seconds
        found.append(Watchdog(world, metrics.usual_step_seconds, limit))
    found.append(
        Checkpoints(
            folder.checkpoints,
            prepared.total_steps,
            job.checkpoint_every,
            folder.step,
            prepared.rotation,
            metrics,
            lambda step: rows.validation is not None and evaluations.due(step),
            request,
        )
    )
    return found


def _max_steps(prepared: PreparedJob) -> int:
    """What a module and its callbacks find in their trainer; where the job ends, its loop of epochs says."""
    max_epochs = prepared.job.max_epochs
    is_whole = max_epochs is not None and float(max_epochs).is_integer()
    return -1 if is_whole or not prepared.module.automatic_optimization else prepared.total_steps


def _evaluation(job: Job) -> dict[str, Any]:
    """What callbacks of Lightning's find in their trainer about evaluations; when there is one, `Evaluation` says."""
    if isinstance(job.evaluate_every, int):
        return {"val_check_interval": job.evaluate_every, "check_val_every_n_epoch": None}
    return {"val_check_interval": job.evaluate_every if isinstance(job.evaluate_every, float) else 1.0}


def _log_every(job: Job, steps: int) -> int:
    """Optimizer steps between two at which loggers hear of what a module logs by the step."""
    if isinstance(job.log_every_n_steps, int):
        return job.log_every_n_steps
    return _USUAL_LOG_STEPS if steps >= _USUAL_LOG_STEPS else 1


def _clipping(job: Job) -> dict[str, Any]:
    """A LightningModule's gradients are its own business, unless the job says otherwise."""
    clip = job.gradient_clip
    if isinstance(clip, str):
        clip = None if isinstance(job.model, pl.LightningModule) else 1.0
    return {} if clip is None else {"gradient_clip_val": clip, "gradient_clip_algorithm": job.gradient_clip_algorithm}
