"""What a loss is a mean over, measured on the first rows, before anything is updated.

No name tells it: a model may shift its labels, ignore some, add its losses up, or take a mean over something else. But the loss
of a batch must be that of its parts, weighted by their items. So a few rows are run together and one by one, and what holds for
them of all that could be counted is what the loss is a mean over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scalekit.distributed.world import World, broadcast_object
from scalekit.errors import LossReductionError, NoLossError, ScaleKitError
from scalekit.objectives.batch_parts import Parts
from scalekit.objectives.constant_draws import ConstantDraws
from scalekit.objectives.counts import Counted, ItemCount, candidates
from scalekit.objectives.head_check import check_head
from scalekit.objectives.lightning_step import OwnStep
from scalekit.objectives.logged_sums import is_near, logged_sums
from scalekit.objectives.model_loss import ModelLoss
from scalekit.objectives.undisturbed import EXACT_TOLERANCE, LossOf, undisturbed
from scalekit.utils.log import log, warn
from scalekit.utils.randomness import keyed

_ROUNDING = 1e-6
"""A difference, as a share of the loss, that says nothing in any type."""

_WAYS_OUT_OF_OWN_STEP = (
    "Give `item_count=`, a function of a batch that counts what its loss is a mean over. A step that couples the samples of a "
    "batch, such as a contrastive one, needs whole global batches: one process, and micro_batch_size = global_batch_size. "
    "Where it gathers them itself, `item_count=` says so"
)

_WAYS_OUT = (
    "Give `item_count=`, a function of a batch that counts what its loss is a mean over, or a `loss=` of your own. A loss that "
    "couples the samples of a batch, such as a contrastive one, needs whole global batches: one rank, and "
    "micro_batch_size = global_batch_size; or a `loss=` with loss_couples='batch', which is given the samples of all ranks. "
    "Where the model gathers them itself, `item_count=` says so"
)


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        count: what the loss is a mean over; None where nothing holds.
        whole: the loss of the batch.
        each: those of its parts.
        samples: rows of each part; one by default.
    """

    count: ItemCount | None
    whole: float
    each: list[float]
    samples: tuple[int, ...] = ()

    def __str__(self) -> str:
        parts = ", ".join(f"{loss:.6g}" for loss in self.each)
        if self.samples:
            sizes = " and ".join(map(str, self.samples))
            return f"the loss of {sum(self.samples)} rows together is {self.whole:.6g}, and {parts} in parts of {sizes}"
        return f"the loss of {len(self.each)} rows together is {self.whole:.6g}, and {parts} one by one"


def measure(loss_of: LossOf, parts: Parts, counts: Sequence[ItemCount], tolerance: float = EXACT_TOLERANCE) -> Measured:
    """Finds the count that makes of the parts' losses that of the whole: the first of those that are about as near as any.

    Args:
        loss_of: gives the loss of a batch.
        parts: of a batch.
        counts: what could be counted, what is likely first.
        tolerance: how far off it may be, as a share of the loss.
    """
    whole, each = loss_of(parts.whole), [loss_of(part) for part in parts.each]
    scale = max(abs(whole), *(abs(loss) for loss in each), 1e-12)
    errors = [abs(_together(count, parts, each) - whole) / scale for count in counts]
    least = min(errors)
    good = max(3 * least, _ROUNDING if least <= _ROUNDING else _rounding([whole, *each]))
    found = next(count for count, error in zip(counts, errors, strict=True) if error <= good)
    return Measured(found if least <= tolerance else None, whole, each, parts.samples)


def _rounding(losses: Sequence[float]) -> float:
    """How much of a difference says nothing, as a share: of losses that a model gives in 16 bits, their last digit."""
    for dtype in (torch.bfloat16, torch.float16):
        if all(float(torch.tensor(loss, dtype=dtype)) == loss for loss in losses):
            return float(torch.finfo(dtype).eps)
    return _ROUNDING


def _together(count: ItemCount, parts: Parts, losses: Sequence[float]) -> float:
    """The loss that the contract would make of the parts', by a count; not a number where there is nothing to count."""
    items = [count.of(part, samples) for part, samples in zip(parts.each, parts.samples or cycle([1]), strict=False)]
    total = 1.0 if count.is_sum else sum(items)
    counted = [item * loss for item, loss in zip(items, losses, strict=True) if item]
    return math.fsum(counted) / total if total > 0 else math.inf


# -- on a job's own model ---------------------------------------------------------------------------------------------


