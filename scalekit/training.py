"""The main job, from top to bottom: settings, data, plan, engine, loop, checkpoint."""

from __future__ import annotations

import logging
import math
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import default_collate

from scalekit import dtypes, engines, models, runs
from scalekit.checkpoint.callback import Checkpoints
from scalekit.checkpoint.load import latest
from scalekit.data import sources, text
from scalekit.data.loader import Loader
from scalekit.data.order import Order
from scalekit.decision import Decision, costliest, decide
from scalekit.engines.engine import Engine
from scalekit.errors import ConfigError, EmptyDataError, UnknownNameError
from scalekit.job import Job
from scalekit.loss import LossFunction
from scalekit.module import OptimizerSettings, ScaleModule
from scalekit.optim import OPTIMIZERS, SCHEDULES
from scalekit.planning.plan import Plan
from scalekit.probe import settle
from scalekit.recompute import recompute_blocks
from scalekit.strategies import Strategy
from scalekit.tracking.comparison import compare
from scalekit.tracking.evaluation import Evaluation
from scalekit.tracking.metrics import Metrics, data_warning
from scalekit.tracking.progress import Progress
from scalekit.world import World, connect, device_type, first


@dataclass(frozen=True)
class Run:
    """What a job came to.

    Attributes:
        folder: of the run: config.yaml, plan.json, metrics.jsonl, checkpoints/.
        plan: how it ran.
        history: one mapping an optimizer step, as in metrics.jsonl.
        evaluations: one mapping an evaluation: step, loss, items.
        checkpoint: the newest; its ``model/`` is what `from_pretrained` opens.
        module: the LightningModule as trained; under a sharded strategy its parameters are this rank's parts.
    """

    folder: Path
    plan: Plan
    history: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    checkpoint: Path | None
    module: pl.LightningModule

    @property
    def model(self) -> nn.Module:
        """The trained model, without what ScaleKit put around it."""
        inner = self.module.model if isinstance(self.module, ScaleModule) else self.module
        return inner if inner is not None else self.module


