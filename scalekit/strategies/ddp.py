"""PyTorch's DistributedDataParallel: every rank keeps all, gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress, groupby
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekit.config.strategy import StrategyConfig
from scalekit.models.initialization import broadcast_tensors, materialize
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.job_context import JobContext

_CHUNK_BYTES = 25 << 20
"""What is reduced at once: as DistributedDataParallel's buckets."""


class ReplicatedStrategy(BaseStrategy, DDPStrategy):
    """`ddp`."""

    def __init__(self, spec: StrategyConfig, precision: str, device: str, job: JobContext) -> None:
        self._trained: list[int] = []
        # Initial weights are sent by `setup`, buffers that no state dict names among them; `Buffers` keeps the latter the same.
        super().__init__(
            spec, precision, device, job, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def setup(self, trainer: Any) -> None:
        self.precision_plugin.convert_module(self._module)
        materialize(self._module, self.root_device)
        if self._rank == 0:
            self.restore_weights()
        self.model_to_device()
        broadcast_tensors(self._module, self.root_device)
        self._ddp_kwargs["find_unused_parameters"] = self.job.finds_unused
        super().setup(trainer)

    def _setup_model(self, model: nn.Module) -> Any:
        """A module with backward passes of its own is not wrapped: each is followed by its own reduction."""
        if self.is_manual:
            return model
        self._trained = _trained(model)
        return super()._setup_model(model)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if not self.is_manual and _trained(self._module) != self._trained:  # a callback has thawed or frozen some
            self.model = self._setup_model(self._module)
        return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        found = super().backward(closure_loss, optimizer, *args, **kwargs)
        if self.is_manual:
            self._reduce_gradients()
        return found

    @torch.no_grad()
    def _reduce_gradients(self) -> None:
        """Averages gradients over ranks, as DistributedDataParallel does; those that no rank has stay away.

        What was reduced before and has been added to since is averaged once more, which changes nothing in its old part.
        """
        if self._world_size == 1:
            return
        trained = [each for each in self._module.parameters() if each.requires_grad]
        has = torch.tensor([float(each.grad is not None) for each in trained], device=self.root_device)
        met = compress(trained, self.collectives.sum(has).tolist())
        for chunk in _chunks(met):
            gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in chunk]
            flat = torch.cat([each.flatten() for each in gradients])
            torch.distributed.all_reduce(flat.div_(self._world_size))
            for each, part in zip(chunk, torch.split(flat, [each.numel() for each in chunk]), strict=True):
                if each.grad is None:
                    each.grad = part.view_as(each).clone()
                else:
                    each.grad.copy_(part.view_as(each))


def _trained(module: nn.Module) -> list[int]:
    return [id(each) for each in module.parameters() if each.requires_grad]


def _chunks(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of one type, and of about `_CHUNK_BYTES`."""
    for _, run in groupby(parameters, key=lambda each: each.dtype):
        chunk: list[nn.Parameter] = []
        for each in run:
            if chunk and sum(other.nbytes for other in chunk) + each.nbytes > _CHUNK_BYTES:
                yield chunk
                chunk = []
            chunk.append(each)
        yield chunk
