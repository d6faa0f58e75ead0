"""Where DeepSpeed keeps tensors that are on NVMe between their uses: each in a file of its own, in row-major order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalekit.config.strategy import StrategyConfig
from scalekit.errors import ConfigError, StrategyError

_KINDS = ("optimizer", "float32params", "bfloat16params")


def check(spec: StrategyConfig, precision: str) -> None:
    """A strategy that uses NVMe has a folder on one, and what reads and writes there.

    Raises:
        StrategyError: it has not.
        ConfigError: a precision whose optimizer's state DeepSpeed cannot bring back from a drive.
    """
    if "nvme" not in spec.offload.values():
        return
    if precision == "bf16-true" and spec.offload.get("optimizer") == "nvme":
        raise ConfigError(
            f"strategy {spec.name!r} keeps the optimizer's state on NVMe, from where DeepSpeed takes float32 alone: use "
            "'bf16-mixed' or '32-true'"
        )
    path = spec.offload.get("nvme_path")
    if path is None or not Path(path).is_dir():
        raise StrategyError(
            f"strategy {spec.name!r} offloads to NVMe, but its nvme_path {path!r} is no folder. Copy the file, name a "
            "folder on a fast local drive there, and give the copy's path as strategy"
        )
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise StrategyError(f"strategy {spec.name!r} needs libaio and its headers (Debian: libaio-dev)")


def folder(spec: StrategyConfig, run: Path) -> Path:
    """Where a run's tensors are: jobs of several runs may share a drive."""
    return Path(spec.offload["nvme_path"]) / f"{run.name}-{sha256(str(run.absolute()).encode()).hexdigest()[:12]}"


def clear(drive: Path, rank: int) -> None:
    """Removes a rank's files, and the folders above them when it is the last."""
    top = drive / "zero_stage_3"
    for kind in _KINDS:
        shutil.rmtree(top / kind / f"rank{rank}", ignore_errors=True)
    for each in (*(top / kind for kind in _KINDS), top, drive):
        with suppress(OSError):  # others have files there yet
            each.rmdir()


def part(parameter: Any) -> Tensor:
    """A rank's part of a parameter under ZeRO-3, flat, with its padding: in memory, or as its file maps it."""
    swapper, tensor = parameter.nvme_swapper, parameter.ds_tensor
    if swapper is None or not _is_away(tensor):
        memory: Tensor = tensor.detach()
        return memory
    return _mapped(swapper.get_path(parameter, must_exist=True), tensor.ds_numel, swapper.dtype)


def state(zero: Any, holder: Any, tensor: Tensor) -> Tensor:
    """A tensor of the optimizer's that belongs to a flat one of ZeRO-3's masters: in memory, or as its file maps it.

    Args:
        zero: DeepSpeed's optimizer.
        holder: the flat tensor.
        tensor: the same, or one of its state.
    """
    info = _swapped(zero, holder)
    found = next((each for each in info.tensors if each.compute_tensor is tensor), None) if info is not None else None
    if found is None or found.compute_tensor.numel():
        return tensor
    return _mapped(found.swap_path, info.numel(), info.dtype())


@contextmanager
def opened(zero: Any, holder: Any) -> Iterator[None]:
    """Brings a flat tensor of masters and its state into memory, and what becomes of them back."""
    if _swapped(zero, holder) is None:
        yield
        return
    group = next(i for i, each in enumerate(zero.fp32_partitioned_groups_flat) if each is holder)
    zero._optimizer_states_and_gradient_swap_in(group)
    try:
        yield
    finally:
        zero._optimizer_states_and_gradient_swap_out(group)


def _swapped(zero: Any, holder: Any) -> Any:
    """What DeepSpeed knows of a flat tensor that it swaps; None for one that stays in memory."""
    return None if zero.optimizer_swapper is None else zero.optimizer_swapper.swap_params_info.get(holder.ds_id)


def _is_away(tensor: Any) -> bool:
    from deepspeed.runtime.swap_tensor.partitioned_param_swapper import PartitionedParamStatus

    return bool(tensor.status == PartitionedParamStatus.NOT_AVAILABLE)


def _mapped(path: str, elements: int, dtype: torch.dtype) -> Tensor:
    """A file's elements; what is written to them is written to the file, and read from there by DeepSpeed's direct reads."""
    return torch.from_file(path, shared=True, size=elements, dtype=dtype)
