"""A job from its settings to all that its trainer is made of; each part follows from those above it."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import lightning.pytorch as pl
from torch import nn

from scalekit.callbacks.evaluation import EvaluationSteps
from scalekit.callbacks.generation import check_samples
from scalekit.checkpoint.retention import Rotation
from scalekit.config.precision import dtypes_for
from scalekit.config.settings import Job
from scalekit.data.loaders import job_steps, order_of, training_loader, validation_loader, validation_samples
from scalekit.data.loading.map_loader import Loader
from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.prepared import Rows
from scalekit.data.sampling.batch_order import BatchOrder
from scalekit.data.sampling.stream_order import StreamOrder
from scalekit.data.sources.read import read_data
from scalekit.distributed.world import World, connect, run_on_rank_zero
from scalekit.errors import ConfigError, shown
from scalekit.loops import lightning_support
from scalekit.models.labels import Classes
from scalekit.models.resolve import Model, known_of, resolve_model
from scalekit.models.vocabulary import with_embedding
from scalekit.objectives.lightning_step import OwnStep
from scalekit.objectives.metrics import Scores
from scalekit.planning.plan import Plan
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.factory import build_strategy
from scalekit.strategies.job_context import JobContext
from scalekit.training.autotune import Decision, decide
from scalekit.training.checks import check_prepared, check_split, is_manual
from scalekit.training.module_factory import item_count_of, loss_in_words, module_of, own_step_of, parameters_of
from scalekit.training.run_directory import RunFolder, is_finished, open_run
from scalekit.training.scale_module import ScaleModule
from scalekit.training.trial_run import choose_with_trial
from scalekit.utils.log import say


@dataclass(frozen=True)
class PreparedJob:
    """A job that is ready to be trained.

    Attributes:
        job: its settings, with what its data decides.
        world: its processes.
        device: ``"cuda"`` or ``"cpu"``.
        rows: its data, for its model.
        folder: of the run, and where it resumes.
        has_ended: whether a callback has ended it before, so that nothing is left to do.
        order: which rows make which global batch.
        total_steps: optimizer steps of the whole job.
        module: what is trained.
        own_step: what is measured of a user's own step, or None.
        plan: how it is run, and why.
        training, validation: its loaders; the latter None without a validation set.
        strategy: Lightning's, that runs it.
    """

    job: Job
    world: World
    device: str
    rows: Rows
    folder: RunFolder
    has_ended: bool
    order: BatchOrder | StreamOrder
    total_steps: int
    module: pl.LightningModule
    own_step: OwnStep | None
    plan: Plan
    training: Loader | StreamLoader
    validation: Loader | None
    strategy: BaseStrategy

    @property
    def evaluations(self) -> EvaluationSteps:
        """When it evaluates."""
        return EvaluationSteps.of(self.job.evaluate_every, self.total_steps, self.plan.steps_per_epoch)

    @property
    def rotation(self) -> Rotation:
        """Which checkpoints it keeps."""
        return Rotation.of(self.job, self.rows.validation is not None)


def prepare_job(job: Job, world: World, device: str, asked: JobContext, until_end: ExitStack) -> PreparedJob:
    """Prepares a job; every rank calls it.

    Args:
        job: its settings, which `check_before_data` has passed.
        world: its processes.
        device: ``"cuda"`` or ``"cpu"``.
        asked: what its strategy knows of it already.
        until_end: what ends with the job.

    Raises:
        ScaleKitError: data, model and settings do not go together, or it will not fit.
    """
    rows = prepare(job)
    job = _with_whole_batches(rows.pipeline.job, world)
    check_prepared(job, rows)
    for remark in rows.remarks:
        say(remark)
    model = _model(job, rows)
    connect(world)
    known = _known(job, model, rows)
    job = _with_passing_folder(job, world, until_end)
    folder = open_run(job, known.name, world, until_end, say)
    decision = _decision(job, known, rows, device, world, folder)
    name = job.model if isinstance(job.model, str) else known.name
    return _assembled(job, world, device, rows, model, name, folder, decision, asked)


def _assembled(
    job: Job,
    world: World,
    device: str,
    rows: Rows,
    model: Model | None,
    name: str,
    folder: RunFolder,
    decision: Decision,
    asked: JobContext,
) -> PreparedJob:
    """The objects that train a job, of which each is made of what was decided, and of those before it."""
    order = order_of(rows, decision.micro_batch_size, world)
    lightning_support.check_accumulated(job, order.accumulation)
    has_ended, total_steps = is_finished(folder, job), job_steps(rows, order)
    module = module_of(job, model, rows.pipeline, world, total_steps, decision.activation_checkpointing)
    own_step = own_step_of(job)
    count = partial(item_count_of, module, own_step)
    batching = (rows, order, world, lambda batch, samples: count().of(batch, samples), device == "cuda")
    training = training_loader(*batching, folder.state or {})
    context = replace(
        asked,
        step=folder.step,
        checkpoint=folder.checkpoint,
        micro_batches_done=training.micro_batches_done,
        saved={"total_steps": total_steps, "wandb_run_id": _wandb_run_id(folder)},
        saves_in_background=True,
        ema_decay=job.ema_decay,
        finds_unused=not decision.uses_all,
        scores=_scores(job, rows) if isinstance(module, ScaleModule) else None,
        item_count=count,
    )
    return PreparedJob(
        job,
        world,
        device,
        rows,
        folder,
        has_ended,
        order,
        total_steps,
        module,
        own_step,
        _plan(decision, device, order, total_steps, module, name, rows),
        training,
        validation_loader(*batching),
        build_strategy(decision.strategy, decision.precision, device, world, context),
    )


def prepare(job: Job) -> Rows:
    """Reads a job's data and prepares it for its model; what is prepared is kept, and found again by the job itself."""
    known = None if isinstance(job.model, pl.LightningModule) else known_of(job.model, job.trust_remote_code)
    if isinstance(known, nn.Module) and not any(each.requires_grad for each in known.parameters()):
        raise ConfigError(
            f"model={shown(job.model)} has no parameter that is trained: all are frozen, or there are none"
        )
    source = read_data(job.data, job.validation, job.seed, job.on_bad_row)
    return Rows.prepare(job.with_batch(source.batch_size), source, known)


