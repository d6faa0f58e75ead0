"""What a job is refused for before it is trained, beside what its settings tell by themselves."""

from __future__ import annotations

import lightning.pytorch as pl

from scalekit.checkpoint.retention import Rotation
from scalekit.config.precision import resolve_precision
from scalekit.config.settings import Job
from scalekit.config.strategy import StrategyConfig
from scalekit.data.prepared import Rows
from scalekit.distributed.world import World
from scalekit.errors import BatchSizeError, ConfigError, DataError, shown
from scalekit.hardware import slow_precision_warning
from scalekit.loggers.factory import check_loggers
from scalekit.loops import lightning_support
from scalekit.objectives.function_loss import FunctionLoss
from scalekit.objectives.metrics import metrics_of
from scalekit.optim.optimizers import build_schedule, check_optimizer
from scalekit.strategies.factory import build_strategy
from scalekit.training.module_factory import objective_of
from scalekit.utils.log import warn


def check_before_data(job: Job, world: World, device: str) -> None:
    """What is wrong with a job before its data is read.

    Raises:
        ScaleKitError: a setting that cannot be had on these processes, or beside the model.
    """
    world.check(job.devices, job.num_nodes)
    _check_with_libraries(job, world)
    precision = resolve_precision(job.precision, device) if job.precision != "auto" else "32-true"
    lightning_support.check_anywhere(job)
    if job.strategy != "auto":
        config = StrategyConfig.load(job.strategy)
        if (why := lightning_support.refusal(job, config)) is not None:
            raise ConfigError(why)
        build_strategy(config, precision, device, world)
    # Rank 0 measures alone, so that ranks do not disturb each other.
    slow = slow_precision_warning(job.precision, device) if world.rank == 0 else None
    if slow is not None:
        warn(slow)


def _check_with_libraries(job: Job, world: World) -> None:
    """What a job's own checks cannot tell without the libraries that are asked here, before data is read.

    Raises:
        ScaleKitError: a setting that one of them refuses.
    """
    if job.global_batch_size != "auto":
        check_split(job, world)
    check_loggers(job)
    metrics_of(job.metrics)
    Rotation.of(job, evaluates=True)
    if isinstance(job.model, pl.LightningModule):
        return
    offloads = job.strategy != "auto" and "optimizer" in StrategyConfig.load(job.strategy).offload
    check_optimizer(job.optimizer, job.learning_rate, job.weight_decay, job.optimizer_options or {}, offloads)
    build_schedule(job.lr_schedule, job.warmup_steps, job.max_steps or job.warmup_steps + 1)


def check_split(job: Job, world: World) -> None:
    """Whether a global batch can be split.

    Raises:
        BatchSizeError: it cannot.
    """
    share = world.size * (1 if isinstance(job.micro_batch_size, str) else job.micro_batch_size)
    if job.batch % share:
        raise BatchSizeError.unsplittable(job.batch, share // world.size, world.size)
    is_whole = job.micro_batch_size in ("auto", job.batch // world.size)
    if not is_whole and (job.loss_couples is not None or is_manual(job)):
        why = "manual optimization" if job.loss_couples is None else f"loss_couples={shown(job.loss_couples)}"
        raise BatchSizeError(
            f"{why}: a rank must run its share of the batch at once, so leave out micro_batch_size, or make it "
            f"global_batch_size / ranks = {job.batch // world.size}"
        )


def is_manual(job: Job) -> bool:
    """Whether the job's module runs backward passes and optimizers by itself, once a batch."""
    return isinstance(job.model, pl.LightningModule) and not job.model.automatic_optimization


def check_prepared(job: Job, rows: Rows) -> None:
    """Whether the rows are such that everything that is asked of them can be had.

    Raises:
        ConfigError: something cannot.
    """
    job.check_validation(rows.validation is not None)
    Rotation.of(job, rows.validation is not None)
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
        objective = objective_of(job)
        if isinstance(objective, FunctionLoss):
            objective.check(batch, samples=2)
