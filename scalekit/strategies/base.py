"""What every strategy does beside Lightning's own: initial weights, the loss contract, evaluations.

Lightning's loop stays in charge: it runs the micro-batches, decides when the optimizer steps, and calls the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekit.checkpoint.model_state import holds_adapter, is_whole
from scalekit.config.precision import Dtypes, dtypes_for
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import ModelError
from scalekit.models.initialization import build_module, build_to_fill
from scalekit.objectives.lightning_step import Heard
from scalekit.objectives.normalization import MicroBatch, StepLoss
from scalekit.strategies.buffer_sync import Buffers
from scalekit.strategies.checks import check_closures, check_may_skip
from scalekit.strategies.current_rows import CurrentRows
from scalekit.strategies.evaluation_totals import EvaluationTotals
from scalekit.strategies.global_batch import GlobalBatch, StepRecord
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.precision import plugin
from scalekit.strategies.sharded_checkpoints import CheckpointedStrategy
from scalekit.strategies.uneven_ranks import as_it_was, without_rows
from scalekit.utils.randomness import seed_micro_batch

T = TypeVar("T")


class BaseStrategy(CheckpointedStrategy):
    """The part that all strategies share; each adds one of Lightning's strategies to it.

    Args:
        spec: the strategy file.
        precision: one of `precision.PRECISIONS`.
        device_type: ``"cuda"`` or ``"cpu"``.
        job: that it runs.
        options: for the Lightning strategy.
    """

    def __init__(self, spec: StrategyConfig, precision: str, device_type: str, job: JobContext, **options: Any) -> None:
        super().__init__(job, **options)
        self.precision_plugin = plugin(precision, device_type)
        self.spec = spec
        self.precision = precision
        self.close_epoch: Callable[[], None] = lambda: None  # when callbacks and schedules are through with one
        self.last_step: StepRecord | None = None
        self.rows = CurrentRows(lambda: self._loader)
        self.stands_in = False  # whether a step runs rows that count nothing
        self._stand_in: Any = None
        self._backwards = 0
        self._learning_rate: float | None = None  # of the first optimizer that a module has stepped by itself
        self.trained_by: BaseStrategy | None = None  # has placed the module, which is not placed again
        self.overheard: dict[str, Heard] | None = None  # what rows that stand in would log, where somebody listens
        self.logged_sums: frozenset[str] = frozenset()  # of what a module logs, by hook and name, sums over the batch
        self.predicted: list[tuple[tuple[int, ...], Any]] = []  # of this rank's rows, by their places
        self._buffers: Buffers | None = None  # of more than one rank

    def take_over(self, trained_by: BaseStrategy) -> None:
        """Runs a module as another strategy has left it, without training."""
        self.trained_by, self.logged_sums, self.step = trained_by, trained_by.logged_sums, trained_by.step

    # -- initial weights --------------------------------------------------------------------------------------------

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Generator[None, None, None]:
        """Models are built as their own code says; where, `build` decides."""
        yield

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """See `tensor_init_context`: DeepSpeed's own would hand empty tensors to initialisers."""
        yield

    def build(self, builder: Callable[[], nn.Module]) -> nn.Module:
        """Builds the model with its weights on rank 0 alone, and where a checkpoint has all of them, on none.

        The other ranks build the same model on the meta device, and receive.
        """
        if self._rank:
            return build_module(builder, here=False)
        fills = self.initial_weights is not None and not holds_adapter(self.initial_weights)
        empty = build_to_fill(builder) if fills else None
        return empty if empty is not None and is_whole(empty) else build_module(builder, here=True)

    @property
    def dtypes(self) -> Dtypes:
        """The types that this strategy gives to everything, as its precision promises."""
        return dtypes_for(self.precision)

    # -- one global batch -------------------------------------------------------------------------------------------

    @property
    def is_manual(self) -> bool:
        """Whether the LightningModule runs backward passes and optimizers by itself."""
        return not self._module.automatic_optimization

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Moves a batch. Of rows that stand in for none, no hook sees anything: they are kept for the step alone."""
        moved = super().batch_to_device(batch, device, dataloader_idx)
        if self.rows.next_count:
            return moved
        self._stand_in = moved
        return without_rows(moved)

    def to_device(self, batch: Any) -> Any:
        """Moves a batch that no loader has given."""
        return super().batch_to_device(batch)

    @cached_property
    def global_batch(self) -> GlobalBatch:
        """The optimizer step under way."""
        return GlobalBatch(self.collectives, self.job.is_asked_to_stop)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.whole_step.is_under_way = True
        self.global_batch.begin(self.rows.begin(trains=True))

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the rows of a micro-batch; more than once where an optimizer evaluates its closure several times."""
        micro = self.rows.micro
        if micro is None:
            return super().training_step(*args, **kwargs)
        seed_micro_batch(micro.seed, micro.step, micro.index, self.root_device)
        if micro.items:
            output = super().training_step(*args, **kwargs)
        else:
            with self.standing_in():
                found = super().training_step(self._stand_in, *args[1:], **kwargs)
                output = found["loss"] if isinstance(found, Mapping) and not self.is_manual else found
        if self.is_manual:
            self._close_manual_step(output, micro)
            return output
        if output is None:
            check_may_skip(self._called, self._parts)
        return self.global_batch.weigh(output, self._module.trainer.accumulate_grad_batches, self._adds_up)

    @property
    def _parts(self) -> int:
        """In how many a global batch is run, over ranks and accumulation."""
        return self._world_size * int(self._module.trainer.accumulate_grad_batches)

    def _close_global_batch(self) -> StepLoss | None:
        return self.global_batch.close()

    @contextmanager
    def standing_in(self) -> Generator[None, None, None]:
        """Runs rows that count nothing: what a step does to a module beside its gradients is undone, and nothing is logged."""
        before, self.stands_in = self.stands_in, True
        try:
            with as_it_was(self._module):
                yield
        finally:
            self.stands_in = before
            self._stand_in = None

    @property
    def _called(self) -> str:
        """The name of the module's class, as its user has written it."""
        return type(self._module).__name__.removeprefix("FSDP")

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        learning_rate = float(optimizer.param_groups[0]["lr"])
        if self.is_manual:
            self._learning_rate = learning_rate if self._learning_rate is None else self._learning_rate
            return super().optimizer_step(optimizer, closure, model, **kwargs)
        loss: StepLoss | None = None

        def closure_then_loss() -> Any:
            nonlocal loss
            result = closure()
            loss = self._close_global_batch()
            return result

        result = super().optimizer_step(optimizer, closure_then_loss, model, **kwargs)
        self._end_step(None if loss is None else loss.loss, 0 if loss is None else loss.items, learning_rate)
        # Lightning would keep them through the next forward pass, beside its activations.
        optimizer.zero_grad()
        return result

    def _end_step(self, loss: float | None, items: float, learning_rate: float) -> None:
        norm = self.precision_plugin.gradient_norm  # type: ignore[attr-defined]
        self.last_step = StepRecord(loss, items, learning_rate, None if norm is None else float(norm))
        self.step, self.whole_step.is_under_way = self.step + 1, False
        self.global_batch.check_norm(self.last_step.gradient_norm, self.precision)
        if self._buffers is not None:
            self._buffers.after_step()
        if self.average is not None:
            self.average.update()

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning's own. A module's own backward passes are weighed by the rows that this rank has of the global batch."""
        micro = self.rows.micro
        if micro is not None and self.is_manual:
            self._backwards += 1
            share = micro.items * self._world_size / micro.samples
            closure_loss = closure_loss if share == 1 else closure_loss * share
        found: Tensor = super().backward(closure_loss, optimizer, *args, **kwargs)
        return found

    def _close_manual_step(self, output: Any, micro: MicroBatch) -> None:
        """Ends a global batch of a module that has optimized by itself."""
        if self._world_size > 1 and not self._backwards:
            raise ModelError(
                f"{self._called} ran no self.manual_backward(loss) in its step, so that gradients are not those of "
                "all ranks: call it in the place of loss.backward()"
            )
        loss = self.global_batch.close_manual(output, micro)
        rate = self.optimizers[0].param_groups[0]["lr"] if self._learning_rate is None else self._learning_rate
        self._end_step(loss, micro.samples, rate)
        self._backwards, self._learning_rate = 0, None

    def on_train_start(self) -> None:
        super().on_train_start()
        check_closures(map(self.shards.inner_optimizer, self.optimizers), self._parts)
        if self._world_size > 1:
            self._buffers = Buffers(self._module, self.root_device, self.collectives.gather)

    @property
    def is_shared(self) -> bool:
        """Whether no rank has the whole model, so that all must run it together."""
        return "parameters" in self.spec.shards

    def sync_buffers(self) -> None:
        """Every rank calls it before the model is saved; evaluations do by themselves."""
        if self._buffers is not None:
            self._buffers.sync_buffers()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.sync_buffers()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluated.count(*self._without_training(super().validation_step, *args, **kwargs))

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluated.count(*self._without_training(super().test_step, *args, **kwargs))

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        output, micro = self._without_training(super().predict_step, *args, **kwargs)
        if micro is not None and micro.items:
            self.predicted.append((micro.rows, move_data_to_device(output, "cpu")))
        return output

    def _without_training(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, MicroBatch | None]:
        """Runs a step on the rows that come next, with what is known of them; None where they stand in and none are needed."""
        micro = self.rows.begin()
        if micro is None or micro.items:
            return step(*args, **kwargs), micro
        if self.job.scores is None and not self.is_shared:
            return None, micro  # rows that another rank counts are nothing for a user's own metrics
        with self.standing_in():
            return step(self._stand_in, *args[1:], **kwargs), micro

    def run(self, function: Callable[[], T]) -> T:
        """Runs the model outside of Lightning's steps, with what precision and shards need around it. Every rank calls it."""
        with torch.no_grad(), self.precision_plugin.forward_context():
            return self._redirect("call", function) if hasattr(self._module, "call") else function()

    def run_step(self, name: str, *args: Any) -> Any:
        """Runs a module's own step, such as `training_step`, outside of Lightning's loop; see `run`."""
        with torch.no_grad(), self.precision_plugin.forward_context():
            return self._redirect(name, *args)

    def _redirect(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Runs a method of the module's within what the strategy hangs on its forward pass."""
        return getattr(self._module, name)(*args, **kwargs)

    def close_evaluation(self) -> dict[str, Any] | None:
        """Loss and scores over the whole validation set, each row once; None where `validation_step` returns no loss."""
        return self._evaluated.close(self._adds_up)

    @property
    def _adds_up(self) -> bool:
        """Whether losses are sums."""
        return self.job.item_count is not None and self.job.item_count().is_sum

    @cached_property
    def _evaluated(self) -> EvaluationTotals:
        return EvaluationTotals(self.collectives, self.job.scores)

    @property
    def _loader(self) -> Any:
        """That of the loop under way."""
        trainer = self._module.trainer
        if trainer.training:
            return trainer.train_dataloader
        if trainer.testing:
            return trainer.test_dataloaders
        return trainer.predict_dataloaders if trainer.predicting else trainer.val_dataloaders