@final
class ReductionCheck(Callback):
    """Measures what the loss is a mean over as the job runs it, on all ranks at once, and tells the objective.

    Args:
        rows: some of the training data's, the same on every rank.
        collate: makes a batch of them.
        splits: whether global batches are run in parts, over ranks or by accumulation.
        world: the job's processes.
        own: the step of a LightningModule of the user's; None where the objective is that of a `ScaleModule`.
        keeps_logits: whether the logits of evaluations are read, by metrics of the user's.
    """

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Any],
        splits: bool,
        world: World,
        own: OwnStep | None = None,
        keeps_logits: bool = False,
    ) -> None:
        self._keeps_logits = keeps_logits
        self._rows, self._collate, self._splits, self._world, self._own = rows, collate, splits, world, own

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before anything else of the model runs."""
        self.measure(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same, of a model that was trained by an earlier job."""
        self.measure(trainer, pl_module)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Every rank calls it.

        Raises:
            LossReductionError: nothing that could be counted holds, and global batches are run in parts.
        """
        strategy: Any = trainer.strategy
        objective: Any = self._own or pl_module.objective
        is_given = isinstance(objective.count, Counted)
        # A user's own step may do more than give a loss: it is not run where nothing depends on it.
        if len(self._rows) < 2 or ((is_given or self._own is not None) and not self._splits):
            return
        config = getattr(pl_module.model, "config", None) if self._own is None else None
        try:
            with keyed(0):
                parts = Parts.of(self._rows, self._collate, config, objective.count)
        except Exception as error:  # a collator of the user's, which may need several rows
            warn(
                f"the loss is taken for a mean over {objective.count}; one row alone makes no batch to measure it: {error}"
            )
            return
        counts = [objective.count] if is_given else candidates(parts.whole, config, objective.count)
        loss = self._loss_of_model if self._own is None else self._own.loss
        more: Parts | None = None
        try:
            # What an own step does with rows may depend on what they hold: its count is tried on more of them.
            more = None if self._own is None else Parts.in_two(self._rows, self._collate)
            found = self._agreed(_measured(strategy, pl_module, loss, parts, counts, more), counts)
        except Exception as error:
            if self._own is None or isinstance(error, ScaleKitError):
                raise
            warn(f"the loss is taken for a mean over samples; training_step could not be tried: {error}")
            found = None
        self._rows = ()
        if found is not None:
            self._tell(found, objective)
            if isinstance(objective, ModelLoss):
                objective.keeps_logits = self._keeps_logits
                if found.count is not None:
                    check_head(strategy, pl_module, parts.whole, parts.each[0], found.whole, self._world)
        if more is not None and self._splits:
            strategy.logged_sums = broadcast_object(logged_sums(strategy, pl_module, more), self._world)

    @staticmethod
    def _loss_of_model(strategy: Any, module: Any, batch: Any) -> Tensor:
        loss: Tensor = strategy.run(lambda: module.objective.outcome(module.model, batch).loss)
        return loss

    def _agreed(self, found: Measured | None, counts: Sequence[ItemCount]) -> Measured | None:
        """What rank 0 has found. A count travels by its place, since functions of the user's may not."""
        place = counts.index(found.count) if found is not None and found.count is not None else None
        told = broadcast_object(None if found is None else (place, found.whole, found.each, found.samples), self._world)
        if told is None:
            return None
        place, whole, each, samples = told
        return Measured(None if place is None else counts[place], whole, each, samples)

    def _tell(self, found: Measured, objective: Any) -> None:
        likely = objective.count
        if found.count is None and isinstance(likely, Counted):
            warn(
                f"{found}. Weighted by `item_count`, the single losses do not give the loss of the batch. The count is used as "
                "given; another micro_batch_size may give another loss"
            )
        elif found.count is None and self._splits:
            raise LossReductionError(
                f"{found}: whatever is counted, the loss of a global batch cannot be put together from its parts. "
                + (_WAYS_OUT if self._own is None else _WAYS_OUT_OF_OWN_STEP)
            )
        elif found.count is None:
            log("loss", f"{found}: it cannot be put together from parts. Here each global batch is run whole")
        elif found.count != likely:
            kind = "a sum over the batch" if found.count.is_sum else f"a mean over {found.count}"
            log("loss", f"{kind}, as measured, and not a mean over {likely}: {found}")
        objective.count = found.count or likely


def _measured(
    strategy: Any,
    module: Any,
    loss: Callable[[Any, Any, Any], Tensor],
    parts: Parts,
    counts: Sequence[ItemCount],
    more: Parts | None = None,
) -> Measured | None:
    """What holds; None where the loss says nothing, as one that is not finite.

    A model that draws random numbers while it evaluates, or has a loss in training alone, is run with constants for them.

    Args:
        strategy: the trainer's strategy.
        module: the LightningModule, which is left as it was.
        loss: of the strategy, the module and a batch.
        parts: of a batch.
        counts: what could be counted.
        more: parts on which a count must hold too, or where the first ones say nothing.
    """
    loss_of, tolerance = undisturbed(strategy, module, loss)
    with strategy.standing_in(), keyed(0):
        module.eval()
        try:
            is_drawn = not is_near(loss_of(parts.whole), loss_of(parts.whole), tolerance)
        except NoLossError:
            module.train()
            is_drawn = True
        with ConstantDraws() if is_drawn else nullcontext():  # type: ignore[no-untyped-call]
            found = measure(loss_of, parts, counts, tolerance)
            if more is not None and (found.count is not None or not _is_finite(found)):
                found = measure(loss_of, more, counts if found.count is None else [found.count], tolerance)
    return found if _is_finite(found) else None


def _is_finite(found: Measured) -> bool:
    return all(map(math.isfinite, (found.whole, *found.each)))
