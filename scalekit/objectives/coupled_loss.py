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

from scalekit.errors import ConfigError, InputsError, shown
from scalekit.objectives.counts import Samples
from scalekit.objectives.function_loss import LossFunction
from scalekit.objectives.objective import ModelOutput, Objective, called, has_target, split
from scalekit.utils.torch_internals import tree_flatten, tree_map, tree_unflatten


@final
class CoupledLoss(Objective):
    """``loss(output, target)`` over the global batch; the target is None where a batch has none.

    Args:
        function: gives a scalar. Of what the model gives, a tensor has a row for each sample, shape [samples, ...], or is a
            single number, shape [], such as a learned temperature.
        own_rows: how many of the rows that this rank runs count; None where it runs all that there are.
    """

    def __init__(self, function: LossFunction, own_rows: Callable[[], int] | None = None) -> None:
        self.function = function
        self.count = Samples()
        self._own_rows = own_rows

    def outcome(self, model: nn.Module, batch: Any) -> ModelOutput:
        inputs, target = split(batch) if has_target(batch) else (batch, None)
        output = called(model, inputs)
        tree_map(_check, output)
        if self._own_rows is not None:
            output, target = _gathered((output, target), self._own_rows())
        loss = self.function(output, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ConfigError("a loss that couples samples must give one number, a tensor of shape []")
        return ModelOutput(loss)

    def describe(self) -> str:
        return "samples, which it couples over the whole batch"


def _check(value: Any) -> None:
    """Whether an output holds nothing that tensors of a sample could hide in; transformers' caches are of no loss.

    Raises:
        InputsError: it does.
    """
    is_plain = value is None or isinstance(value, (Tensor, int, float, str))
    if not is_plain and not type(value).__module__.startswith("transformers."):
        raise InputsError(f"loss_couples: the model gives {shown(value)}: give tensors, in mappings, tuples or lists")


def _gathered(values: Any, rows: int) -> Any:
    """The same, with the tensors of all ranks' rows, in the order of ranks, those of this rank with their gradient.

    Args:
        values: whose tensors have a row for each sample; single numbers stay.
        rows: of this rank that count; those behind them are not given away.

    Raises:
        InputsError: on every rank, where samples differ in shape, or there is no row for each.
    """
    leaves, form = tree_flatten(values)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim]
    shapes = [tuple(leaves[place].shape) for place in places]
    told: list[tuple[int, list[tuple[int, ...]]]] = [(0, [])] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (rows, shapes))
    counts = [count for count, _ in told]
    for each in zip(*(known for _, known in told), strict=True):
        if len({shape[1:] for shape in each}) > 1 or any(
            count > shape[0] for count, shape in zip(counts, each, strict=True)
        ):
            raise InputsError(
                f"loss_couples: for {counts} samples on each rank the model gives tensors of the shapes {list(each)}: give one "
                "row a sample, of one shape on all ranks, such as an embedding, or a single number of shape []"
            )
    for place in places:
        leaves[place] = _of_all(leaves[place], counts)
    return tree_unflatten(leaves, form)


def _of_all(value: Tensor, counts: list[int]) -> Tensor:
    """A tensor's rows of all ranks.

    Ranks' losses are weighted by their rows and added up, as all losses are; so a gradient through a rank's own rows is first
    divided by its weight.
    """
    rank = torch.distributed.get_rank()
    own = value[: counts[rank]]
    sent = value.new_zeros((max(counts), *value.shape[1:]))
    sent[: counts[rank]] = own.detach()
    sent = sent.byte() if value.dtype == torch.bool else sent
    parts = [torch.empty_like(sent) for _ in counts]
    torch.distributed.all_gather(parts, sent)
    whole = [part[:count].to(value.dtype) for part, count in zip(parts, counts, strict=True)]
    if own.requires_grad:
        # Without rows too: each parameter then has a gradient, be it of nothing, and the ranks meet.
        own = own.detach() + (own - own.detach()) * (sum(counts) / max(counts[rank], 1))
    whole[rank] = own
    return torch.cat(whole)