def fit(
    model: Any,
    data: Any,
    task: str | None = None,
    *,
    loss: LossFunction | None = None,
    count: Callable[[Any], float] | None = None,
    validation: Any = None,
    processor: Any = None,
    sequence_length: int | None = None,
    loss_on: str = "all",
    strategy: str = "auto",
    precision: str = "auto",
    global_batch_size: int = 8,
    micro_batch_size: int | str = "auto",
    activation_checkpointing: bool | str = "auto",
    memory_check: str = "refuse",
    max_steps: int | None = None,
    max_epochs: float | None = None,
    optimizer: Any = "adamw",
    optimizer_options: Mapping[str, Any] | None = None,
    learning_rate: float = 5e-5,
    schedule: Any = "cosine",
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    gradient_clip: float | str | None = "auto",
    seed: int = 0,
    devices: int | str = "auto",
    num_nodes: int | str = "auto",
    workers: int | str = "auto",
    logger: Any = None,
    callbacks: Sequence[pl.Callback] = (),
    output_dir: str | None = None,
    checkpoint_every: int | None = None,
    evaluate_every: int | None = None,
    resume: str = "auto",
    trust_remote_code: bool = False,
) -> Run:
    """Trains a model on a data set, on the processes that torchrun started, or on one.

    Args:
        model: an `nn.Module`; a function that builds one; a Hugging Face model, its hub id or folder; or a LightningModule,
            which keeps its own steps, optimizers and callbacks.
        data: a Hugging Face `Dataset` or `DatasetDict`, a hub id, a file or folder, a list of rows, a torch `Dataset` or
            `DataLoader`, or a LightningDataModule. Of a DataLoader its rows, its collator, its workers and whether it
            shuffles are taken; batch sizes are the job's.
        task: which head a hub model gets, one of `models.TASKS`; the one it was saved with by default.
        loss: a `torch.nn` loss, or a function of output and target; by default the model's own.
        count: the items of a batch, where `loss` is a mean over neither samples nor labels.
        validation: rows held out, or the share of `data` to hold out; the loss on them is found before and after.
        processor: a tokenizer, or the name of one; the model's own by default.
        sequence_length: longest row in tokens; longer ones are cut, and counted.
        loss_on: ``"all"`` tokens, or ``"completions"`` alone.
        strategy: a name in ``strategies/``, the path of a strategy file, or ``"auto"``.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed`` or ``"auto"``.
        global_batch_size: samples an optimizer step, over all ranks and accumulation.
        micro_batch_size: samples that one rank runs at once.
        activation_checkpointing: whether the model's repeated blocks keep their inputs alone for the backward pass and are
            computed anew there: less memory, about a third more time. The same numbers.
        memory_check: ``"refuse"`` ends a job that is predicted not to fit before it starts, and tries one out for two steps, in
            processes of their own, where the margin is thin; ``"probe"`` always tries it out; ``"warn"`` lets any run.
        max_steps: optimizer steps of the whole job; or
        max_epochs: passes over the data, which need not be whole.
        optimizer: ``adamw``, ``adam``, ``sgd``, or a function from parameter groups to a torch optimizer.
        optimizer_options: further arguments of a named optimizer, such as ``{"betas": (0.9, 0.95), "eps": 1e-8}``.
        learning_rate: at the schedule's factor 1.
        schedule: ``constant``, ``linear``, ``cosine``, ``wsd``, or a function of the step's index to a factor.
        warmup_steps: optimizer steps over which the learning rate rises.
        weight_decay: on matrices; biases and norms never decay.
        gradient_clip: the largest global gradient norm; None clips nothing; ``"auto"`` is 1.0, and None for a LightningModule.
        seed: of initial weights, order and dropout.
        devices: processes on each node; what torchrun started by default.
        num_nodes: likewise.
        workers: processes that read rows, for each rank.
        logger: None, ``"wandb"``, a Lightning logger, or several.
        callbacks: Lightning callbacks.
        output_dir: the run's folder; a new one under ``runs/`` by default.
        checkpoint_every: optimizer steps between two checkpoints; one is always saved at the end.
        evaluate_every: optimizer steps between two evaluations.
        resume: ``"auto"`` goes on with what `output_dir` holds, ``"never"`` refuses to, a checkpoint's folder is gone on with.
        trust_remote_code: whether code that comes with a hub model may run.

    Raises:
        ScaleKitError: see `scalekit.errors`; all but the last two kinds before any training.
    """
    return run(Job(**locals()))


def run(job: Job) -> Run:
    """Runs a job; see `fit`."""
    world = World.from_environment()
    world.check(job.devices, job.num_nodes)
    _check_names(job)
    _check_own_module(job)
    _let_rank_zero_speak(world)
    device = device_type()
    precision = dtypes.resolve(job.precision, device)
    # What is wrong with a strategy that was named shows before data is read.
    named = engines.engine(Strategy.load(job.strategy), precision, device, world) if job.strategy != "auto" else None

    source = sources.read(job.data, job.validation, job.seed)
    model = (
        None
        if isinstance(job.model, pl.LightningModule)
        else models.resolve(job.model, job.task, job.trust_remote_code)
    )
    rows = _Rows.prepare(job, model, source)
    if len(rows.train) == 0:
        raise EmptyDataError("the data has no rows")
    connect(world)
    known = model or models.resolve(job.model)
    decision = settle(
        job,
        partial(decide, job, known, rows.train, rows.collate, precision, world),
        lambda: (costliest(rows.train), rows.collate),
        world,
        partial(_say, world),
    )
    engine = named or engines.engine(decision.strategy, precision, device, world)
    order = Order(
        length=len(rows.train),
        global_batch_size=job.global_batch_size,
        micro_batch_size=decision.micro_batch_size,
        world_size=world.size,
        seed=job.seed,
        shuffle=source.shuffle,
    )
    total_steps = job.max_steps or math.ceil((job.max_epochs or 0) * order.steps_per_epoch)
    module = _module(job, model, rows, total_steps, recompute=decision.activation_checkpointing)
    plan = _plan(decision, engine, device, order, total_steps, module)

    folder = first(lambda: runs.claim(job, known.name, plan), world)
    _say(world, f"{plan}\nrun        {folder.path}" + (f", resumed at step {folder.step}" if folder.step else ""))

    engine.initial_weights = folder.checkpoint
    engine.job_state["layout"] = plan.layout()
    loggers = _loggers(job, folder, plan, engine)
    metrics = Metrics(folder.path, folder.step, plan.flops_share, order.global_batch_size)
    with _quiet_lightning():
        pl.seed_everything(job.seed, verbose=False)
        trainer = pl.Trainer(
            strategy=engine,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=world.local_size,
            num_nodes=world.num_nodes,
            plugins=[TorchElasticEnvironment() if world.launched else LightningEnvironment()],
            accumulate_grad_batches=order.accumulation,
            gradient_clip_val=_gradient_clip(job),
            max_steps=total_steps,
            max_epochs=-1,
            num_sanity_val_steps=-1 if folder.step == 0 else 0,
            val_check_interval=1,
            check_val_every_n_epoch=None,
            logger=loggers or False,
            callbacks=[
                *job.callbacks,
                metrics,
                Evaluation(total_steps, job.evaluate_every, folder.step),
                Checkpoints(folder.checkpoints, total_steps, job.checkpoint_every, folder.step, metrics.restart_clock),
                Progress(metrics, total_steps, folder.step),
            ],
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in job.callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=folder.path,
        )
        training, held_out = rows.loaders(order, world, module, device, folder)
        trainer.fit(module, training, held_out, ckpt_path=folder.checkpoint)
    compared = compare(plan, metrics.history[folder.step :], trainer, folder.path)
    for remark in (compared, data_warning(metrics.history[folder.step :])):
        if remark is not None:
            _say(world, remark)
    for each in loggers:
        _finish(each, trainer)
    return Run(folder.path, plan, metrics.history, metrics.evaluations, latest(folder.checkpoints), module)


