"""A loss that couples the samples of a batch, such as a contrastive one: over the whole global batch, on every rank.

Each rank runs its samples, is told what the others made of theirs, and takes the loss of all together: all have the same loss.
What a rank gives away is a constant to the others. Each parameter's gradient is the sum over ranks of what comes through their
own samples, which is the gradient of the loss of one process with all samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from scalekit.errors import ConfigError, InputsError, shown
from scalekit.objectives.counts import Samples
from scalekit.objectives.objective import LossFunction, Objective, Outcome, called, has_target, split


@final
class CoupledLoss(Objective):
    """``loss(output, target)`` over the global batch; the target is None where a batch has none.

    Args:
        function: gives a scalar. Of what the model gives, a tensor has a row for each sample, shape [samples, ...], or is a
            single number, shape [], such as a learned temperature.

    Attributes:
        own_rows: how many of the rows that this rank runs count; None where it runs all that there are.
    """

    def __init__(self, function: LossFunction) -> None:
        self._function = function
        self.count = Samples()
        self.own_rows: Callable[[], int] | None = None

    def outcome(self, model: nn.Module, batch: Any) -> Outcome:
        inputs, target = split(batch) if has_target(batch) else (batch, None)
        output = called(model, inputs)
        if self.own_rows is None:
            return self._outcome(output, target)
        gather = _Gather(self.own_rows())
        return self._outcome(tree_map(gather, output), tree_map(gather, target))

    def describe(self) -> str:
        return "samples, which it couples over the whole batch"

    def _outcome(self, output: Any, target: Any) -> Outcome:
        loss = self._function(output, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ConfigError("a loss that couples samples must give one number, a tensor of shape []")
        return Outcome(loss)


class _Gather:
    """Puts the ranks' rows together, in the order of ranks, those of this rank with their gradient.

    Ranks' losses are weighted by their rows and added up, as all losses are; so a gradient through a rank's own rows is first
    divided by its weight.

    Args:
        rows: of this rank that count; those behind them are not given away.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._world_size, self._rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self._counts: list[int] | None = None

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            return value
        if not isinstance(value, Tensor):
            raise InputsError(
                f"loss_couples: the model gives {shown(value)}: give tensors, in mappings, tuples or lists"
            )
        counts = self._counted(value)
        most = max(counts)
        sent = value.new_zeros((most, *value.shape[1:]))
        sent[: self._rows] = value.detach()[: self._rows]
        sent = sent.byte() if value.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in counts]
        torch.distributed.all_gather(parts, sent)
        whole = [part[:count].to(value.dtype) for part, count in zip(parts, counts, strict=True)]
        if self._rows:
            own = value[: self._rows]
            weight = self._rows / sum(counts)
            whole[self._rank] = own.detach() + (own - own.detach()) / weight if own.requires_grad else own
        return torch.cat(whole)

    def _counted(self, value: Tensor) -> list[int]:
        """How many rows each rank has."""
        if len(value) < self._rows:
            raise InputsError(
                f"loss_couples: the model gives a tensor of shape {tuple(value.shape)} for {self._rows} samples: give one row "
                "a sample, or a single number of shape []"
            )
        if self._counts is None:
            own = torch.tensor([self._rows], device=value.device)
            found = [torch.empty_like(own) for _ in range(self._world_size)]
            torch.distributed.all_gather(found, own)
            self._counts = [int(each) for each in found]
        return self._counts
