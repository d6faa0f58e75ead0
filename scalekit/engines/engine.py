"""What every engine does beside Lightning's own strategy: initial weights, the loss contract, and checkpoints.

An engine is a Lightning strategy. Lightning's loop stays in charge: it runs the micro-batches, decides when the
optimizer steps, and calls the hooks; the engine answers it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import Strategy as LightningStrategy
from torch import Tensor
from torch.optim import Optimizer

from scalekit import strategies
from scalekit.average import Average
from scalekit.checkpoint import documents, load, optimizers
from scalekit.checkpoint.layout import AVERAGE
from scalekit.checkpoint.loops import resumed
from scalekit.checkpoint.model_files import ModelFormat
from scalekit.checkpoint.parts import Part, Slot, owned
from scalekit.checkpoint.save import Saver
from scalekit.checkpoint.writer import Outcome
from scalekit.dtypes import Dtypes, promised
from scalekit.engines.buffers import Buffers
from scalekit.engines.precision import plugin
from scalekit.errors import CheckpointError, NonFiniteError
from scalekit.loss import Ledger, MicroBatch, StepLoss
from scalekit.scores import Scores

T = TypeVar("T")


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step came to, the same on every rank.

    Attributes:
        loss: over the whole global batch; None for a LightningModule that optimizes by hand.
        items: what the loss is a mean over.
        learning_rate: the first parameter group's, as the step used it.
        gradient_norm: over all parameters, before clipping; None where the engine never sees it.
    """

    loss: float | None
    items: float
    learning_rate: float
    gradient_norm: float | None


