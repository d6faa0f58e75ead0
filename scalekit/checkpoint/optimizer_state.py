"""An optimizer's state by the names of parameters, whatever holds it: parameters, parts of them, or flat tensors of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from scalekit.checkpoint.safetensors_io import Reader, TensorFiles
from scalekit.distributed.shards import OptimizerShard, TensorShard
from scalekit.errors import CheckpointError

Settings = dict[str, Any]

# How an optimizer runs on some device, which is no part of what it has come to.
_IMPLEMENTATION = ("params", "fused", "foreach", "capturable", "differentiable")


def stem(number: int, key: str) -> str:
    """The files of one kind of state.

    Args:
        number: of the optimizer, from 0.
        key: by which the optimizer knows it, such as ``exp_avg``.
    """
    return f"optimizer/{key}" if number == 0 else f"optimizer/{number}.{key}"


def describe(
    optimizer: Optimizer, slots: Sequence[OptimizerShard], at: Callable[[Tensor, Tensor], Tensor]
) -> tuple[dict[str, list[TensorShard]], Settings]:
    """This rank's parts of an optimizer's state by its keys, and all else that it has to keep.

    Args:
        optimizer: to describe.
        slots: where it keeps its state.
        at: gives the elements of a holder, or of state that belongs to it: of (holder, tensor).

    Raises:
        CheckpointError: state of a shared-out parameter that is neither a number nor one value a weight.
    """
    parts: dict[str, list[TensorShard]] = {}
    numbers: dict[str, dict[str, Any]] = {}
    types: dict[str, str] = {}
    for holder, mine in _by_holder(slots):
        elements = _local(at(holder, holder)).numel()
        for key, value in optimizer.state.get(holder, {}).items():
            if _is_number(holder, key, value):
                number = value.item() if isinstance(value, Tensor) else value
                types[key] = "tensor" if isinstance(value, Tensor) else "number"
                for slot in mine:
                    numbers.setdefault(slot.name, {})[key] = number
            else:
                there = at(holder, value)
                parts.setdefault(key, []).extend(_part(slot, key, there, elements) for slot in mine)
    groups = [
        {name: value for name, value in group.items() if name not in _IMPLEMENTATION}
        for group in optimizer.param_groups
    ]
    return parts, {
        "class": type(optimizer).__qualname__,
        "keys": sorted(parts),
        "groups": groups,
        "numbers": numbers,
        "types": types,
    }


def restore(
    optimizer: Optimizer,
    slots: Sequence[OptimizerShard],
    number: int,
    saved: Settings,
    folder: Path,
    opened: Callable[[Tensor], AbstractContextManager[None]],
) -> None:
    """Fills an optimizer with what `describe` told of one, of any number of ranks under any strategy.

    Args:
        optimizer: to fill.
        slots: where it keeps its state.
        number: of the optimizer, from 0.
        saved: its settings.
        folder: of the checkpoint.
        opened: has a holder and its state in memory.

    Raises:
        CheckpointError: it is another optimizer's, or of parameters that it does not know.
    """
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"{folder} is of an optimizer with {len(saved['groups'])} groups of parameters, and this one has "
            f"{len(optimizer.param_groups)}"
        )
    for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update({name: value for name, value in settings.items() if name in group})
    tensors_by_file = {key: TensorFiles.found(folder, stem(number, key)) for key in saved["keys"]}
    with Reader(folder) as reader:
        for holder, mine in _by_holder(slots):
            with opened(holder):
                for slot in mine:
                    for key, files in tensors_by_file.items():
                        if slot.name in files.places:
                            _fill(optimizer, slot, key, files, reader)
                    for key, value in saved["numbers"].get(slot.name, {}).items():
                        _set_number(optimizer, slot, key, value, saved)


def _by_holder(slots: Sequence[OptimizerShard]) -> Iterator[tuple[Tensor, list[OptimizerShard]]]:
    """The tensors that the optimizer keeps state for, each with the slots in it."""
    for _, run in groupby(slots, lambda slot: id(slot.holder)):
        mine = list(run)
        yield mine[0].holder, mine


def _is_number(holder: Tensor, key: str, value: Any) -> bool:
    """Whether a value is one for a whole parameter, such as Adam's count of steps."""
    return not isinstance(value, Tensor) or (value.ndim == 0 and (holder.ndim > 0 or key == "step"))


def _part(slot: OptimizerShard, key: str, value: Tensor, elements: int) -> TensorShard:
    """Of state that has as many elements as its holder, which are `elements`, the slot's; else the whole."""
    local = _local(value)
    if local.numel() == elements:
        flat = local.reshape(-1)[slot.offset : slot.offset + slot.elements]
        return TensorShard(slot.name, slot.shape, flat, slot.start, slot.everywhere, slot.is_copy)
    if slot.everywhere:
        return TensorShard(slot.name, tuple(value.shape), value)
    raise CheckpointError(
        f"the optimizer keeps {key} of {slot.name} in the shape {tuple(value.shape)}, which is neither a number nor one value "
        "a weight: it can be saved under 'single' and 'ddp' alone"
    )


def _fill(optimizer: Optimizer, slot: OptimizerShard, key: str, files: TensorFiles, reader: Reader) -> None:
    place, values = files.places[slot.name], optimizer.state[slot.holder]
    if place.shape != slot.shape:
        if not slot.everywhere:
            raise CheckpointError(
                f"{key} of {slot.name} is no value a weight: it is resumed under 'single' and 'ddp' alone"
            )
        values[key] = torch.empty(place.shape, dtype=place.dtype, device=slot.holder.device)
        reader.fill(place, 0, values[key])
        return
    if key not in values:
        values[key] = torch.zeros_like(slot.holder.detach(), dtype=place.dtype)
    local = _local(values[key])
    if slot.elements == local.numel():
        reader.fill(place, slot.start, local)
    elif slot.elements:
        reader.fill(place, slot.start, local.view(-1)[slot.offset : slot.offset + slot.elements])


def _set_number(optimizer: Optimizer, slot: OptimizerShard, key: str, value: Any, saved: Settings) -> None:
    values = optimizer.state[slot.holder]
    if key in values and values[key] != value:
        raise CheckpointError(
            f"{key} of {slot.name} is {value}, and {values[key]} of parameters with which this strategy flattens it: "
            "resume under 'single', 'ddp' or 'fsdp2'"
        )
    if _as_tensor(optimizer, key, saved):
        group = optimizer.param_groups[slot.group]
        on_device = group.get("capturable") or group.get("fused")
        device = slot.holder.device if on_device else torch.device("cpu")
        values[key] = torch.tensor(float(value), dtype=torch.float32, device=device)
    else:
        values[key] = int(value) if isinstance(value, float) and value.is_integer() else value


def _as_tensor(optimizer: Optimizer, key: str, saved: Mapping[str, Any]) -> bool:
    """Whether an optimizer keeps a number as a tensor: as it did, or where it is another class, as that one's library does."""
    if saved["class"] == type(optimizer).__qualname__:
        return bool(saved["types"][key] == "tensor")
    return type(optimizer).__module__.startswith("torch.optim")


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
