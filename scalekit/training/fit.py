"""The main job, from top to bottom: settings, data, plan, strategy, trainer, result."""

from __future__ import annotations

import time
from contextlib import ExitStack
from itertools import chain

import lightning.pytorch as pl

from scalekit.callbacks.job_time import JobTime
from scalekit.callbacks.metrics import Metrics, data_warning
from scalekit.checkpoint.load import latest
from scalekit.config.documentation import configured_by
from scalekit.config.settings import Job
from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.preprocessing import cores
from scalekit.distributed.preemption import StopRequest, handle_stop_signals
from scalekit.distributed.process import exit_with_parent
from scalekit.distributed.world import World, all_gather_object, device_type
from scalekit.loggers.factory import finish, loggers_of
from scalekit.loops import lightning_support
from scalekit.strategies.job_context import JobContext
from scalekit.training.checks import check_before_data
from scalekit.training.evaluator import Evaluator
from scalekit.training.prediction_check import compare
from scalekit.training.prepared_job import PreparedJob, prepare_job
from scalekit.training.result import Run, result_line
from scalekit.training.run_directory import begin_run, check_folder, write_data, write_end, write_skipped
from scalekit.training.trainer import build_trainer
from scalekit.utils import byproducts
from scalekit.utils.byproducts import attempt
from scalekit.utils.host_memory import kept_when_freed
from scalekit.utils.log import JobLog, detail, job_log, log, say


@configured_by(Job)
def fit(job: Job) -> Run:
    """Trains a model on a data set, on the processes that torchrun has started, or on one.

    Raises:
        ScaleKitError: see `scalekit.errors`; all but the last two kinds before any training.
    """
    return run(job)


def run(job: Job) -> Run:
    """Runs a job; see `fit`."""
    world = World.from_environment()
    request = StopRequest(looks=world.rank == 0)
    byproducts.begin()
    with handle_stop_signals(request), job_log(world.rank, job.verbose) as logged, ExitStack() as until_end:
        return _run(job, world, request, logged, until_end)


def _run(job: Job, world: World, request: StopRequest, logged: JobLog, until_end: ExitStack) -> Run:
    began, device = time.monotonic(), device_type()
    if job.fast_dev_run:
        job = lightning_support.tried(job)
    if world.launched:
        exit_with_parent()
    if device == "cpu":
        until_end.enter_context(kept_when_freed())
    check_before_data(job, world, device)
    check_folder(job)
    prepared = prepare_job(job, world, device, JobContext(is_asked_to_stop=request.asked), until_end)
    begin_run(prepared.job, prepared.folder, prepared.plan, world, until_end)
    logged.open(prepared.folder.path)
    _announce(prepared)
    loggers = loggers_of(
        prepared.job, prepared.plan, prepared.folder.path, prepared.strategy.job.saved["wandb_run_id"], world
    )
    metrics = Metrics(
        prepared.folder.path, prepared.folder.step, prepared.plan.flops_share, prepared.order.global_batch_size
    )
    job_time = JobTime.predicted(prepared.plan, prepared.folder.step, prepared.evaluations)
    log("time", job_time.describe(prepared.plan.steps_per_epoch))
    pl.seed_everything(job.seed, verbose=False)
    trainer = build_trainer(prepared, metrics, job_time, loggers, request)
    trainer.fit(prepared.module, prepared.training, prepared.validation, ckpt_path=prepared.folder.checkpoint)
    _close(prepared, metrics, trainer)
    for each in loggers:
        finish(each, trainer)
    return _result(prepared, metrics, time.monotonic() - began)


def _announce(prepared: PreparedJob) -> None:
    """Says how the job is run, and writes what its data is."""
    folder, rows = prepared.folder, prepared.rows
    say(str(prepared.plan))
    for each in prepared.plan.details():
        detail(*each)
    log("run", f"{folder.path}" + (f", resumed at step {folder.step}" if folder.step else ""))
    if prepared.has_ended:
        log("ended", f"by a callback at step {folder.step}: nothing is left to do; delete ended.json to resume")
    if isinstance(prepared.training, StreamLoader):
        log("stream", prepared.training.describe())
    if prepared.world.rank == 0:
        with attempt("writing data.json", "It tells of the data, and is not read"):
            write_data(folder.path, rows.summary())
            write_skipped(folder.path, rows.skipped)


def _close(prepared: PreparedJob, metrics: Metrics, trainer: pl.Trainer) -> None:
    """Writes what is known only when a job is done."""
    job, folder, training, world = prepared.job, prepared.folder, prepared.training, prepared.world
    if prepared.strategy.step < prepared.total_steps and world.rank == 0:
        write_end(folder.path, job, prepared.strategy.step)
    if isinstance(training, StreamLoader) and job.on_bad_row == "skip":
        found = dict.fromkeys(chain(prepared.rows.skipped, *all_gather_object(training.skipped, world)))
        if world.rank == 0:
            with attempt("writing skipped_rows.jsonl", "It tells of the data, and is not read"):
                write_skipped(folder.path, list(found))
    history = metrics.history[folder.step :]
    spare = cores() - world.local_size * (1 + prepared.rows.pipeline.workers)
    for closing in (compare(prepared.plan, history, trainer, folder.path), data_warning(history, spare)):
        if closing is not None:
            say(closing)


def _result(prepared: PreparedJob, metrics: Metrics, seconds: float) -> Run:
    job, rows = prepared.job, prepared.rows
    checkpoint = None if job.fast_dev_run else latest(prepared.folder.checkpoints)
    log("result", result_line(metrics, checkpoint, seconds))
    evaluator = Evaluator(
        job, rows.pipeline, rows.validation, prepared.module, prepared.strategy, prepared.order.micro_batch_size
    )
    return Run(
        prepared.folder.path,
        prepared.plan,
        metrics.history,
        metrics.evaluations,
        checkpoint,
        prepared.module,
        evaluator,
    )
