"""The main job, from top to bottom: settings, data, plan, strategy, loop, checkpoint."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from torch import nn

from scalekit.callbacks.checkpoints import Checkpoints
from scalekit.callbacks.evaluation import Evaluation, EvaluationSteps
from scalekit.callbacks.generation import Samples, check_samples
from scalekit.callbacks.job_time import JobClock, JobTime
from scalekit.callbacks.metrics import Metrics, data_warning
from scalekit.callbacks.packing_check import LeakCheck
from scalekit.callbacks.progress import Progress
from scalekit.callbacks.watchdog import Watchdog
from scalekit.checkpoint.load import latest
from scalekit.checkpoint.retention import Rotation
from scalekit.config.documentation import configured_by
from scalekit.config.job import Job
from scalekit.config.precision import resolve_precision
from scalekit.config.strategy import StrategyConfig
from scalekit.data.loaders import job_steps as steps_of
from scalekit.data.loaders import order_of, training_loader, validation_loader, validation_samples
from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.prepared import Rows
from scalekit.data.preprocessing import cores
from scalekit.data.sampling.batch_order import BatchOrder
from scalekit.data.sampling.stream_order import StreamOrder
from scalekit.data.sources.read import read_data
from scalekit.distributed.preemption import StopRequest, handle_stop_signals
from scalekit.distributed.process import exit_with_parent
from scalekit.distributed.world import World, all_gather_object, connect, device_type, run_on_rank_zero
from scalekit.errors import BatchSizeError, ConfigError, DataError, shown
from scalekit.hardware import slow_precision_warning
from scalekit.loggers.factory import check_loggers, finish, loggers_of
from scalekit.loops import make_trainer, support
from scalekit.models.activation_checkpointing import recompute_blocks
from scalekit.models.labels import Classes
from scalekit.models.resolve import Model, known_of, resolve_model
from scalekit.models.vocabulary import with_embedding
from scalekit.objectives import counts
from scalekit.objectives.counts import Counted, ItemCount
from scalekit.objectives.coupled import CoupledLoss
from scalekit.objectives.measured import ReductionCheck
from scalekit.objectives.metrics import LANGUAGE, Scores, metrics_of
from scalekit.objectives.objective import FunctionLoss, Objective
from scalekit.objectives.own_step import OwnStep
from scalekit.optim.optimizers import build_schedule, check_optimizer
from scalekit.planning.plan import Plan
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.factory import build_strategy
from scalekit.training.autotune import Decision, decide
from scalekit.training.comparison import compare
from scalekit.training.evaluator import Evaluator
from scalekit.training.module import OptimizerSettings, ScaleModule
from scalekit.training.run_directory import begin_run, is_finished, open_run, write_data, write_end, write_skipped
from scalekit.training.trial_run import choose_with_trial
from scalekit.utils import byproducts
from scalekit.utils.byproducts import attempt
from scalekit.utils.host_memory import kept_when_freed
from scalekit.utils.log import JobLog, detail, duration, job_log, log, say, warn

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
    with handle_stop_signals(request), job_log(world.rank, job.verbose) as logged, ExitStack() as held_until_end:
        return _run(job, world, request, held_until_end, logged)


def _run(job: Job, world: World, request: StopRequest, held_until_end: ExitStack, logged: JobLog) -> Run:
    began = time.monotonic()
    if job.fast_dev_run:
        job = support.tried(job)
    world.check(job.devices, job.num_nodes)
    _check(job, world)
    if world.launched:
        exit_with_parent()
    device = device_type()
    if device == "cpu":
        held_until_end.enter_context(kept_when_freed())
    # What is wrong with a strategy or precision that was named shows before data is read.
    named = resolve_precision(job.precision, device) if job.precision != "auto" else "32-true"
    support.check_anywhere(job)
    if job.strategy != "auto":
        named_strategy = StrategyConfig.load(job.strategy)
        if (why := support.refusal(job, named_strategy)) is not None:
            raise ConfigError(why)
        build_strategy(named_strategy, named, device, world)
    # And what would make a job go on for hours. Rank 0 knows alone, so that ranks do not disturb each other's measurement.
    slow = slow_precision_warning(job.precision, device) if world.rank == 0 else None
    if slow is not None:
        warn(slow)

    rows = prepare(job)
    job = rows.pipeline.job
    _check_split(job, world)
    if job.loss_couples is not None or _is_manual(job):
        job = replace(job, micro_batch_size=job.batch // world.size)
    _check_prepared(job, rows)
    for remark in rows.remarks:
        say(remark)
    model = (
        None
        if isinstance(job.model, pl.LightningModule)
        else resolve_model(job.model, job.task or rows.pipeline.task, job.trust_remote_code, rows.pipeline.labels)
    )
    if model is not None and rows.pipeline.tokens is not None:
        model = with_embedding(model, rows.pipeline.tokens)
    connect(world)
    known = model or resolve_model(job.model)
    if known.config is not None:
        rows.pipeline.tell_pad(known.config)
    if job.generate and model is not None:
        check_samples(job.generate, model, rows.pipeline.processor)
    if job.fast_dev_run:
        job = replace(job, output_dir=run_on_rank_zero(lambda: _passing_folder(held_until_end), world))
    rotation = Rotation.of(job, rows.validation is not None)
    folder = open_run(job, known.name, world, held_until_end, say)
    decision = choose_with_trial(
        # With the head and the tokens that its rows ask for.
        replace(job, model=known.source, new_tokens=None) if isinstance(job.model, str) or job.new_tokens else job,
        partial(decide, job, known, rows.example, device, world, folder.plan, fill=rows.fill),
        rows.example,
        world,
    )
    strategy = build_strategy(decision.strategy, decision.precision, device, world)
    strategy.finds_unused = not decision.uses_all
    order = order_of(rows, decision.micro_batch_size, world)
    has_ended = is_finished(folder, job)
    total_steps = steps_of(rows, order)
    module = _module(job, model, rows, total_steps, recompute=decision.activation_checkpointing)
    plan = _plan(
        decision,
        strategy,
        device,
        order,
        total_steps,
        module,
        job.model if isinstance(job.model, str) else known.name,
        rows,
    )
    begin_run(job, folder, plan, world, held_until_end)
    logged.open(folder.path)
    say(str(plan))
    for each in plan.details():
        detail(*each)
    log("run", f"{folder.path}" + (f", resumed at step {folder.step}" if folder.step else ""))
    if has_ended:
        log("ended", f"by a callback at step {folder.step}: nothing is left to do; delete ended.json to go on")

    if world.rank == 0:
        with attempt("writing data.json", "It tells of the data, and is not read"):
            write_data(folder.path, rows.summary())
            write_skipped(folder.path, rows.skipped)

    strategy.step = folder.step
    strategy.initial_weights = folder.checkpoint
    strategy.saves_in_background = True
    strategy.ema_decay = job.ema_decay
    strategy.job_state["total_steps"] = total_steps
    run_id = strategy.job_state["wandb_run_id"] = (folder.state or {}).get("wandb_run_id") or uuid.uuid4().hex[:8]
    loggers = loggers_of(job, plan, folder.path, run_id, world)
    own = None if isinstance(module, ScaleModule) else OwnStep(_own_count(job))
    item_count = strategy.item_count = partial(_item_count, module, own)
    if isinstance(module, ScaleModule):
        if job.loss_couples is not None and world.size > 1 and isinstance(coupled := module.objective, CoupledLoss):
            coupled.own_rows = lambda: _strategy_of(module).own_rows
        strategy.scores = Scores(job.metrics, job.task or rows.pipeline.task, _learned(job, rows))
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
        strategy,
        device,
        world,
        [
            *job.callbacks,
            metrics,
            Evaluation(evaluations, folder.step),
            *(
                [Samples(job.generate, rows.pipeline.processor, folder.path, world, folder.step)]
                if job.generate
                else []
            ),
            *([LeakCheck(rows.pipeline.is_flat)] if rows.packed else []),
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
    strategy.turns_done = training.turns_done
    if isinstance(training, StreamLoader):
        log("stream", training.describe())
    trainer.fit(module, training, validation_loader(*batching), ckpt_path=folder.checkpoint)
    if strategy.step < total_steps and world.rank == 0:
        write_end(folder.path, job, strategy.step)
    if isinstance(training, StreamLoader) and job.on_bad_row == "skip":
        _write_skipped(folder.path, rows, training, world)
    compared = compare(plan, metrics.history[folder.step :], trainer, folder.path)
    spare = cores() - world.local_size * (1 + rows.pipeline.workers)
    for closing in (compared, data_warning(metrics.history[folder.step :], spare)):
        if closing is not None:
            say(closing)
    for each in loggers:
        finish(each, trainer)
    checkpoint = None if job.fast_dev_run else latest(folder.checkpoints)
    log("result", _result(metrics, checkpoint, time.monotonic() - began))
    evaluator = Evaluator(job, rows.pipeline, rows.validation, module, strategy, order.micro_batch_size)
    return Run(folder.path, plan, metrics.history, metrics.evaluations, checkpoint, module, evaluator)


def _passing_folder(held_until_end: ExitStack) -> str:
    """A folder that is gone when the job ends."""
    folder = tempfile.mkdtemp(prefix="scalekit-fast-dev-run-")
    held_until_end.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def prepare(job: Job) -> Rows:
    """Reads a job's data and prepares it for its model; what is prepared is kept, and found again by the job itself."""
    known = None if isinstance(job.model, pl.LightningModule) else known_of(job.model, job.trust_remote_code)
    if isinstance(known, nn.Module) and not any(each.requires_grad for each in known.parameters()):
        raise ConfigError(
            f"model={shown(job.model)} has no parameter that is trained: all are frozen, or there are none"
        )
    source = read_data(job.data, job.validation, job.seed, job.on_bad_row)
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
    return Classes.problem if rows.pipeline.labels is None else rows.pipeline.labels.problem


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
    offloads = job.strategy != "auto" and "optimizer" in StrategyConfig.load(job.strategy).offload
    check_optimizer(job.optimizer, job.learning_rate, job.weight_decay, job.optimizer_options or {}, offloads)
    build_schedule(job.lr_schedule, job.warmup_steps, job.max_steps or job.warmup_steps + 1)


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
    if job.generate and not hasattr(rows.pipeline.processor, "decode"):
        raise ConfigError("generate needs a tokenizer: give `processor=`")


