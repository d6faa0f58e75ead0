"""The optimizer step under way: its loss over all ranks, its time, and whether the ranks leave it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from scalekit.distributed.collectives import Collectives
from scalekit.errors import NonFiniteError
from scalekit.objectives.normalization import LossAccumulator, MicroBatch, StepLoss
from scalekit.strategies.stop_votes import StopVotes


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


@final
class GlobalBatch:
    """One global batch after another.

    Args:
        collectives: of the job's ranks.
        is_asked_to_stop: whether this rank was asked to.

    Attributes:
        is_stopping: whether the job stops, as the ranks have agreed in the latest step.
        seconds: from the step before to the latest one, with all that was between them; a mean over the ranks, and so the same
            on all of them.
    """

    def __init__(self, collectives: Collectives, is_asked_to_stop: Callable[[], bool]) -> None:
        self._collectives, self._is_asked_to_stop = collectives, is_asked_to_stop
        self._stop_votes = StopVotes(collectives.size, collectives.device)
        self._accumulator: LossAccumulator | None = None
        self._micro: MicroBatch | None = None
        self._micro_batches = 0  # that this rank has begun
        self._began = 0.0
        self._closed = time.monotonic()  # when the step before was; made as the first one begins
        self._is_skipped = False
        self.is_stopping = False
        self.seconds = 0.0

    def begin(self, micro: MicroBatch | None) -> None:
        """Begins a micro-batch."""
        self._micro, self._is_skipped = micro, False
        if micro is None:
            return
        if micro.first:
            self._micro_batches, self._began = 0, time.monotonic()
        self._micro_batches += 1

    def weigh(self, output: Any, accumulation: int, adds_up: bool) -> Any:
        """Gives a micro-batch's loss its weight in the global batch's; see `LossAccumulator.weigh`.

        Args:
            output: what `training_step` returned; None where it leaves its batch out.
            accumulation: by what Lightning divides the loss.
            adds_up: whether losses are sums, not means.
        """
        self._is_skipped = output is None
        if self._micro is None or output is None:
            return output
        if self._accumulator is None:
            ranks = self._collectives
            self._accumulator = LossAccumulator(ranks.size, accumulation, ranks.sum, ranks.device, adds_up)
        return self._accumulator.weigh(output, self._micro)

    def close(self) -> StepLoss | None:
        """The step's loss, before anything has been updated by it; None where it is not known.

        Raises:
            NonFiniteError: on every rank, with the rows that did it.
        """
        if self._accumulator is None or self._micro is None or self._is_skipped:
            self._note(*self._summed(float(self._is_asked_to_stop()), self._elapsed()))
            return None
        if self._collectives.device.type == "cuda":
            # As reading the loss does in a moment; the step has taken until then.
            torch.cuda.synchronize(self._collectives.device)
        loss = self._accumulator.close(
            self._is_asked_to_stop(), _milliseconds(self._began), self._elapsed(), self._micro_batches
        )
        self._note(loss.votes, loss.elapsed)
        self._stop_votes.plan(loss.milliseconds, loss.micro_batches)
        if not math.isfinite(loss.loss):
            rows = sorted(row for part in self._collectives.gather(self._accumulator.unfinite_rows()) for row in part)
            raise NonFiniteError(
                f"the loss of step {self._micro.step} is {loss.loss}; it comes from the rows {rows[:16]}"
                f"{' ...' if len(rows) > 16 else ''} of the data. Nothing was updated by it; the last checkpoint stands"
            )
        return loss

    def close_manual(self, output: Any, micro: MicroBatch) -> float | None:
        """The loss of a step that a module has optimized by itself; None where no rank's step returns one."""
        loss = output.get("loss") if isinstance(output, Mapping) else output
        is_told = isinstance(loss, Tensor) and loss.numel() == 1
        items = micro.items if is_told else 0.0
        own = float(loss) * items if isinstance(loss, Tensor) and items else 0.0
        votes, elapsed, items, total = self._summed(float(self._is_asked_to_stop()), self._elapsed(), items, own)
        self._note(votes, elapsed)
        return total / items if items else None

    def _summed(self, *numbers: float) -> list[float]:
        """Numbers, each added up over the ranks."""
        told = torch.tensor(numbers, dtype=torch.float64, device=self._collectives.device)
        return [float(each) for each in self._collectives.sum(told).tolist()]

    def _note(self, votes: float, elapsed: float) -> None:
        """Notes what the ranks have agreed on, from its sums over them."""
        self.is_stopping, self.seconds = votes > 0, elapsed / 1000 / self._collectives.size

    def _elapsed(self) -> int:
        """Milliseconds since the step before was closed here; of the first one, since it began."""
        before, self._closed = self._closed, time.monotonic()
        return _milliseconds(before)

    def leaves(self) -> bool:
        """Whether all ranks leave the step, since the job was asked to stop; asked before each micro-batch."""
        if self._accumulator is None or self._micro is None:
            return False
        done = 0 if self._micro.last else self._micro_batches
        return self._stop_votes.leave(done, self._is_asked_to_stop)

    @property
    def may_be_left(self) -> bool:
        """Whether the next step is one that ranks may leave, so that what the last one left has to be kept."""
        return self._stop_votes.are_due

    def check_norm(self, norm: float | None, precision: str) -> None:
        """Whether the gradient norm is finite, as it must be but where losses are scaled.

        Raises:
            NonFiniteError: it is not.
        """
        if norm is None or math.isfinite(norm) or precision == "16-mixed":
            return
        step = "this step" if self._micro is None else f"step {self._micro.step}"
        raise NonFiniteError(f"the gradient norm of {step} is {norm}, although its loss is finite")


def _milliseconds(since: float) -> int:
    """Whole ones, which add up to the same in any order, on every rank."""
    return int(1000 * (time.monotonic() - since))
