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
        self.function = function
        self.count = Samples()
        self.own_rows: Callable[[], int] | None = None

    def outcome(self, model: nn.Module, batch: Any) -> Outcome:
        inputs, target = split(batch) if has_target(batch) else (batch, None)
        output = called(model, inputs)
        tree_map(_check, output)
        if self.own_rows is None:
            return self._outcome(output, target)
        gather = _Gather(self.own_rows())
        return self._outcome(tree_map(gather, output), tree_map(gather, target))

    def describe(self) -> str:
        return "samples, which it couples over the whole batch"

    def _outcome(self, output: Any, target: Any) -> Outcome:
        loss = self.function(output, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ConfigError("a loss that couples samples must give one number, a tensor of shape []")
        return Outcome(loss)


def _check(value: Any) -> None:
    """Whether an output holds nothing that tensors of a sample could hide in; transformers' caches are of no loss.

    Raises:
        InputsError: it does.
    """
    is_plain = value is None or isinstance(value, (Tensor, int, float, str))
    if not is_plain and not type(value).__module__.startswith("transformers."):
        raise InputsError(f"loss_couples: the model gives {shown(value)}: give tensors, in mappings, tuples or lists")


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

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        counts = self._counted(value)
        sent = value.new_zeros((max(counts), *value.shape[1:]))
        sent[: self._rows] = value.detach()[: self._rows]
        sent = sent.byte() if value.dtype == torch.bool else sent
        parts = [torch.empty_like(sent) for _ in counts]
        torch.distributed.all_gather(parts, sent)
        whole = [part[:count].to(value.dtype) for part, count in zip(parts, counts, strict=True)]
        own = value[: self._rows]
        if own.requires_grad:
            # Without rows too: each parameter then has a gradient, be it of nothing, and the ranks meet.
            own = own.detach() + (own - own.detach()) * (sum(counts) / max(self._rows, 1))
        whole[self._rank] = own
        return torch.cat(whole)

    def _counted(self, value: Tensor) -> list[int]:
        """How many rows each rank has.

        Raises:
            InputsError: on every rank, where samples differ in shape, or there is no row for each.
        """
        told: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())] * self._world_size
        torch.distributed.all_gather_object(told, (self._rows, len(value), tuple(value.shape[1:])))
        shapes = sorted({shape for _, _, shape in told})
        if len(shapes) > 1 or any(rows > length for rows, length, _ in told):
            raise InputsError(
                f"loss_couples: of {self._rows} samples the model gives a tensor of shape {tuple(value.shape)} here, and "
                f"samples have the shapes {shapes[:2]}: give one row a sample, of one shape on all ranks, such as an "
                "embedding, or a single number of shape []"
            )
        return [rows for rows, _, _ in told]
