"""The main job, from top to bottom: settings, data, plan, engine, loop, checkpoint."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from torch import nn

from scalekit import dtypes, engines, models, runs
from scalekit.checkpoint.callback import Checkpoints
from scalekit.checkpoint.load import latest
from scalekit.checkpoint.rotation import Rotation
from scalekit.data import sources
from scalekit.data.encoders.labels import Classes
from scalekit.data.lanes import Lanes
from scalekit.data.loaders import order_of, training_loader, validation_loader, validation_samples
from scalekit.data.loaders import total_steps as steps_of
from scalekit.data.order import Order
from scalekit.data.preparation import cores
from scalekit.data.rows import Rows
from scalekit.data.stream import StreamLoader
from scalekit.decision import Decision, decide
from scalekit.engines.engine import Engine
from scalekit.errors import BatchSizeError, ConfigError, DataError, shown
from scalekit.evaluator import Evaluator
from scalekit.hardware import slow_precision_warning
from scalekit.host_memory import kept_when_freed
from scalekit.job import Job
from scalekit.leaks import LeakCheck
from scalekit.lock import end_with_parent
from scalekit.log import JobLog, detail, duration, job_log, log, say, warn
from scalekit.loops import make_trainer, support
from scalekit.module import OptimizerSettings, ScaleModule
from scalekit.objectives import counts
from scalekit.objectives.counts import Counted, ItemCount
from scalekit.objectives.coupled import CoupledLoss
from scalekit.objectives.measured import ReductionCheck
from scalekit.objectives.objective import FunctionLoss, LossFunction, Objective
from scalekit.objectives.own_step import OwnStep
from scalekit.optim import build_schedule, check_optimizer
from scalekit.planning.plan import Plan
from scalekit.preemption import StopRequest, answered_by
from scalekit.probe import settle
from scalekit.recompute import recompute_blocks
from scalekit.scores import LANGUAGE, Scores, metrics_of
from scalekit.strategies import Strategy
from scalekit.tracking import byproducts
from scalekit.tracking.byproducts import attempt
from scalekit.tracking.comparison import compare
from scalekit.tracking.evaluation import Evaluation, EvaluationSteps
from scalekit.tracking.job_time import JobClock, JobTime
from scalekit.tracking.loggers import check_loggers, finish, loggers_of
from scalekit.tracking.metrics import Metrics, data_warning
from scalekit.tracking.progress import Progress
from scalekit.tracking.samples import Samples, check_samples
from scalekit.tracking.watchdog import Watchdog
from scalekit.vocabulary import with_embedding
from scalekit.world import World, connect, device_type, first, gather

_USUAL_LOG_STEPS = 50


@dataclass(frozen=True)
class Run:
    """What a job came to.

    Attributes:
        folder: of the run: config.yaml, plan.json, metrics.jsonl, checkpoints/.
        plan: how it ran.
        history: one mapping an optimizer step, as in metrics.jsonl.
        evaluations: one mapping an evaluation: step, loss, items.
        checkpoint: the newest; its ``model/`` is what `from_pretrained` opens. None of a `fast_dev_run`.
        module: the LightningModule as trained; under a sharded strategy its parameters are this rank's parts.
    """

    folder: Path
    plan: Plan
    history: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    checkpoint: Path | None
    module: pl.LightningModule
    _evaluator: Evaluator

    @property
    def model(self) -> nn.Module:
        """The trained model, without what ScaleKit put around it."""
        inner = self.module.model if isinstance(self.module, ScaleModule) else self.module
        return inner if inner is not None else self.module

    def validate(self, data: Any = None) -> dict[str, Any]:
        """Loss, scores and what the module logs, over rows that are not trained on; every rank calls it, and each has all.

        Args:
            data: as of `fit`, with labels; of a LightningDataModule the `val_dataloader`. By default the rows that the job has
                held out.

        Raises:
            ScaleKitError: rows that cannot be used, or a module without `validation_step`.
        """
        return self._evaluator.score("validate", data)

    def test(self, data: Any) -> dict[str, Any]:
        """The same, by the module's `test_step`; of a LightningDataModule the `test_dataloader`."""
        return self._evaluator.score("test", data)

    def predict(self, data: Any) -> list[Any]:
        """What the module's `predict_step` gives for each row, in the order of `data`; every rank calls it, and each has all.

        Of a model that is no LightningModule it is what the model gives, and of a Hugging Face model the logits. Tensors are on
        the CPU.

        Args:
            data: as of `fit`; of a LightningDataModule the `predict_dataloader`.

        Raises:
            ScaleKitError: rows that cannot be used, or a prediction that has no entry for each row.
        """
        return self._evaluator.predict(data)