def _check_batch(job: Job, rows: Rows) -> None:
    """Whether rows make a batch, and whether the loss finds in it what it needs.

    Raises:
        ScaleKitError: they do not, or it does not.
    """
    row, collate = rows.example()
    found = [(row, collate)]
    if rows.validation is not None and rows.pipeline.encoder is None:
        found.append((rows.validation[0], rows.pipeline.collate))
    for each, collate in found:
        try:
            batch = collate([each, each])
        except Exception as error:
            if rows.pipeline.source.collate is not None:  # the user's own, which may need other rows than these
                return
            raise DataError(f"rows such as {shown(each)} cannot be made a batch: {error}") from error
        objective = _objective(job)
        if isinstance(objective, FunctionLoss):
            objective.check(batch, samples=2)


def _write_skipped(folder: Path, rows: Rows, training: StreamLoader, world: World) -> None:
    """Lists what was left out of a stream, which is known when it has been read."""
    found = dict.fromkeys(chain(rows.skipped, *all_gather_object(training.skipped, world)))
    if world.rank == 0:
        with attempt("writing skipped_rows.jsonl", "It tells of the data, and is not read"):
            write_skipped(folder, list(found))


def _module(job: Job, model: Model | None, rows: Rows, total_steps: int, recompute: bool) -> pl.LightningModule:
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
        job.optimizer,
        job.learning_rate,
        job.lr_schedule,
        job.warmup_steps,
        job.weight_decay,
        job.optimizer_options or {},
    )
    # A schedule that cannot be is refused before the run has a folder.
    build_schedule(job.lr_schedule, job.warmup_steps, total_steps)
    built = source if isinstance(source, nn.Module) else seeded
    loss = _objective(job, rows.pipeline.is_shifted)
    return ScaleModule(built, loss, settings, total_steps, job.item_count, rows.pipeline.processor, recompute)


