"""What a rank holds of each tensor of a job: all that strategies differ in when a checkpoint is written or read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import prod
from typing import final

from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scalekit.distributed.shards import OptimizerShard, TensorShard


class Shards(ABC):
    """What this rank holds.

    Args:
        rank: this one.
        ranks: how many there are.
    """

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    @abstractmethod
    def part(self, name: str, tensor: Tensor) -> TensorShard:
        """This rank's part of a tensor of the model's; the whole, where no part of it is elsewhere."""

    def of_optimizer(self, optimizer: Optimizer, names: Mapping[int, str]) -> list[OptimizerShard]:
        """Where the optimizer's state of this rank's part of each parameter lies.

        Args:
            optimizer: as Lightning has it.
            names: of the parameters, by their identity.
        """
        found = []
        for number, group in enumerate(self.inner_optimizer(optimizer).param_groups):
            for tensor in group["params"]:
                part = self.part(names[id(tensor)], tensor)
                place = (part.start, 0, part.data.numel(), part.everywhere, part.is_copy)
                found.append(OptimizerShard(part.name, part.shape, tensor, number, *place))
        return found

    def inner_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The torch optimizer that holds this rank's state."""
        return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer

    def state_tensor(self, holder: Tensor, tensor: Tensor) -> Tensor:
        """Where the elements are of a tensor that the optimizer keeps for a holder, or of the holder itself."""
        return tensor

    def opened(self, holder: Tensor) -> AbstractContextManager[None]:
        """Has a holder and its state in memory, to be changed there."""
        return nullcontext()


@final
class ReplicatedShards(Shards):
    """Every rank has all."""

    def part(self, name: str, tensor: Tensor) -> TensorShard:
        return TensorShard(name, tuple(tensor.shape), tensor.detach())


@final
class RowShards(Shards):
    """FSDP2: a rank has some rows of each parameter, as `torch.chunk` splits them: the last ranks may have fewer, or none.

    Args:
        rank: this one.
        ranks: how many there are.
        group_size: how many share a parameter out; each such group has all of it.
    """

    def __init__(self, rank: int, ranks: int, group_size: int) -> None:
        super().__init__(rank, ranks)
        self._group, self._place = divmod(rank, group_size)
        self._group_size = group_size

    def part(self, name: str, tensor: Tensor) -> TensorShard:
        if not isinstance(tensor, DTensor):
            return TensorShard(name, tuple(tensor.shape), tensor.detach())
        rows, row = tensor.shape[0], prod(tensor.shape[1:])
        first = min(self._place * -(-rows // self._group_size), rows)
        mine = tensor.to_local().detach()
        return TensorShard(name, tuple(tensor.shape), mine, first * row, everywhere=False, is_copy=self._group > 0)
