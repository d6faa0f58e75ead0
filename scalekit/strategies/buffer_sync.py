"""Buffers that training changes: no gradient keeps them the same on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scalekit.models.initialization import Place, module_tensors, send_tensor

_RUNNING = ("running_mean", "running_var")  # of torch's normalisations, and of those made after them


class Buffers:
    """Keeps a module's buffers the same on every rank, under every strategy.

    DistributedDataParallel sends rank 0's before each forward pass, which forgets what the others saw; DeepSpeed and FSDP2 let
    each rank's drift, so that ranks evaluate models that differ, and one of them is saved. Here a buffer that checkpoints hold
    and steps change becomes rank 0's after each; running means and variances become their mean over ranks before an evaluation
    or a checkpoint.

    Args:
        module: as it is trained.
        device: that tensors are sent by.
        gather: everybody's value, on every rank.
    """

    def __init__(self, module: nn.Module, device: torch.device, gather: Callable[[Any], list[Any]]) -> None:
        buffers = {
            id(b): (owner, name, b) for owner, name, b in module_tensors(module) if not isinstance(b, nn.Parameter)
        }
        self._running = [(owner, name) for owner, name, _ in buffers.values() if name in _RUNNING]
        # What no checkpoint holds is a cache, which each rank keeps for its own rows.
        self._others = [
            (owner, name)
            for owner, name, _ in buffers.values()
            if name not in _RUNNING and name not in owner._non_persistent_buffers_set
        ]
        self._before = [_version(place) for place in self._others]
        self._followed: list[int] | None = None
        self._device, self._gather = device, gather

    def after_step(self) -> None:
        """Called by every rank after each optimizer step; the first step shows which buffers steps change."""
        if self._followed is None:
            self._look()
        self._send()

    def sync_buffers(self) -> None:
        """Called by every rank before the model is evaluated or saved; here it shows which buffers later steps have changed."""
        self._look()
        self._send()
        if not self._running:
            return
        tensors = [_tensor(place) for place in self._running]
        # Doubles, in which the mean of what is the same everywhere is the same to the last bit.
        sums = torch.cat([tensor.to(self._device, torch.float64).flatten() for tensor in tensors])
        torch.distributed.all_reduce(sums)
        means = torch.split(sums / torch.distributed.get_world_size(), [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def _look(self) -> None:
        changed = [i for i, before in enumerate(self._before) if _version(self._others[i]) != before]
        self._followed = sorted({i for part in self._gather(changed) for i in part})

    def _send(self) -> None:
        for i in self._followed or ():
            send_tensor(_tensor(self._others[i]), self._device)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The parts by which what a model makes of a sample depends on the other samples of its micro-batch."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return [part for part in module.modules() if isinstance(part, kinds)]


def _tensor(place: Place) -> Tensor:
    owner, name = place
    tensor = owner._buffers[name]
    return torch.empty(0) if tensor is None else tensor


def _version(place: Place) -> tuple[int, int]:
    """Another one after each change, in place or not; tensors made for inference do not count theirs."""
    tensor = _tensor(place)
    return id(tensor), 0 if tensor.is_inference() else tensor._version