def _gradient_clip(job: Job) -> float | None:
    """A LightningModule's gradients are its own business, unless the job says otherwise."""
    if isinstance(job.gradient_clip, str):
        return None if isinstance(job.model, pl.LightningModule) else 1.0
    return job.gradient_clip


def _check_names(job: Job) -> None:
    """What is a name for something of ScaleKit's must be one, before data is read and models are built.

    Raises:
        UnknownNameError: it is not.
    """
    for kind, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("loss_on", text.LOSS_ON)):
        value = getattr(job, kind)
        if isinstance(value, str) and value not in known:
            raise UnknownNameError(kind, value, known)
    if job.task is not None and job.task not in models.TASKS:
        raise UnknownNameError("task", job.task, models.TASKS)


def _check_own_module(job: Job) -> None:
    """A LightningModule has a loss, an optimizer and a schedule of its own.

    Raises:
        ConfigError: the job gives it others, which would not be used.
    """
    if not isinstance(job.model, pl.LightningModule):
        return
    own = ("task", "loss", "count", "optimizer", "optimizer_options", "learning_rate", "schedule", "warmup_steps")
    given = [
        name for name in (*own, "weight_decay") if getattr(job, name) != getattr(Job(None, None, max_steps=1), name)
    ]
    if given:
        raise ConfigError(f"a LightningModule decides by itself on {', '.join(given)}: set that in the module instead")


@dataclass(frozen=True)
class _Rows:
    """A job's rows as the model takes them, and how they are batched."""

    train: Any
    validation: Any
    collate: Callable[[list[Any]], Any]
    tokenizer: Any
    workers: int

    @classmethod
    def prepare(cls, job: Job, model: models.Model | None, source: sources.Source) -> _Rows:
        """Tokens for a language model given rows of text; all other rows as they are."""
        workers = source.workers or 0 if job.workers == "auto" else int(job.workers)
        is_text = model is not None and model.config is not None and hasattr(source.train, "column_names")
        if not is_text or source.collate is not None:
            collate = source.collate or default_collate
            return cls(_tensors(source.train), _tensors(source.validation), collate, job.processor, workers)
        tokenizer = job.processor

        def encoder() -> text.Encoder:
            nonlocal tokenizer
            tokenizer = text.need_tokenizer(job.processor, job.model)
            return text.Encoder(tokenizer, job.loss_on, job.sequence_length)

        train = text.prepare(source.train, encoder, "data")
        validation = None if source.validation is None else text.prepare(source.validation, encoder, "validation data")
        config = model.config if model is not None else None
        return cls(train, validation, text.Pad(text.pad_id(tokenizer, config)), tokenizer, workers)

    def loaders(
        self, order: Order, world: World, module: pl.LightningModule, device: str, folder: runs.RunFolder
    ) -> tuple[Loader, Loader | None]:
        """The loader for training, and the one for the rows held out where there are any."""

        def count(batch: Any, samples: int) -> float:
            return module.objective.items(batch, samples) if isinstance(module, ScaleModule) else samples

        shared: dict[str, Any] = {"workers": self.workers, "pin_memory": device == "cuda"}
        position = int((folder.state or {}).get("position", 0))
        training = Loader(self.train, self.collate, order, world.rank, count, position=position, **shared)
        if self.validation is None:
            return training, None
        each = order.micro_batch_size
        once = Order(len(self.validation), each * world.size, each, world.size, order.seed, shuffle=False)
        return training, Loader(self.validation, self.collate, once, world.rank, count, advances=False, **shared)


