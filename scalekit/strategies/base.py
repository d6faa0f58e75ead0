"""What every strategy does beside Lightning's own: initial weights, the loss contract, evaluations.

Lightning's loop stays in charge: it runs the micro-batches, decides when the
optimizer steps, and calls the hooks; the strategy answers it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekit.checkpoint.model_state import holds_adapter, is_whole
from scalekit.config.precision import Dtypes, dtypes_for
from scalekit.config.strategy import StrategyConfig
from scalekit.errors import ConfigError, ModelError, NonFiniteError
from scalekit.models.initialization import build_module, build_to_fill
from scalekit.objectives.lightning_step import Heard
from scalekit.objectives.normalization import LossAccumulator, MicroBatch, StepLoss
from scalekit.strategies.buffer_sync import Buffers
from scalekit.strategies.job_context import JobContext
from scalekit.strategies.precision import plugin
from scalekit.strategies.sharded_checkpoints import CheckpointedStrategy
from scalekit.strategies.stop_votes import StopVotes
from scalekit.strategies.uneven_ranks import as_it_was, without_rows

T = TypeVar("T")


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step came to, the same on every rank.

    Attributes:
        loss: over the whole global batch; None for a LightningModule that optimizes by hand.
        items: what the loss is a mean over.
        learning_rate: the first parameter group's, as the step used it.
        gradient_norm: over all parameters, before clipping; None where the strategy never sees it.
    """

    loss: float | None
    items: float
    learning_rate: float
    gradient_norm: float | None


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
        self.is_stopping = False  # what the ranks have agreed on, in the latest step
        self.last_step: StepRecord | None = None
        self._accumulator: LossAccumulator | None = None
        self._micro: MicroBatch | None = None
        self.stands_in = False  # whether a step runs rows that count nothing
        self.rows_of_pass: int | None = None  # that this rank has run, of the training or evaluation under way
        self.micro_batch = 0  # the one under way, by its place in the global batch
        self._stand_in: Any = None
        self._is_skipped = False  # the batch under way, by a `training_step` that returned None
        self._backwards = 0
        self._learning_rate: float | None = None  # of the first optimizer that a module has stepped by itself
        self.own_rows = 0  # of the micro-batch under way, that count
        self.trained_by: BaseStrategy | None = None  # has placed the module, which is not placed again
        self.overheard: dict[str, Heard] | None = None  # what rows that stand in would log, where somebody listens
        self.logged_sums: frozenset[str] = frozenset()  # of what a module logs, by hook and name, sums over the batch
        self.batch_rows = 0  # of the batch under way, over all ranks
        self.predicted: list[tuple[tuple[int, ...], Any]] = []  # of this rank's rows, by their places
        self._micro_batches = 0  # of the step under way, that this rank has begun
        self._step_began = 0.0
        self._buffers: Buffers | None = None  # of more than one rank

    def take_over(self, trained_by: BaseStrategy) -> None:
        """Runs a module as another strategy has left it, without training."""
        self.trained_by = trained_by
        self.logged_sums, self.step = trained_by.logged_sums, trained_by.step

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
        if self.has_rows:
            return moved
        self._stand_in = moved
        return without_rows(moved)

    def to_device(self, batch: Any) -> Any:
        """Moves a batch that no loader has given."""
        return super().batch_to_device(batch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._micro = micro = self._consume(self._loader)
        self._is_skipped = False
        if micro is None:
            return
        self.own_rows = len(micro.rows) if micro.items else 0
        self.batch_rows = micro.samples
        self.micro_batch = micro.index
        self.rows_of_pass = (self.rows_of_pass or 0) + self.own_rows
        if micro.first:
            self._micro_batches, self._step_began = 0, time.monotonic()
        self._micro_batches += 1

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the rows of a micro-batch; more than once where an optimizer evaluates its closure several times."""
        micro = self._micro
        if micro is None:
            return super().training_step(*args, **kwargs)
        seed_micro_batch(micro, self.root_device)
        if micro.items:
            output = super().training_step(*args, **kwargs)
        else:
            with self.standing_in():
                found = super().training_step(self._stand_in, *args[1:], **kwargs)
                output = found["loss"] if isinstance(found, Mapping) and not self.is_manual else found
        if self.is_manual:
            self._close_manual_step(output, micro)
            return output
        self._is_skipped = output is None
        if self._is_skipped:
            self._check_may_skip()
            return None
        if self._accumulator is None:
            accumulation = self._module.trainer.accumulate_grad_batches
            self._accumulator = LossAccumulator(
                self._world_size, accumulation, self._sum, self.root_device, self._adds_up
            )
        return self._accumulator.weigh(output, micro)

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

    def _check_may_skip(self) -> None:
        """Whether a `training_step` may leave out its batch.

        Raises:
            ModelError: the batch is a part of a global batch, whose loss would be divided by rows that it does not have.
        """
        if self._world_size * self._module.trainer.accumulate_grad_batches > 1:
            raise ModelError(
                f"{self._called}.training_step returned None for a part of a global batch, which leaves its rows "
                "out after they were counted. Return a loss, such as 0 times the model's outputs, or train on one process with "
                "micro_batch_size=global_batch_size"
            )

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
        self.step += 1
        self._check_norm()
        if self._buffers is not None:
            self._buffers.after_step()
        if self.average is not None:
            self.average.update(self._trained_parts())

    # -- manual optimization ----------------------------------------------------------------------------------------

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning's own. A module's own backward passes are weighed by the rows that this rank has of the global batch."""
        micro = self._micro
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
        loss = output.get("loss") if isinstance(output, Mapping) else output
        is_told = isinstance(loss, Tensor) and loss.numel() == 1
        items = micro.items if is_told else 0.0
        told = [
            float(self.job.is_asked_to_stop()),
            items,
            float(loss) * items if isinstance(loss, Tensor) and items else 0.0,
        ]
        votes, items, total = self._sum(torch.tensor(told, dtype=torch.float64, device=self.root_device)).tolist()
        self.is_stopping = votes > 0
        rate = self.optimizers[0].param_groups[0]["lr"] if self._learning_rate is None else self._learning_rate
        self._end_step(total / items if items else None, micro.samples, rate)
        self._backwards, self._learning_rate = 0, None

    def on_train_start(self) -> None:
        super().on_train_start()
        self._check_closures()
        if self._world_size > 1:
            self._buffers = Buffers(self._module, self.root_device, self._gather)

    def _check_closures(self) -> None:
        """Whether optimizers may evaluate their closure several times, as LBFGS does.

        Raises:
            ConfigError: the closure is a part of the global batch alone, or its number of evaluations could differ by rank.
        """
        parts = self._world_size * self._module.trainer.accumulate_grad_batches
        if parts > 1 and any(
            isinstance(self.shards.inner_optimizer(each), torch.optim.LBFGS) for each in self.optimizers
        ):
            raise ConfigError(
                f"LBFGS evaluates the loss several times a step, and the global batch is in {parts} parts: train on one "
                "process with micro_batch_size=global_batch_size, or take another optimizer"
            )

    @property
    def is_shared(self) -> bool:
        """Whether no rank has the whole model, so that all must run it together."""
        return "parameters" in self.spec.shards

    @property
    def waited_seconds(self) -> float:
        """For rows of training data, so far."""
        return float(getattr(self._module.trainer.train_dataloader, "waited_seconds", 0.0))

    def sync_buffers(self) -> None:
        """Every rank calls it before the model is saved; evaluations do by themselves."""
        if self._buffers is not None:
            self._buffers.sync_buffers()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.sync_buffers()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluate(super().validation_step, *args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        return self._evaluate(super().test_step, *args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        output, micro = self._without_training(super().predict_step, *args, **kwargs)
        if micro is not None and micro.items:
            self.predicted.append((micro.rows, move_data_to_device(output, "cpu")))
        return output

    def _evaluate(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Runs a step over the validation set, and counts its loss and scores where it gives some."""
        output, micro = self._without_training(step, *args, **kwargs)
        counts = micro is None or micro.items > 0
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if micro is not None and isinstance(loss, Tensor):
            if counts:
                self._evaluated[0] += loss.detach().double() * micro.items
                self._evaluated[1] += micro.items
            if self.job.scores is not None:
                self.job.scores.update(output, counts)
        # Lightning would keep logits through the next micro-batch; what a user's own module returns is the user's.
        return output if self.job.scores is None else loss

    def _without_training(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, MicroBatch | None]:
        """Runs a step on the rows that come next, with what is known of them; None where they stand in and none are needed."""
        micro = self._consume(self._loader)
        counts = micro is None or micro.items > 0
        self.own_rows = len(micro.rows) if micro is not None and counts else 0
        self.batch_rows = micro.samples if micro is not None else 0
        self.rows_of_pass = (self.rows_of_pass or 0) + self.own_rows
        if counts:
            return step(*args, **kwargs), micro
        if self.job.scores is None and not self.is_shared:
            return None, micro  # rows that another rank counts are nothing for a user's own metrics
        with self.standing_in():
            return step(self._stand_in, *args[1:], **kwargs), micro

    def run(self, function: Callable[[], T]) -> T:
        """Runs the model outside of Lightning's steps, with what precision and shards need around it. Every rank calls it."""
        with torch.no_grad(), self.precision_plugin.forward_context():
            return function()

    def run_step(self, name: str, *args: Any) -> Any:
        """Runs a module's own step, such as `training_step`, outside of Lightning's loop; see `run`."""
        return self.run(lambda: getattr(self._module, name)(*args))

    def close_evaluation(self) -> dict[str, Any] | None:
        """Loss and scores over the whole validation set, each row once; None where `validation_step` returns no loss."""
        total, items = self._sum(self._evaluated).tolist()
        self._evaluated.zero_()
        if not items:
            return None
        loss = total if self._adds_up else total / items
        found = {"loss": loss, "items": int(items) if items == int(items) else items}
        return {**found, **(self.job.scores.close(loss) if self.job.scores is not None else {})}

    @property
    def _adds_up(self) -> bool:
        """Whether losses are sums."""
        return self.job.item_count is not None and self.job.item_count().is_sum

    @cached_property
    def _evaluated(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64, device=self.root_device)

    @property
    def _loader(self) -> Any:
        """That of the loop under way."""
        trainer = self._module.trainer
        if trainer.training:
            return trainer.train_dataloader
        if trainer.testing:
            return trainer.test_dataloaders
        return trainer.predict_dataloaders if trainer.predicting else trainer.val_dataloaders

    @property
    def has_rows(self) -> bool:
        """Whether the batch that is run next has rows that count, and none that stand in."""
        return not self.knows_rows or self._loader.next_known().items > 0

    @property
    def next_rows(self) -> tuple[int, ...]:
        """The places of the rows that are run next; none where they are not known."""
        return self._loader.next_known().rows if self.knows_rows else ()

    def _consume(self, loader: Any) -> MicroBatch | None:
        """What is known of the batch that is run next; None for a loader that is not ScaleKit's."""
        return loader.consume() if hasattr(loader, "consume") else None

    # -- what is logged ---------------------------------------------------------------------------------------------

    @property
    def knows_rows(self) -> bool:
        """Whether it is known which rows a batch has: the loader is ScaleKit's."""
        return hasattr(self._loader, "next_known")

    @property
    def ranks(self) -> int:
        """How many there are."""
        return self._world_size

    def agree(self, fingerprint: int, has_any: bool) -> tuple[bool, bool]:
        """Whether a number is the same on all ranks, and whether any of them has something."""
        told = torch.tensor([fingerprint, -fingerprint, int(has_any)], dtype=torch.int64, device=self.root_device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        largest, smallest, any_ = told.tolist()
        return largest == -smallest, bool(any_)

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, on every rank."""
        return self._gather(value)

    def gather_tensor(self, tensor: Tensor) -> Tensor:
        """Everybody's tensor, on every rank, shape [ranks, *tensor.shape]."""
        parts = [torch.empty_like(tensor) for _ in range(self._world_size)]
        torch.distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def attribute(self, name: str) -> Any:
        """A part of the LightningModule, by its dotted name."""
        return self._module.get_submodule(name)

    @cached_property
    def _stop_votes(self) -> StopVotes:
        return StopVotes(self._world_size, self.root_device)

    def leaves_step(self) -> bool:
        """Whether all ranks leave the step under way, since the job was asked to stop; asked before each micro-batch."""
        if self._accumulator is None or self._micro is None:
            return False
        done = 0 if self._micro.last else self._micro_batches
        return self._stop_votes.leave(done, self.job.is_asked_to_stop)

    @property
    def may_leave_step(self) -> bool:
        """Whether the next step is one that ranks may leave, so that what the last one left has to be kept."""
        return self._stop_votes.are_due

    def _close_global_batch(self) -> StepLoss | None:
        """The step's loss, before anything has been updated by it.

        Raises:
            NonFiniteError: on every rank, with the rows that did it.
        """
        if self._accumulator is None or self._micro is None or self._is_skipped:
            vote = torch.full((), float(self.job.is_asked_to_stop()), device=self.root_device)
            self.is_stopping = self._sum(vote).item() > 0
            return None
        if self.root_device.type == "cuda":
            torch.cuda.synchronize(
                self.root_device
            )  # as reading the loss does in a moment; the step has taken until then
        milliseconds = int(1000 * (time.monotonic() - self._step_began))
        loss = self._accumulator.close(self.job.is_asked_to_stop(), milliseconds, self._micro_batches)
        self.is_stopping = loss.votes > 0
        self._stop_votes.plan(loss.milliseconds, loss.micro_batches)
        if not math.isfinite(loss.loss):
            rows = sorted(row for part in self._gather(self._accumulator.unfinite_rows()) for row in part)
            raise NonFiniteError(
                f"the loss of step {self._micro.step} is {loss.loss}; it comes from the rows {rows[:16]}"
                f"{' ...' if len(rows) > 16 else ''} of the data. Nothing was updated by it; the last checkpoint stands"
            )
        return loss

    def _check_norm(self) -> None:
        norm = None if self.last_step is None else self.last_step.gradient_norm
        if norm is None or math.isfinite(norm) or self.precision == "16-mixed":
            return
        step = "this step" if self._micro is None else f"step {self._micro.step}"
        raise NonFiniteError(f"the gradient norm of {step} is {norm}, although its loss is finite")


def seed_micro_batch(micro: MicroBatch, device: torch.device) -> None:
    """Keys dropout by (seed, step, index of the micro-batch in its global batch): the same on any ranks, whatever came before.

    What Python and NumPy draw is keyed too, so that there is no state of a generator that a checkpoint would have to hold. Only
    the generators in use are seeded: `torch.manual_seed` takes milliseconds where there is no GPU.
    """
    key = _mix(micro.seed, micro.step, micro.index)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)


def _mix(*numbers: int) -> int:
    """A 63-bit hash of integers; SplitMix64's finaliser (Steele et al., OOPSLA 2014) over each in turn."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