def fit(
    model: Any,
    data: Any = None,
    task: str | None = None,
    *,
    loss: LossFunction | None = None,
    item_count: Callable[[Any], float] | None = None,
    loss_couples: str | None = None,
    validation: Any = None,
    processor: Any = None,
    new_tokens: Sequence[str] | None = None,
    sequence_length: int | None = None,
    loss_on: str = "all",
    packing: bool | str = "auto",
    transform: Callable[[Any], Any] | None = None,
    validation_transform: Callable[[Any], Any] | None = None,
    sampling_rate: int | None = None,
    shuffle_rows: int = 1000,
    on_bad_row: str = "refuse",
    metrics: Mapping[str, Any] | None = None,
    generate: Mapping[str, Any] | None = None,
    strategy: str = "auto",
    precision: str = "auto",
    global_batch_size: int | str = "auto",
    micro_batch_size: int | str = "auto",
    activation_checkpointing: bool | str = "auto",
    memory_check: str = "refuse",
    max_steps: int | None = None,
    max_epochs: float | None = None,
    limit_train_batches: int | float | None = None,
    limit_val_batches: int | float | None = None,
    overfit_batches: int | float | None = None,
    fast_dev_run: bool | int = False,
    optimizer: Any = "adamw",
    optimizer_options: Mapping[str, Any] | None = None,
    learning_rate: float = 5e-5,
    schedule: Any = "cosine",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    gradient_clip: float | str | None = "auto",
    gradient_clip_algorithm: str = "norm",
    average_decay: float | None = None,
    seed: int = 0,
    devices: int | str = "auto",
    num_nodes: int | str = "auto",
    workers: int | str = "auto",
    logger: Any = None,
    callbacks: Sequence[pl.Callback] = (),
    output_dir: str | None = None,
    checkpoint_every: int | None = None,
    keep_last: int | None = None,
    keep_every: int | None = None,
    keep_best: str | Mapping[str, str] | None = None,
    evaluate_every: int | float | str | None = "epoch",
    log_every_n_steps: int | str = "auto",
    resume: str = "auto",
    watchdog_seconds: float | str | None = "auto",
    trust_remote_code: bool = False,
    verbose: bool = False,
) -> Run:
    """Trains a model on a data set, on the processes that torchrun started, or on one.

    Args:
        model: an `nn.Module`; a function that builds one; a Hugging Face model, its hub id or folder; or a LightningModule,
            which keeps its own steps, optimizers and callbacks.
        data: a Hugging Face data set, a stream or a dictionary of them; a hub id, a file or folder; a mapping of ``path``,
            ``name``, ``split``, ``revision``, ``streaming``; a `Mixture`; a list of rows; a torch `Dataset` or `DataLoader`; or
            a LightningDataModule. None is for a LightningModule that makes its own loaders. Of a DataLoader its rows, its
            collator, its workers, whether it shuffles and its batch size are taken. What the rows look like decides their task.
        task: which head a hub model gets, one of `names.TaskName`; the one it was saved with by default.
        loss: a `torch.nn` loss, or a function of output and target; by default the model's own.
        item_count: of a batch, what its loss is a mean over; by default that is measured on the first rows, among samples,
            labels, and all else that can be counted in a batch.
        loss_couples: ``"batch"`` for a `loss` that couples the samples of a batch, as contrastive ones do: it is given what the
            model makes of all samples of the global batch, over all ranks, each of which runs its share at once.
        validation: rows held out, the name of their split, or the share of `data` to hold out; they are evaluated before the
            first step, as `evaluate_every` says, and after the last.
        processor: a tokenizer, image processor or feature extractor, or the name of one; the model's own by default.
        new_tokens: texts that become tokens, such as ``["<think>", "</think>"]``: the tokenizer is given them, and the model's
            embedding a row for each token that it lacks, the mean of all others.
        sequence_length: longest row in tokens; longer ones are cut, and counted.
        loss_on: ``"all"`` tokens, or ``"completions"`` alone: what follows a prompt, and what the assistant says.
        packing: whether documents share rows of `sequence_length` tokens, without seeing each other; ``"auto"`` where that
            saves padding and the model can. A sample is then such a row.
        transform: of each training row's image, or wave of shape [samples]; random draws depend on (seed, epoch, row) alone.
        validation_transform: the same for the rows held out.
        sampling_rate: of sounds, in Hz, to which they are resampled.
        shuffle_rows: of each lane of a stream, whose order is shuffled within as many rows at a time.
        on_bad_row: ``"refuse"`` ends a job before it starts whose data has a row that cannot be used; ``"skip"`` leaves such
            rows out, and lists them in the run's folder.
        metrics: what is found on the rows held out beside the loss, by names of yours: torchmetrics' metrics, which take the
            model's outputs and the labels, or ``{"class": "F1Score", "task": "multiclass", ...}``; by default accuracy for
            classes, and perplexity and token accuracy for language models.
        generate: samples that are made with each evaluation: ``prompts`` (texts, or conversations) and ``max_new_tokens``,
            64 by default.
        strategy: a name in ``strategies/``, the path of a strategy file, or ``"auto"``.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed`` or ``"auto"``.
        global_batch_size: samples an optimizer step, over all ranks and accumulation; ``"auto"`` is the batch size of the
            DataLoader that `data` is, or has, and 8 elsewhere.
        micro_batch_size: samples that one rank runs at once.
        activation_checkpointing: whether the model's repeated blocks keep their inputs alone for the backward pass and are
            computed anew there: less memory, about a third more time. The same numbers.
        memory_check: ``"refuse"`` ends a job that is predicted not to fit before it starts, and tries one out for two steps, in
            processes of their own, where the margin is thin; ``"probe"`` always tries it out; ``"warn"`` lets any run.
        max_steps: optimizer steps of the whole job; or
        max_epochs: passes over the data, which need not be whole.
        limit_train_batches: global batches of an epoch that are run, or a share of them below 1; all by default.
        limit_val_batches: the same of an evaluation, in batches of as many rows.
        overfit_batches: both at once, of rows that are not shuffled: the same few again and again.
        fast_dev_run: a trial of so many steps, 1 where it is True, and an evaluation of as many batches before and after them.
            It tells no logger, leaves out callbacks that save or stop, and leaves nothing behind.
        optimizer: ``adamw``, ``adam``, ``sgd``, or a function from parameter groups to a torch optimizer.
        optimizer_options: further arguments of a named optimizer, such as ``{"betas": (0.9, 0.95), "eps": 1e-8}``.
        learning_rate: at the schedule's factor 1.
        schedule: ``constant``, ``linear``, ``cosine``, ``wsd``, or a function of the step's index to a factor.
        warmup_steps: optimizer steps over which the learning rate rises.
        weight_decay: on matrices; biases and norms never decay.
        gradient_clip: the largest global gradient norm; None clips nothing; ``"auto"`` is 1.0, and None for a LightningModule.
        gradient_clip_algorithm: ``"norm"``, or ``"value"``, by which no entry of a gradient is larger than `gradient_clip`.
        average_decay: of an exponential moving average of the weights, such as 0.999, which checkpoints hold as ``average/``;
            none is kept by default.
        seed: of initial weights, order and dropout.
        devices: processes on each node; what torchrun started by default.
        num_nodes: likewise.
        workers: processes that read rows, for each rank.
        logger: None, ``"wandb"``, a Lightning logger, or several.
        callbacks: Lightning callbacks.
        output_dir: the run's folder; a new one under ``runs/`` by default.
        checkpoint_every: optimizer steps between two checkpoints; one is always saved at the end.
        keep_last: how many of the newest checkpoints are kept; all by default.
        keep_every: checkpoints whose step is a multiple of this are kept too.
        keep_best: and the one with the best value of this metric of the rows held out, such as ``"loss"``; of one that a
            LightningModule logs, ``{"metric": "val_accuracy", "mode": "max"}``.
        evaluate_every: ``"epoch"``; a share of an epoch, such as 0.25; optimizer steps between two evaluations; or None, for
            the first and the last alone. A stream has no epochs.
        log_every_n_steps: optimizer steps between two at which loggers are told what a LightningModule logs by the step;
            ``"auto"`` is Lightning's 50, and 1 in epochs that are shorter.
        resume: ``"auto"`` goes on with what `output_dir` holds, ``"never"`` refuses to, a checkpoint's folder is gone on with.
        watchdog_seconds: how long a rank may take over a micro-batch until it is told where every rank is; ``"auto"`` is 20
            steps, and at least a minute; None is for ever.
        trust_remote_code: whether code that comes with a hub model may run.
        verbose: whether the screen shows what other libraries say too; the run's ``log.txt`` always has it.

    Raises:
        ScaleKitError: see `scalekit.errors`; all but the last two kinds before any training.
    """
    return run(Job(**locals()))