class Engine(LightningStrategy):
    """The part that all engines share; each engine adds one of Lightning's strategies to it.

    Args:
        spec: the strategy file that is carried out.
        precision: one of `precision.PRECISIONS`.
        device_type: ``"cuda"`` or ``"cpu"``.
        options: for the Lightning strategy.
    """

    def __init__(self, spec: strategies.Strategy, precision: str, device_type: str, **options: Any) -> None:
        super().__init__(**options)
        self.precision_plugin = plugin(precision, device_type)
        self.spec = spec
        self.precision = precision
        self.initial_weights: Path | None = None
        self.average_decay: float | None = None
        self.average: Average | None = None
        self._averaged: dict[str, Tensor] = {}
        self.saves_in_background = False
        self.is_asked_to_stop: Callable[[], bool] = lambda: False  # this rank
        self.is_stopping = False  # what the ranks have agreed on, in the latest step
        self.turns_done: int | None = None  # micro-batches of this epoch before the job was resumed
        self.job_state: dict[str, Any] = {}
        self._resumed_from = Path()
        self.last_step: StepRecord | None = None
        self.scores: Scores | None = None  # of a `ScaleModule`
        self._ledger: Ledger | None = None
        self._micro: MicroBatch | None = None
        self._buffers: Buffers | None = None  # of more than one rank

    # -- initial weights --------------------------------------------------------------------------------------------

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Generator[None, None, None]:
        """Models are built as their own code says; where, `build` decides."""
        yield

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """See `tensor_init_context`: DeepSpeed's own would hand empty tensors to initialisers."""
        yield

    def builds_here(self) -> bool:
        """Whether this rank builds real weights. The others build the same model on the meta device and receive."""
        return self._rank == 0

    @property
    def dtypes(self) -> Dtypes:
        """The types that this engine gives to everything, as its precision promises."""
        return promised(self.precision)

    # -- one global batch -------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._micro = micro = self._consume(self._module.trainer.train_dataloader)
        if micro is None:
            return super().training_step(*args, **kwargs)
        seed_micro_batch(micro, self.root_device)
        output = super().training_step(*args, **kwargs)
        if output is None or not self._module.automatic_optimization:
            return output
        if self._ledger is None:
            accumulation = self._module.trainer.accumulate_grad_batches
            self._ledger = Ledger(self._world_size, accumulation, self._sum, self.root_device)
        return self._ledger.weigh(output, micro)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        learning_rate = float(optimizer.param_groups[0]["lr"])
        loss: StepLoss | None = None

        def closure_then_loss() -> Any:
            nonlocal loss
            result = closure()
            loss = self._close_global_batch()
            return result

        result = super().optimizer_step(optimizer, closure_then_loss, model, **kwargs)
        norm = self.precision_plugin.gradient_norm  # type: ignore[attr-defined]
        self.last_step = StepRecord(
            loss=None if loss is None else loss.loss,
            items=0 if loss is None else loss.items,
            learning_rate=learning_rate,
            gradient_norm=None if norm is None else float(norm),
        )
        self._check_norm()
        if self._buffers is not None:
            self._buffers.after_step()
        if self.average is not None:
            self.average.update(self._trained_parts())
        if self._module.automatic_optimization:
            # Lightning would keep them through the next forward pass, beside its activations.
            optimizer.zero_grad()
        return result

    def on_train_start(self) -> None:
        super().on_train_start()
        # What cannot be saved shows before the first step.
        self.weight_parts()
        if self._rank == 0:
            _ = self._files_beside
        if self._world_size > 1:
            self._buffers = Buffers(self._module, self.root_device, self._gather)
        if self.average_decay is not None:
            self._averaged = {
                name: tensor
                for f in self._format.families().values()
                for name, tensor in f.items()
                if tensor.requires_grad
            }
            self.average = Average(self.average_decay, self._trained_parts())
            if self.initial_weights is not None and (self.initial_weights / AVERAGE).is_dir():
                load.fill(self._average_parts(self.weight_parts()), self.initial_weights)

    def settle(self) -> None:
        """Every rank calls it before the model is saved; evaluations do by themselves."""
        if self._buffers is not None:
            self._buffers.settle()

    def on_validation_start(self) -> None:
        super().on_validation_start()
        self.settle()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        micro = self._consume(self._module.trainer.val_dataloaders)
        counts = micro is None or micro.items > 0
        if not counts and self.scores is None and not self.is_shared:
            return None  # rows that another rank counts are nothing for a user's own metrics
        output = super().validation_step(*args, **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if micro is not None and isinstance(loss, Tensor):
            if counts:
                self._evaluated[0] += loss.detach().double() * micro.items
                self._evaluated[1] += micro.items
            if self.scores is not None:
                self.scores.update(output, counts)
        # Lightning would keep logits through the next micro-batch; what a user's own module returns is the user's.
        return output if self.scores is None else loss

    def run(self, function: Callable[[], T]) -> T:
        """Runs the model outside of Lightning's steps, with what precision and shards need around it. Every rank calls it."""
        with torch.no_grad(), self.precision_plugin.forward_context():
            return function()

    def close_evaluation(self) -> dict[str, Any] | None:
        """Loss and scores over all rows held out, each counted once; None where `validation_step` returns no loss."""
        total, items = self._sum(self._evaluated).tolist()
        self._evaluated.zero_()
        if not items:
            return None
        found = {"loss": total / items, "items": int(items) if items == int(items) else items}
        return {**found, **(self.scores.close(total / items) if self.scores is not None else {})}

    @cached_property
    def _evaluated(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64, device=self.root_device)

    def _consume(self, loader: Any) -> MicroBatch | None:
        """What is known of the batch that is run next; None for a loader that is not ScaleKit's."""
        return loader.consume() if hasattr(loader, "consume") else None

    def _close_global_batch(self) -> StepLoss | None:
        """The step's loss, before anything has been updated by it.

        Raises:
            NonFiniteError: on every rank, with the rows that did it.
        """
        if self._ledger is None or self._micro is None:
            vote = torch.full((), float(self.is_asked_to_stop()), device=self.root_device)
            self.is_stopping = self._sum(vote).item() > 0
            return None
        loss = self._ledger.close(self.is_asked_to_stop())
        self.is_stopping = loss.votes > 0
        if not math.isfinite(loss.loss):
            rows = sorted(row for part in self._gather(self._ledger.unfinite_rows()) for row in part)
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

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.reduce(tensor.clone(), reduce_op="sum") if self._world_size > 1 else tensor

    def _gather(self, value: Any) -> list[Any]:
        if self._world_size == 1:
            return [value]
        parts: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(parts, value)
        return parts

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def weight_parts(self) -> dict[str, list[Part]]:
        """This rank's parts of what a checkpoint's model holds, by the stem of their files' names."""
        found = self._format.families()
        return {stem: [self._part(name, t) for name, t in tensors.items()] for stem, tensors in found.items()}

    def _trained_parts(self) -> list[Part]:
        """Of the weights that are averaged, what this rank saves."""
        parts = (self._part(name, tensor) for name, tensor in self._averaged.items())
        return list(owned(parts, self._rank, self._world_size))

    def _average_parts(self, parts: Mapping[str, Sequence[Part]]) -> dict[str, Sequence[Part]]:
        """What a checkpoint holds of the average: as of the model, but for the trained weights."""
        if self.average is None:
            return {}
        mine = {part.name: part for part in self.average.parts}

        def averaged(part: Part) -> Part:
            elsewhere = replace(part, data=torch.empty(0), everywhere=False)
            return mine.get(part.name, elsewhere) if part.name in self._averaged else part

        return {f"{AVERAGE}/{Path(stem).name}": list(map(averaged, family)) for stem, family in parts.items()}

    def _part(self, name: str, tensor: Tensor) -> Part:
        """This rank's part of a tensor of the model's; the whole, where no part of it is elsewhere."""
        return Part(name, tuple(tensor.shape), tensor.detach())

    def slots(self, optimizer: Optimizer) -> list[Slot]:
        """Where the optimizer's state of this rank's part of each parameter lies."""
        called = self._format.names()
        found = []
        for number, group in enumerate(self.inner_optimizer(optimizer).param_groups):
            for tensor in group["params"]:
                part = self._part(called[id(tensor)], tensor)
                place = (part.start, 0, part.data.numel(), part.everywhere)
                found.append(Slot(part.name, part.shape, tensor, number, *place))
        return found

    def inner_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The torch optimizer that holds this rank's state."""
        return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: no rank gathers what `save_checkpoint` takes in parts."""
        return {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Nothing: see `lightning_module_state_dict`."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Begins a checkpoint; every rank calls it. It is a folder, as `checkpoint.layout` has it.

        Args:
            checkpoint: what Lightning has collected.
            filepath: where it shall stand.
            storage_options: ``{"unwanted": [...]}``, checkpoints beside it that are deleted once it stands.
        """
        folder = Path(self.broadcast(str(filepath)))
        parts: dict[str, Sequence[Part]] = {**self.weight_parts()}
        parts |= self._average_parts(parts)
        settings = []
        for number, optimizer in enumerate(self.optimizers):
            found, setting = optimizers.describe(self.inner_optimizer(optimizer), self.slots(optimizer))
            parts |= {optimizers.stem(number, key): each for key, each in found.items()}
            settings.append(setting)
        checkpoint = {name: value for name, value in checkpoint.items() if name != "state_dict"}
        checkpoint["optimizer_states"] = settings
        checkpoint["scalekit"] = {**self.job_state, "position": self.position, **self._stream_state()}
        files = {**documents.written(checkpoint, "state"), **self._files_beside} if self._rank == 0 else {}
        if self.average is not None:
            beside = [(name, content) for name, content in files.items() if name.startswith("model/")]
            files |= {f"{AVERAGE}/{name.removeprefix('model/')}": content for name, content in beside}
        self.saver.save(folder, parts, files, (storage_options or {}).get("unwanted", ()))
        if not self.saves_in_background:
            self.finish_saving()

    def finish_saving(self) -> None:
        """Waits until the checkpoint that was begun stands; every rank calls it.

        Raises:
            CheckpointError: on every rank: it could not be written.
        """
        outcomes: list[Outcome] = self.broadcast(self.saver.outcomes(wait=True))
        if outcomes and outcomes[-1].done == "failed":
            raise CheckpointError(f"{outcomes[-1].folder} could not be saved: {outcomes[-1].why}")

    @cached_property
    def saver(self) -> Saver:
        """What writes this rank's parts."""
        return Saver(self._rank, self._world_size)

    @cached_property
    def _format(self) -> ModelFormat:
        return ModelFormat(self._module)

    @cached_property
    def _files_beside(self) -> dict[str, bytes]:
        return self._format.files_beside(getattr(self._module, "processor", None))

    def teardown(self) -> None:
        if "saver" in self.__dict__:
            self.saver.close()
            del self.saver
        super().teardown()

    def _stream_state(self) -> dict[str, Any]:
        """How far all ranks have read a stream; nothing where the data has places, of which the position is one."""
        loader: Any = self._module.trainer.train_dataloader
        if not hasattr(loader, "state"):
            return {}
        from scalekit.data.stream import merge

        return {"stream": merge(self._gather(loader.state()))}

    def restore_weights(self) -> None:
        """Fills the model with the weights of the checkpoint that the job goes on from, where there is one."""
        if self.initial_weights is not None:
            load.fill(self.weight_parts(), self.initial_weights)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        self._resumed_from = Path(checkpoint_path)
        found = {**load.state(self._resumed_from), "state_dict": {}}
        found["loops"]["fit_loop"] = resumed(self._module.trainer, found["loops"]["fit_loop"], self.turns_done)
        return found

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing: a checkpoint's weights are this job's initial weights, which `setup` has placed.

        Raises:
            CheckpointError: nobody told `setup` of the checkpoint, as with a Trainer of the user's own.
        """
        if self.initial_weights is None:
            raise CheckpointError(
                "a Trainer of your own restores no ScaleKit checkpoint by `ckpt_path`: set the strategy's `initial_weights` to "
                "the checkpoint's folder as well, or resume with scalekit.fit(resume=...)"
            )

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        for number, (optimizer, saved) in enumerate(pairs):
            inner = self.inner_optimizer(optimizer)
            optimizers.restore(inner, self.slots(optimizer), number, saved, self._resumed_from)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    def is_shared(self) -> bool:
        """Whether no rank has the whole model, so that all must run it together."""
        return "parameters" in self.spec.shards

    @property
    def waited_seconds(self) -> float:
        """For rows of training data, so far."""
        return float(getattr(self._module.trainer.train_dataloader, "waited_seconds", 0.0))

    @property
    def position(self) -> int:
        """Samples used so far; 0 where the data is not ScaleKit's."""
        return int(getattr(self._module.trainer.train_dataloader, "position", 0))

    # -- what Lightning knows as optional ---------------------------------------------------------------------------

    @property
    def _module(self) -> LightningModule:
        module = self.lightning_module
        if module is None:
            raise RuntimeError("the engine is not connected to a LightningModule yet")
        return module

    @property
    def _rank(self) -> int:
        return int(getattr(self, "global_rank", 0))

    @property
    def _world_size(self) -> int:
        return int(getattr(self, "world_size", 1))


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
