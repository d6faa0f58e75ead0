"""The loss contract: the loss of a step is the sum over its global batch, divided once by that batch's item count.

A model gives each micro-batch's loss as a mean over the micro-batch's items. A mean of such means is wrong wherever
micro-batches differ in their item counts (padding, masked labels, a short last batch). So each is weighted by its share
of the global batch's items, which are counted over all ranks before the first backward pass:

    loss = sum_m (items_m / items) * mean_m            with items = sum_m items_m, over all micro-batches m of the step

The losses of a model that gives sums are added up as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """What is known of a micro-batch beside its tensors.

    Attributes:
        items: what its loss is a mean over; 0 for a filler, which a rank runs when the others still have rows.
        local_items: the items of this rank's whole part of the global batch.
        samples: the rows of the global batch, over all ranks.
        is_whole: whether these are as many as in others, so that no rank is without rows.
        rows: the indices of its rows in the data.
        seed: the job's.
        step: the optimizer step it belongs to, from 1.
        index: its place among the global batch's micro-batches, over all ranks.
        first, last: whether it opens or closes this rank's part of the global batch.
    """

    items: float
    local_items: float
    samples: int
    is_whole: bool
    rows: tuple[int, ...]
    seed: int
    step: int
    index: int
    first: bool
    last: bool


@dataclass(frozen=True)
class StepLoss:
    """One optimizer step over all ranks.

    Attributes:
        loss: of its global batch.
        items: that the loss is a mean over; the samples of one that is a sum.
        votes: how many ranks have been asked to stop.
        milliseconds: that it took, added up over the ranks.
        elapsed: milliseconds since the step before had come as far, added up over the ranks.
        micro_batches: that it had, added up over the ranks.
    """

    loss: float
    items: float
    votes: int
    milliseconds: int
    elapsed: int
    micro_batches: int


class LossAccumulator:
    """Adds up one global batch at a time.

    Args:
        world_size: over how many ranks the strategy averages gradients.
        accumulation: by what Lightning divides each micro-batch's loss.
        sum_over_ranks: adds a tensor up over all ranks.
        device: where sums are kept.
        adds_up: whether each loss is a sum over its micro-batch, and no mean.
    """

    def __init__(
        self,
        world_size: int,
        accumulation: int,
        sum_over_ranks: Callable[[Tensor], Tensor],
        device: torch.device,
        adds_up: bool = False,
    ) -> None:
        self._adds_up = adds_up
        self._samples = 0
        self._factor = world_size * accumulation
        self._sum_over_ranks = sum_over_ranks
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._loss = torch.zeros_like(self._total)
        self.rows: list[tuple[int, ...]] = []
        self.losses: list[Tensor] = []

    def weigh(self, output: Any, micro: MicroBatch) -> Any:
        """Notes a micro-batch's mean loss, and gives it the weight with which the strategy's mean becomes the contract's.

        Args:
            output: what `training_step` returned: a scalar loss, or a mapping with one under ``"loss"``.
        """
        loss = output["loss"] if isinstance(output, Mapping) else output
        if micro.first:
            self._open(micro)
        if micro.items:
            self._loss += loss.detach().double() * micro.items
            self.rows.append(micro.rows)
            self.losses.append(loss.detach())
        exact = torch.promote_types(loss.dtype, torch.float32)  # a weight in bfloat16 would be wrong by up to 0.4 %
        weighted = loss.to(exact) * (micro.items * self._factor / self._total).to(exact)
        return {**output, "loss": weighted} if isinstance(output, Mapping) else weighted

    def close(self, vote: bool = False, milliseconds: int = 0, elapsed: int = 0, micro_batches: int = 0) -> StepLoss:
        """The loss over the global batch, the same on every rank; what else ranks have to tell each other travels with it.

        Args:
            vote: whether this rank has been asked to stop.
            milliseconds: that the step took here.
            elapsed: milliseconds since the step before had come as far.
            micro_batches: that it had here.
        """
        told = torch.tensor(
            [vote, milliseconds, elapsed, micro_batches], dtype=self._loss.dtype, device=self._loss.device
        )
        summed = self._sum_over_ranks(torch.cat([self._loss.reshape(1), told]))
        loss, items, *others = torch.cat([summed[:1] / self._total, self._total.reshape(1), summed[1:]]).tolist()
        items = float(self._samples) if self._adds_up else items
        return StepLoss(loss, int(items) if items == int(items) else items, *map(int, others))

    def unfinite_rows(self) -> list[int]:
        """The rows of this rank's micro-batches whose loss was NaN or infinite."""
        return [row for rows, loss in zip(self.rows, self.losses, strict=True) if not loss.isfinite() for row in rows]

    def _open(self, micro: MicroBatch) -> None:
        self._samples = micro.samples
        self._total = (
            torch.ones_like(self._total)
            if self._adds_up
            else self._sum_over_ranks(torch.full_like(self._total, micro.local_items))
        )
        self._loss = torch.zeros_like(self._total)
        self.rows, self.losses = [], []
