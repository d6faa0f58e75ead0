"""What a rank holds under DeepSpeed ZeRO, as DeepSpeed's own optimizers lay it out in flat tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekit.distributed.shards import OptimizerShard, TensorShard
from scalekit.strategies import deepspeed_nvme
from scalekit.strategies.shards import Shards

_LEAST_POWER = 2.0**-26


class ZeroShards(Shards):
    """What a rank holds under ZeRO.

    Args:
        rank: this one.
        ranks: how many there are.
        zero: gives DeepSpeed's optimizer, once there is one.
    """

    def __init__(self, rank: int, ranks: int, zero: Callable[[], Any]) -> None:
        super().__init__(rank, ranks)
        self._zero = zero

    def inner_optimizer(self, optimizer: Optimizer) -> Optimizer:
        inner: Optimizer = super().inner_optimizer(optimizer).optimizer  # type: ignore[attr-defined]
        return inner

    def of_optimizer(self, optimizer: Optimizer, names: Mapping[int, str]) -> list[OptimizerShard]:
        return list(self._of_groups(names))

    def decayed(self) -> Iterator[nn.Parameter]:
        """The parameters that shrink by themselves."""
        groups = self._zero().optimizer.param_groups
        for group, parameters in self._groups():
            if groups[group].get("weight_decay", 0):
                yield from parameters

    @abstractmethod
    def _groups(self) -> Iterator[tuple[int, Any]]:
        """The parameters that share a flat tensor, with the number of their parameter group."""

    @abstractmethod
    def _of_groups(self, names: Mapping[int, str]) -> Iterator[OptimizerShard]:
        """Where the optimizer's state of each parameter lies."""


@final
class OptimizerZeroShards(ZeroShards):
    """ZeRO-1 and 2: a rank has a run of each group's elements, which begins and ends anywhere."""

    def part(self, name: str, tensor: Tensor) -> TensorShard:
        return TensorShard(name, tuple(tensor.shape), tensor.detach())

    def _groups(self) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self._zero().bit16_groups)

    def _of_groups(self, names: Mapping[int, str]) -> Iterator[OptimizerShard]:
        for group, parameters in self._groups():
            for parameter in parameters:
                lies = parameter._hp_mapping
                start, offset, elements = (
                    (lies.lp_fragment_address.start, lies.hp_fragment_address.start, lies.lp_fragment_address.numel)
                    if lies is not None
                    else (0, 0, 0)
                )
                holder, shape = self._zero().single_partition_of_fp32_groups[group], tuple(parameter.shape)
                place = (start, offset, elements)
                yield OptimizerShard(names[id(parameter)], shape, holder, group, *place, everywhere=False)


@final
class ParameterZeroShards(ZeroShards):
    """ZeRO-3: a rank has a part of each parameter, and those of a group one after another in flat tensors."""

    def part(self, name: str, tensor: Tensor) -> TensorShard:
        if not hasattr(tensor, "ds_tensor"):
            return TensorShard(name, tuple(tensor.shape), tensor.detach())
        start, elements = self._range(tensor)
        part = deepspeed_nvme.part(tensor).narrow(0, 0, elements)
        return TensorShard(name, tuple(tensor.ds_shape), part, start, everywhere=False)  # type: ignore[attr-defined]

    def state_tensor(self, holder: Tensor, tensor: Tensor) -> Tensor:
        return deepspeed_nvme.state(self._zero(), holder, tensor)

    def opened(self, holder: Tensor) -> AbstractContextManager[None]:
        return deepspeed_nvme.opened(self._zero(), holder)

    def _range(self, tensor: Any) -> tuple[int, int]:
        """Of a parameter's elements that this rank has: the first, and how many; the rest of its part is padding."""
        start = min(self.rank * tensor.ds_tensor.ds_numel, tensor.ds_numel)
        return start, min(tensor.ds_tensor.ds_numel, tensor.ds_numel - start)

    def _groups(self) -> Iterator[tuple[int, Any]]:
        zero = self._zero()
        for number, parameters in enumerate(zero.fp16_groups):
            yield zero.sub_group_to_group_id[number], parameters

    def _of_groups(self, names: Mapping[int, str]) -> Iterator[OptimizerShard]:
        for number, (group, parameters) in enumerate(self._groups()):
            holder, offset = self._zero().fp32_partitioned_groups_flat[number], 0
            for parameter in parameters:
                start, elements = self._range(parameter)
                place, shape = (start, offset, elements), tuple(parameter.ds_shape)
                yield OptimizerShard(names[id(parameter)], shape, holder, group, *place, everywhere=False)
                offset += parameter.ds_tensor.ds_numel


def replay_powers(optimizer: Any) -> None:
    """Brings the powers of Adam's betas to where the steps so far have brought them, to the last bit.

    DeepSpeed's CPU Adam multiplies them up step by step, but takes them by `pow` where a job is resumed. Steps without elements
    multiply alone; there are none to make where the powers are too small to count in float32's 1 - power.
    """
    if not hasattr(optimizer, "ds_opt_adam"):
        return
    steps = max((state.get("step", 0) for state in optimizer.state.values()), default=0)
    group, nothing = optimizer.param_groups[0], torch.empty(0)
    if max(group["betas"]) ** steps < _LEAST_POWER:
        return
    settings = (group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
    for step in range(1, steps + 1):
        optimizer.ds_opt_adam.adam_update(optimizer.opt_id, step, *settings, nothing, nothing, nothing, nothing)