def _with_whole_batches(job: Job, world: World) -> Job:
    """A rank runs its share of a batch at once where samples are coupled, or a module optimizes by itself."""
    check_split(job, world)
    if job.loss_couples is None and not is_manual(job):
        return job
    return replace(job, micro_batch_size=job.batch // world.size)


def _model(job: Job, rows: Rows) -> Model | None:
    """The job's model with the head and the tokens that its rows ask for; None for a LightningModule."""
    if isinstance(job.model, pl.LightningModule):
        return None
    pipeline = rows.pipeline
    model = resolve_model(job.model, job.task or pipeline.task, job.trust_remote_code, pipeline.labels)
    return model if pipeline.tokens is None else with_embedding(model, pipeline.tokens)


def _known(job: Job, model: Model | None, rows: Rows) -> Model:
    """The model, or a LightningModule as one, with what the tokenizer tells its configuration.

    Raises:
        ConfigError: `generate` asks for what the model cannot give.
    """
    known = model or resolve_model(job.model)
    if known.config is not None:
        rows.pipeline.set_pad_token_id(known.config)
    if job.generate and model is not None:
        check_samples(job.generate, model, rows.pipeline.processor)
    return known


def _with_passing_folder(job: Job, world: World, until_end: ExitStack) -> Job:
    """Gives a `fast_dev_run` a folder that is gone when the job ends."""
    if not job.fast_dev_run:
        return job

    def passing() -> str:
        folder = tempfile.mkdtemp(prefix="scalekit-fast-dev-run-")
        until_end.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    return replace(job, output_dir=run_on_rank_zero(passing, world))


def _decision(job: Job, known: Model, rows: Rows, device: str, world: World, folder: RunFolder) -> Decision:
    # A trial trains the model with the head and the tokens that its rows ask for.
    tried = replace(job, model=known.source, new_tokens=None) if isinstance(job.model, str) or job.new_tokens else job
    decided = partial(decide, job, known, rows.example, device, world, folder.plan, fill=rows.fill)
    return choose_with_trial(tried, decided, rows.example, world)


def _wandb_run_id(folder: RunFolder) -> str:
    return (folder.state or {}).get("wandb_run_id") or uuid.uuid4().hex[:8]


def _scores(job: Job, rows: Rows) -> Scores:
    return Scores(job.metrics, job.task or rows.pipeline.task, _learned(job, rows))


def _learned(job: Job, rows: Rows) -> str | None:
    """transformers' `problem_type` of what is learned; None where it is unknown."""
    if isinstance(job.loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return Classes.problem
    if job.loss is not None:
        return None
    return Classes.problem if rows.pipeline.labels is None else rows.pipeline.labels.problem


def _plan(
    decision: Decision,
    device: str,
    order: BatchOrder | StreamOrder,
    total_steps: int,
    module: pl.LightningModule,
    name: str,
    rows: Rows,
) -> Plan:
    parameters = decision.parameters or parameters_of(module)
    return Plan(
        strategy=decision.strategy.name,
        engine=decision.strategy.engine,
        precision=decision.precision,
        device=device,
        dtypes=dtypes_for(decision.precision).as_names(),
        world_size=order.world_size,
        global_batch_size=order.global_batch_size,
        micro_batch_size=order.micro_batch_size,
        accumulation=order.accumulation,
        activation_checkpointing=decision.activation_checkpointing,
        samples=order.epoch_samples if isinstance(order, BatchOrder) else None,
        steps_per_epoch=order.steps_per_epoch if isinstance(order, BatchOrder) else None,
        total_steps=total_steps,
        loss=loss_in_words(module, rows.pipeline),
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
