"""What ranks send each other in the middle of a step."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from scalekit.distributed.world import all_gather_object


@final
class Collectives:
    """The collectives of a step, by the default process group; a rank alone needs none.

    Args:
        rank: this one.
        size: how many there are.
        device: that tensors are sent by.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, on every rank."""
        if self.size > 1:
            tensor = tensor.clone()
            torch.distributed.all_reduce(tensor)  # Lightning's own has a barrier beside it
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, on every rank."""
        return all_gather_object(value, self)

    def gather_tensor(self, tensor: Tensor) -> Tensor:
        """Everybody's tensor, on every rank, shape [ranks, *tensor.shape]."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def agree(self, fingerprint: int, has_any: bool) -> tuple[bool, bool]:
        """Whether a number is the same on all ranks, and whether any of them has something."""
        if self.size == 1:
            return True, has_any
        told = torch.tensor([fingerprint, -fingerprint, int(has_any)], dtype=torch.int64, device=self.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        largest, smallest, any_ = told.tolist()
        return largest == -smallest, bool(any_)