def _strategy_of(module: pl.LightningModule) -> BaseStrategy:
    """The one that runs a module just now."""
    strategy: Any = module.trainer.strategy
    found: BaseStrategy = strategy
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
    strategy: BaseStrategy,
    device: str,
    order: BatchOrder | StreamOrder,
    total_steps: int,
    module: pl.LightningModule,
    name: str,
    rows: Rows,
) -> Plan:
    parameters = decision.parameters or _parameters(module)
    return Plan(
        strategy=decision.strategy.name,
        engine=decision.strategy.engine,
        precision=strategy.precision,
        device=device,
        dtypes=strategy.dtypes.as_names(),
        world_size=order.world_size,
        global_batch_size=order.global_batch_size,
        micro_batch_size=order.micro_batch_size,
        accumulation=order.accumulation,
        activation_checkpointing=decision.activation_checkpointing,
        samples=order.epoch_samples if isinstance(order, BatchOrder) else None,
        steps_per_epoch=order.steps_per_epoch if isinstance(order, BatchOrder) else None,
        total_steps=total_steps,
        loss=_loss_in_words(module, rows),
        predicted=decision.predicted,
        reasons=decision.reasons,
        model=name,
        parameters=None if parameters is None else parameters[0],
        trained_parameters=None if parameters is None else parameters[1],
        tokens=None if rows.lengths is None else rows.lengths.total,
        validation_samples=validation_samples(rows),
        all_samples=order.length if isinstance(order, BatchOrder) else None,
        all_validation_samples=None if rows.validation is None else len(rows.validation),
    )


def _loss_in_words(module: pl.LightningModule, rows: Rows) -> str:
    if not isinstance(module, ScaleModule):
        return "samples, by its own training_step"
    if rows.pipeline.task in LANGUAGE and rows.pipeline.job.loss is None:
        return "label tokens" + (" of completions" if rows.pipeline.job.loss_on == "completions" else "")
    return module.describe_loss()


def _parameters(module: pl.LightningModule) -> tuple[int, int] | None:
    """Elements of all parameters and of the trained ones, where they stand already."""
    found = list(module.parameters())
    return (sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)) if found else None