def run(job: Job) -> Run:
    """Runs a job; see `fit`."""
    world = World.from_environment()
    request = StopRequest(looks=world.rank == 0)
    byproducts.begin()
    with answered_by(request), job_log(world, job.verbose) as logged, ExitStack() as held_until_end:
        return _run(job, world, request, held_until_end, logged)


def _run(job: Job, world: World, request: StopRequest, held_until_end: ExitStack, logged: JobLog) -> Run:
    began = time.monotonic()
    if job.fast_dev_run:
        job = support.tried(job)
    world.check(job.devices, job.num_nodes)
    _check(job, world)
    if world.launched:
        end_with_parent()
    device = device_type()
    if device == "cpu":
        held_until_end.enter_context(kept_when_freed())
    # What is wrong with a strategy or precision that was named shows before data is read.
    named = dtypes.resolve(job.precision, device) if job.precision != "auto" else "32-true"
    support.check_anywhere(job)
    if job.strategy != "auto":
        named_strategy = Strategy.load(job.strategy)
        if (why := support.refusal(job, named_strategy)) is not None:
            raise ConfigError(why)
        engines.engine(named_strategy, named, device, world)
    # And what would make a job go on for hours. Rank 0 knows alone, so that ranks do not disturb each other's measurement.
    slow = slow_precision_warning(job.precision, device) if world.rank == 0 else None
    if slow is not None:
        warn(slow)

    rows = prepare(job)
    job = rows.way.job
    _check_split(job, world)
    if job.loss_couples is not None or _is_manual(job):
        job = replace(job, micro_batch_size=job.batch // world.size)
    _check_prepared(job, rows)
    for remark in rows.remarks:
        say(remark)
    model = (
        None
        if isinstance(job.model, pl.LightningModule)
        else models.resolve(job.model, job.task or rows.way.task, job.trust_remote_code, rows.way.labels)
    )
    if model is not None and rows.way.tokens is not None:
        model = with_embedding(model, rows.way.tokens)
    connect(world)
    known = model or models.resolve(job.model)
    if known.config is not None:
        rows.way.tell_pad(known.config)
    if job.generate and model is not None:
        check_samples(job.generate, model, rows.way.processor)
    if job.fast_dev_run:
        job = replace(job, output_dir=first(lambda: _passing_folder(held_until_end), world))
    rotation = Rotation.of(job, rows.validation is not None)
    folder = runs.open_run(job, known.name, world, held_until_end, say)
    decision = settle(
        # With the head and the tokens that its rows ask for.
        replace(job, model=known.source, new_tokens=None) if isinstance(job.model, str) or job.new_tokens else job,
        partial(decide, job, known, rows.example, device, world, folder.plan, fill=rows.fill),
        rows.example,
        world,
    )
    engine = engines.engine(decision.strategy, decision.precision, device, world)
    engine.finds_unused = not decision.uses_all
    order = order_of(rows, decision.micro_batch_size, world)
    has_ended = runs.has_ended(folder, job)
    total_steps = steps_of(rows, order)
    module = _module(job, model, rows, total_steps, recompute=decision.activation_checkpointing)
    plan = _plan(
        decision,
        engine,
        device,
        order,
        total_steps,
        module,
        job.model if isinstance(job.model, str) else known.name,
        rows,
    )
    runs.begin(job, folder, plan, world, held_until_end)
    logged.open(folder.path)
    say(str(plan))
    for each in plan.details():
        detail(*each)
    log("run", f"{folder.path}" + (f", resumed at step {folder.step}" if folder.step else ""))
    if has_ended:
        log("ended", f"by a callback at step {folder.step}: nothing is left to do; delete ended.json to go on")

    if world.rank == 0:
        with attempt("writing data.json", "It tells of the data, and is not read"):
            runs.write_data(folder.path, rows.summary())
            runs.write_skipped(folder.path, rows.skipped)

    engine.step = folder.step
    engine.initial_weights = folder.checkpoint
    engine.saves_in_background = True
    engine.average_decay = job.average_decay
    engine.job_state["total_steps"] = total_steps
    run_id = engine.job_state["wandb_run_id"] = (folder.state or {}).get("wandb_run_id") or uuid.uuid4().hex[:8]
    loggers = loggers_of(job, plan, folder.path, run_id, world)
    own = None if isinstance(module, ScaleModule) else OwnStep(_own_count(job))
    item_count = engine.item_count = partial(_item_count, module, own)
    if isinstance(module, ScaleModule):
        if job.loss_couples is not None and world.size > 1 and isinstance(coupled := module.objective, CoupledLoss):
            coupled.own_rows = lambda: _engine_of(module).own_rows
        engine.scores = Scores(job.metrics, job.task or rows.way.task, _learned(job, rows))
    metrics = Metrics(folder.path, folder.step, plan.flops_share, order.global_batch_size)
    evaluations = EvaluationSteps.of(job.evaluate_every, total_steps, plan.steps_per_epoch)
    job_time = JobTime.predicted(plan, folder.step, evaluations)
    epoch = plan.steps_per_epoch
    log("time", str(job_time) + (f" (an epoch is {epoch:,} step{'s' * (epoch != 1)})" if epoch else ""))
    progress = Progress(metrics, total_steps, folder.step, plan.loss)
    is_manual = not module.automatic_optimization
    splits = order.micro_batch_size < order.global_batch_size
    pl.seed_everything(job.seed, verbose=False)
    trainer = make_trainer(
        engine,
        device,
        world,
        [
            *job.callbacks,
            metrics,
            Evaluation(evaluations, folder.step),
            *([Samples(job.generate, rows.way.processor, folder.path, world, folder.step)] if job.generate else []),
            *([LeakCheck(rows.way.is_flat)] if rows.packed else []),
            *(
                [ReductionCheck(rows.few(), rows.collate, splits, world, own)]
                if job.loss_couples is None and not is_manual
                else []
            ),
            *([] if any(isinstance(each, ProgressBar) for each in job.callbacks) else [progress]),
            JobClock(job_time, metrics, evaluations),
            *([_watchdog(job, world, metrics)] if job.watchdog_seconds is not None else []),
            Checkpoints(
                folder.checkpoints,
                total_steps,
                job.checkpoint_every,
                folder.step,
                rotation,
                metrics,
                lambda step: rows.validation is not None and evaluations.due(step),
                request,
            ),
        ],
        job.data,
        folder.step if has_ended else total_steps,
        accumulate_grad_batches=order.accumulation,
        **_as_lightning_clips(job),
        log_every_n_steps=_log_every(job, plan.steps_per_epoch or total_steps),
        max_steps=folder.step if has_ended and not is_manual else _max_steps(job, is_manual, total_steps),
        max_epochs=-1 if job.max_epochs is None else math.ceil(job.max_epochs),
        num_sanity_val_steps=-1 if folder.step == 0 else 0,
        **_as_lightning_evaluates(job),
        logger=loggers or False,
        default_root_dir=folder.path,
    )
    batching = (rows, order, world, lambda batch, samples: item_count().of(batch, samples), device == "cuda")
    training = training_loader(*batching, folder.state or {})
    engine.turns_done = training.turns_done
    if isinstance(training, StreamLoader):
        log("stream", training.describe())
    trainer.fit(module, training, validation_loader(*batching), ckpt_path=folder.checkpoint)
    if engine.step < total_steps and world.rank == 0:
        runs.write_end(folder.path, job, engine.step)
    if isinstance(training, StreamLoader) and job.on_bad_row == "skip":
        _write_skipped(folder.path, rows, training, world)
    compared = compare(plan, metrics.history[folder.step :], trainer, folder.path)
    spare = cores() - world.local_size * (1 + rows.way.workers)
    for closing in (compared, data_warning(metrics.history[folder.step :], spare)):
        if closing is not None:
            say(closing)
    for each in loggers:
        finish(each, trainer)
    checkpoint = None if job.fast_dev_run else latest(folder.checkpoints)
    log("result", _result(metrics, checkpoint, time.monotonic() - began))
    evaluator = Evaluator(job, rows.way, rows.validation, module, engine, order.micro_batch_size)
    return Run(folder.path, plan, metrics.history, metrics.evaluations, checkpoint, module, evaluator)


def _passing_folder(held_until_end: ExitStack) -> str:
    """A folder that is gone when the job ends."""
    folder = tempfile.mkdtemp(prefix="scalekit-fast-dev-run-")
    held_until_end.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def prepare(job: Job) -> Rows:
    """Reads a job's data and prepares it for its model; what is prepared is kept, and found again by the job itself."""
    known = None if isinstance(job.model, pl.LightningModule) else models.known_of(job.model, job.trust_remote_code)
    if isinstance(known, nn.Module) and not any(each.requires_grad for each in known.parameters()):
        raise ConfigError(
            f"model={shown(job.model)} has no parameter that is trained: all are frozen, or there are none"
        )
    source = sources.read(job.data, job.validation, job.seed, job.on_bad_row)
    return Rows.prepare(job.with_batch(source.batch_size), source, known)


def _result(metrics: Metrics, checkpoint: Path | None, seconds: float) -> str:
    """What came of a job, in a line."""
    parts = []
    first, last = (metrics.evaluations or [{}])[0], (metrics.evaluations or [{}])[-1]
    told = next((name for name in sorted(last, key=lambda name: name != "loss") if name not in ("step", "items")), None)
    if told is not None:
        values = [f"{each[told]:.4g}" for each in (first, last) if told in each]
        parts.append(f"validation {told.replace('_', ' ')} {' -> '.join(dict.fromkeys(values))}")
    parts.append(f"took {duration(seconds)}")
    if checkpoint is not None:
        parts.append(f"the model is {checkpoint / 'model'}")
    return ", ".join(parts)


def _watchdog(job: Job, world: World, metrics: Metrics) -> Watchdog:
    limit = None if isinstance(job.watchdog_seconds, str) else job.watchdog_seconds
    return Watchdog(world, metrics.usual_step_seconds, limit)


def _learned(job: Job, rows: Rows) -> str | None:
    """transformers' `problem_type` of what is learned; None where it is unknown."""
    if isinstance(job.loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return Classes.problem
    if job.loss is not None:
        return None
    return Classes.problem if rows.way.labels is None else rows.way.labels.problem


def _max_steps(job: Job, is_manual: bool, total_steps: int) -> int:
    """What a module and its callbacks find in their trainer; where the job ends, its loop of epochs says."""
    is_whole = job.max_epochs is not None and float(job.max_epochs).is_integer()
    return -1 if is_manual or is_whole else total_steps


def _as_lightning_evaluates(job: Job) -> dict[str, Any]:
    """What callbacks of Lightning's find in their trainer about evaluations; when there is one, `Evaluation` says."""
    if isinstance(job.evaluate_every, int):
        return {"val_check_interval": job.evaluate_every, "check_val_every_n_epoch": None}
    return {"val_check_interval": job.evaluate_every if isinstance(job.evaluate_every, float) else 1.0}


def _log_every(job: Job, steps: int) -> int:
    """Optimizer steps between two at which loggers hear of what a module logs by the step."""
    if isinstance(job.log_every_n_steps, int):
        return job.log_every_n_steps
    return _USUAL_LOG_STEPS if steps >= _USUAL_LOG_STEPS else 1


def _as_lightning_clips(job: Job) -> dict[str, Any]:
    """A LightningModule's gradients are its own business, unless the job says otherwise."""
    clip = job.gradient_clip
    if isinstance(clip, str):
        clip = None if isinstance(job.model, pl.LightningModule) else 1.0
    return {} if clip is None else {"gradient_clip_val": clip, "gradient_clip_algorithm": job.gradient_clip_algorithm}


def _check(job: Job, world: World) -> None:
    """What a job's own checks cannot tell without the libraries that are asked here, before data is read.

    Raises:
        ScaleKitError: a setting that one of them refuses.
    """
    if job.global_batch_size != "auto":
        _check_split(job, world)
    check_loggers(job)
    metrics_of(job.metrics)
    Rotation.of(job, evaluates=True)
    if isinstance(job.model, pl.LightningModule):
        return
    offloads = job.strategy != "auto" and "optimizer" in Strategy.load(job.strategy).offload
    check_optimizer(job.optimizer, job.learning_rate, job.weight_decay, job.optimizer_options or {}, offloads)
    build_schedule(job.schedule, job.warmup_steps, job.max_steps or job.warmup_steps + 1)


def _check_split(job: Job, world: World) -> None:
    """Whether a global batch can be shared out.

    Raises:
        BatchSizeError: it cannot.
    """
    share = world.size * (1 if isinstance(job.micro_batch_size, str) else job.micro_batch_size)
    if job.batch % share:
        raise BatchSizeError.unsplittable(job.batch, share // world.size, world.size)
    is_whole = job.micro_batch_size in ("auto", job.batch // world.size)
    if not is_whole and (job.loss_couples is not None or _is_manual(job)):
        why = "manual optimization" if job.loss_couples is None else f"loss_couples={shown(job.loss_couples)}"
        raise BatchSizeError(
            f"{why}: a rank must run its share of the batch at once, so leave out micro_batch_size, or make it "
            f"global_batch_size / ranks = {job.batch // world.size}"
        )


def _is_manual(job: Job) -> bool:
    """Whether the job's module runs backward passes and optimizers by itself, once a batch."""
    return isinstance(job.model, pl.LightningModule) and not job.model.automatic_optimization


def _check_prepared(job: Job, rows: Rows) -> None:
    """Whether the rows are such that everything that is asked of them can be had.

    Raises:
        ConfigError: something cannot.
    """
    job.check_validation(rows.validation is not None)
    if not isinstance(job.model, pl.LightningModule):
        _check_batch(job, rows)
    if job.generate and not hasattr(rows.way.processor, "decode"):
        raise ConfigError("generate needs a tokenizer: give `processor=`")


def _check_batch(job: Job, rows: Rows) -> None:
    """Whether rows make a batch, and whether the loss finds in it what it needs.

    Raises:
        ScaleKitError: they do not, or it does not.
    """
    row, collate = rows.example()
    found = [(row, collate)]
    if rows.validation is not None and rows.way.encoder is None:
        found.append((rows.validation[0], rows.way.collate))
    for each, collate in found:
        try:
            batch = collate([each, each])
        except Exception as error:
            if rows.way.source.collate is not None:  # the user's own, which may need other rows than these
                return
            raise DataError(f"rows such as {shown(each)} cannot be made a batch: {error}") from error
        objective = _objective(job)
        if isinstance(objective, FunctionLoss):
            objective.check(batch, samples=2)


def _write_skipped(folder: Path, rows: Rows, training: StreamLoader, world: World) -> None:
    """Lists what was left out of a stream, which is known when it has been read."""
    found = dict.fromkeys(chain(rows.skipped, *gather(training.skipped, world)))
    if world.rank == 0:
        with attempt("writing skipped_rows.jsonl", "It tells of the data, and is not read"):
            runs.write_skipped(folder, list(found))


def _module(job: Job, model: models.Model | None, rows: Rows, total_steps: int, recompute: bool) -> pl.LightningModule:
    """The user's own LightningModule, or theirs within ScaleKit's."""
    if model is None:
        given: Any = job.model
        own: pl.LightningModule = given
        if recompute:
            recompute_blocks(own)
        return own
    source = model.source

    def seeded() -> nn.Module:
        pl.seed_everything(job.seed, verbose=False)
        return source if isinstance(source, nn.Module) else source()

    settings = OptimizerSettings(
        job.optimizer, job.learning_rate, job.schedule, job.warmup_steps, job.weight_decay, job.optimizer_options or {}
    )
    # A schedule that cannot be is refused before the run has a folder.
    build_schedule(job.schedule, job.warmup_steps, total_steps)
    built = source if isinstance(source, nn.Module) else seeded
    loss = _objective(job, rows.way.is_shifted)
    return ScaleModule(built, loss, settings, total_steps, job.item_count, rows.way.processor, recompute)


def _engine_of(module: pl.LightningModule) -> Engine:
    """The one that runs a module just now."""
    engine: Any = module.trainer.strategy
    found: Engine = engine
    return found


def _item_count(module: pl.LightningModule, own: OwnStep | None) -> ItemCount:
    """What the loss is a mean over, as far as it is known by now."""
    if isinstance(module, ScaleModule):
        return module.objective.count
    return counts.Samples() if own is None else own.count


def _own_count(job: Job) -> ItemCount:
    """What the loss of a user's own step is taken for a mean over."""
    return counts.Samples() if job.item_count is None else Counted(job.item_count)


def _objective(job: Job, shifted: bool = False) -> Objective | None:
    """What the job's loss makes of a model's outputs; None where it is the model's own. See `FunctionLoss` for `shifted`."""
    if job.loss is None:
        return None
    if job.loss_couples is not None:
        return CoupledLoss(job.loss)
    return FunctionLoss(job.loss, None if job.item_count is None else Counted(job.item_count), shifted)


def _plan(
    decision: Decision,
    engine: Engine,
    device: str,
    order: Order | Lanes,
    total_steps: int,
    module: pl.LightningModule,
    name: str,
    rows: Rows,
) -> Plan:
    parameters = decision.parameters or _parameters(module)
    return Plan(
        strategy=decision.strategy.name,
        engine=decision.strategy.engine,
        precision=engine.precision,
        device=device,
        dtypes=engine.dtypes.as_names(),
        world_size=order.world_size,
        global_batch_size=order.global_batch_size,
        micro_batch_size=order.micro_batch_size,
        accumulation=order.accumulation,
        activation_checkpointing=decision.activation_checkpointing,
        samples=order.epoch_samples if isinstance(order, Order) else None,
        steps_per_epoch=order.steps_per_epoch if isinstance(order, Order) else None,
        total_steps=total_steps,
        loss=_loss_in_words(module, rows),
        predicted=decision.predicted,
        reasons=decision.reasons,
        model=name,
        parameters=None if parameters is None else parameters[0],
        trained_parameters=None if parameters is None else parameters[1],
        tokens=None if rows.lengths is None else rows.lengths.total,
        validation_samples=validation_samples(rows),
        all_samples=order.length if isinstance(order, Order) else None,
        all_validation_samples=None if rows.validation is None else len(rows.validation),
    )


def _loss_in_words(module: pl.LightningModule, rows: Rows) -> str:
    if not isinstance(module, ScaleModule):
        return "samples, by its own training_step"
    if rows.way.task in LANGUAGE and rows.way.job.loss is None:
        return "label tokens" + (" of completions" if rows.way.job.loss_on == "completions" else "")
    return module.describe_loss()


def _parameters(module: pl.LightningModule) -> tuple[int, int] | None:
    """Elements of all parameters and of the trained ones, where they stand already."""
    found = list(module.parameters())
    return (sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)) if found else None