def _tensors(rows: Any) -> Any:
    """Hugging Face rows as tensors, which torch's own collator stacks."""
    return rows.with_format("torch") if hasattr(rows, "with_format") else rows


def _module(job: Job, model: models.Model | None, rows: _Rows, total_steps: int, recompute: bool) -> pl.LightningModule:
    """The user's own LightningModule, or theirs within ScaleKit's."""
    if model is None:
        if recompute:
            recompute_blocks(job.model)
        own: pl.LightningModule = job.model
        return own
    source = model.source

    def seeded() -> nn.Module:
        pl.seed_everything(job.seed, verbose=False)
        return source if isinstance(source, nn.Module) else source()

    settings = OptimizerSettings(
        job.optimizer, job.learning_rate, job.schedule, job.warmup_steps, job.weight_decay, job.optimizer_options or {}
    )
    built = source if isinstance(source, nn.Module) else seeded
    return ScaleModule(built, job.loss, settings, total_steps, job.count, rows.tokenizer, recompute)


def _plan(
    decision: Decision, engine: Engine, device: str, order: Order, total_steps: int, module: pl.LightningModule
) -> Plan:
    if total_steps < 1:
        raise ConfigError("the job has no steps: max_epochs must be above 0")
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
        samples=order.length,
        steps_per_epoch=order.steps_per_epoch,
        total_steps=total_steps,
        loss=module.describe_loss() if isinstance(module, ScaleModule) else "samples, by its own training_step",
        predicted=decision.predicted,
        reasons=decision.reasons,
    )


def _loggers(job: Job, folder: runs.RunFolder, plan: Plan, engine: Engine) -> list[Any]:
    given = list(job.logger) if isinstance(job.logger, (list, tuple)) else [job.logger]
    loggers: list[Any] = []
    for each in given:
        if each == "wandb":
            from scalekit.tracking.wandb import wandb_logger

            run_id = (folder.state or {}).get("wandb_run_id") or uuid.uuid4().hex[:8]
            engine.job_state["wandb_run_id"] = run_id
            config = {"job": job.resolved(), "plan": plan.as_dict()}
            loggers.append(wandb_logger(folder.path, folder.path.name, config, run_id))
        elif isinstance(each, str):
            raise ConfigError(f"logger={each!r} is unknown; give 'wandb', or a Lightning logger")
        elif each:
            loggers.append(each)
    return loggers


def _finish(logger: Any, trainer: pl.Trainer) -> None:
    """Ends a W&B run, which otherwise stays open until the process ends."""
    if trainer.is_global_zero and hasattr(logger.experiment, "finish"):
        logger.experiment.finish()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Lightning tells of devices and tips at every start; the plan has said what matters."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Neither is the user's to act on: torch's and Lightning's own use of each other's older names, and a
            # `validation_step` without rows held out.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|lightning)\.")
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
            warnings.filterwarnings("ignore", message=r"You defined a `validation_step` but have no")
            yield
    finally:
        lightning.setLevel(level)


def _let_rank_zero_speak(world: World) -> None:
    """Silences the other ranks' progress bars and remarks; their errors are still heard."""
    if world.rank == 0:
        return
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    logging.getLogger("scalekit").setLevel(logging.ERROR)


def _say(world: World, message: str) -> None:
    if world.rank == 0:
        print(message, flush=True)
