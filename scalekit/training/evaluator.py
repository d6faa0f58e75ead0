"""What a trained model makes of other rows: its loss and scores, and its predictions, on the processes that trained it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, final

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from scalekit.config.settings import Job
from scalekit.config.strategy import StrategyConfig
from scalekit.data.loaders import loader_once
from scalekit.data.loading.map_loader import Loader
from scalekit.data.pipeline import DataPipeline
from scalekit.data.prepared import held_out
from scalekit.data.sources.read import Source, read_once
from scalekit.distributed.world import World, all_gather_object, device_type
from scalekit.errors import ConfigError, ModelError, shown
from scalekit.loggers.factory import check_loggers
from scalekit.loops import make_trainer
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.factory import build_strategy
from scalekit.utils.log import job_log, log

_STEPS = {"validate": "validation_step", "test": "test_step", "predict": "predict_step"}


@final
@dataclass(frozen=True)
class Evaluator:
    """Runs rows through a module as its job has left it. Every rank calls each method.

    Attributes:
        job: that trained it.
        pipeline: of the job's rows to the model.
        held_out: the job's own rows that it was not trained on, or None.
        module: with its weights; under a sharded strategy each rank has its parts.
        strategy: that trained it; or one that has run nothing yet.
        micro_batch_size: rows that a rank runs at once.
        callbacks: beside the job's.
    """

    job: Job
    pipeline: DataPipeline
    held_out: Any
    module: pl.LightningModule
    strategy: BaseStrategy
    micro_batch_size: int
    callbacks: Sequence[pl.Callback] = ()

    def score(self, stage: str, data: Any) -> dict[str, Any]:
        """Loss, scores and logged values over rows, each counted once.

        Args:
            stage: ``"validate"`` or ``"test"``.
            data: None for the job's validation set.
        """
        with job_log(World.from_environment().rank, self.job.verbose):
            strategy, trainer = self._run(stage, data)
            logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
            found = {**logged, **(strategy.close_evaluation() or {})}
            told = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            log(stage, told or f"{type(self.module).__name__}.{_STEPS[stage]} has logged and returned no number")
        return found

    def predict(self, data: Any) -> list[Any]:
        """What the model makes of each row, in the order of `data`, on the CPU."""
        with job_log(World.from_environment().rank, self.job.verbose):
            strategy, _ = self._run("predict", data)
        mine = {place: each for rows, output in strategy.predicted for place, each in _by_row(rows, output)}
        found = {
            place: each for part in all_gather_object(mine, World.from_environment()) for place, each in part.items()
        }
        return [found[place] for place in sorted(found)]

    def _run(self, stage: str, data: Any) -> tuple[BaseStrategy, pl.Trainer]:
        self._check(stage)
        world, device = World.from_environment(), device_type()
        strategy = self._strategy(device, world)
        loader = self._loader(stage, data, strategy, world, device)
        trainer = make_trainer(
            strategy,
            device,
            world,
            [*self.job.callbacks, *self.callbacks],
            data if isinstance(data, pl.LightningDataModule) else self.job.data,
            logger=[each for each in check_loggers(self.job) if _is_open(each)] or False,
        )
        options = {"return_predictions": False} if stage == "predict" else {"verbose": False}
        with ExitStack() as ending:
            ending.callback(setattr, self.module, "_trainer", self.module._trainer)
            getattr(trainer, stage)(self.module, loader, **options)
        return strategy, trainer

    def _check(self, stage: str) -> None:
        """Whether a user's own module has the step that is asked for.

        Raises:
            ConfigError: it has none.
        """
        step = _STEPS[stage]
        if stage != "predict" and not is_overridden(step, self.module):
            raise ConfigError(f"{type(self.module).__name__} has no {step}, which run.{stage} would run: write it")

    def _strategy(self, device: str, world: World) -> BaseStrategy:
        """One that runs the module where it is: without an optimizer to share out, whole parameters are all that there is."""
        if self.strategy.lightning_module is None:
            return self.strategy
        spec = self.strategy.spec
        if spec.offload.get("parameters") == "nvme":
            raise ConfigError(
                f"{spec.name} clears its drives when a job ends, so that no rows are run after it: give the job `validation`, "
                "or open its checkpoint under another strategy"
            )
        if spec.engine == "deepspeed" and not self.strategy.is_shared:
            spec = StrategyConfig.load("ddp" if world.size > 1 else "single")
        strategy = build_strategy(
            spec, self.strategy.precision, device, world, replace(self.strategy.job, checkpoint=None)
        )
        strategy.take_over(self.strategy)
        return strategy

    def _loader(self, stage: str, data: Any, strategy: BaseStrategy, world: World, device: str) -> Loader:
        pipeline, rows, size = self.pipeline, self.held_out, self.micro_batch_size
        accumulation = max(self.job.batch // (size * world.size), 1)
        if data is not None:
            if stage == "predict":
                pipeline = replace(pipeline, job=replace(self.job, on_bad_row="error"))  # each row is answered
            source = read_once(data, stage, pipeline.job.on_bad_row)
            if stage == "predict":
                source = pipeline.labelled(source)
            rows = made_ready(pipeline, source)
            if source.collate is not None:
                pipeline = replace(pipeline, source=source)
            if source.batch_size is not None:
                size, accumulation = max(source.batch_size // world.size, 1), 1
        if rows is None:
            raise ConfigError(f"run.{stage}: the job has no validation set, so give rows: run.{stage}(data)")
        count = strategy.job.item_count

        def items(batch: Any, samples: int) -> float:
            return samples if count is None or stage == "predict" else count().of(batch, samples)

        return loader_once(rows, pipeline, size, accumulation, world, items, device == "cuda")


def made_ready(pipeline: DataPipeline, source: Source) -> Any:
    """A source's rows in the way of a job's own; how many are left out, is said."""
    rows = held_out(pipeline, source.parts)
    left_out = len(source.skipped) + sum(len(part.rows) for part in source.parts) - len(rows)
    if left_out:
        log("skipped", f"{left_out:,} rows that cannot be used")
    return rows


def _is_open(logger: Any) -> bool:
    """Whether a logger still takes numbers; a W&B run has ended with its job."""
    return isinstance(logger, Logger) and not isinstance(logger, WandbLogger)


def _by_row(rows: Sequence[int], output: Any) -> list[tuple[int, Any]]:
    """What a batch's prediction says of each of its rows.

    Raises:
        ModelError: it is nothing that has an entry for each row.
    """
    return list(zip(rows, _split(output, len(rows)), strict=True))


def _split(output: Any, count: int) -> list[Any]:
    if isinstance(output, Tensor) and output.ndim and len(output) == count:
        return [each.clone() for each in output.detach().cpu().unbind(0)]  # a view would travel with its whole batch
    if isinstance(output, Mapping) and output:
        parts = {name: _split(each, count) for name, each in output.items()}
        return [{name: part[place] for name, part in parts.items()} for place in range(count)]
    if isinstance(output, tuple) and output:
        return list(zip(*(_split(each, count) for each in output), strict=True))
    if isinstance(output, list) and len(output) == count:
        return [each.detach().cpu().clone() if isinstance(each, Tensor) else each for each in output]
    raise ModelError(
        f"predict_step gave {shown(output)} for a batch of {count} rows: return a tensor with a row for each, a list of as "
        "many, or a mapping or tuple of those"
    )
