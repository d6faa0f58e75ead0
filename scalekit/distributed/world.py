"""The processes of a job: who we are among them, and on which kind of device.

Everything here comes from the environment that torchrun writes; nothing is guessed.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from scalekit.errors import WorldSizeError

T = TypeVar("T")

MESSAGE_STORE = "SCALEKIT_BOARD"
"""The variable that names a store, as ``host:port``, which outlives any of the processes that `scalekit launch` starts."""


@dataclass(frozen=True)
class World:
    """One process's place in its job.

    Attributes:
        rank: this process among all, from 0.
        size: the number of processes, all nodes together.
        local_rank: this process among those of its node, from 0.
        local_size: the number of processes on this node.
        launched: whether torchrun (or something that writes the same environment) started us.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launched: bool = False

    @classmethod
    def from_environment(cls) -> World:
        """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; one process where they are absent."""
        if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
            return cls()
        size = int(os.environ["WORLD_SIZE"])
        return cls(
            rank=int(os.environ["RANK"]),
            size=size,
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
            launched=True,
        )

    @property
    def num_nodes(self) -> int:
        """The number of nodes; every node runs the same number of processes."""
        return self.size // self.local_size

    def check(self, devices: int | str, num_nodes: int | str) -> None:
        """Compares what the user asked for with what the launcher started.

        Raises:
            WorldSizeError: where they differ.
        """
        wanted_devices = self.local_size if devices == "auto" else int(devices)
        wanted_nodes = self.num_nodes if num_nodes == "auto" else int(num_nodes)
        if (wanted_devices, wanted_nodes) == (self.local_size, self.num_nodes):
            return
        wanted = f"devices={wanted_devices} and num_nodes={wanted_nodes}"
        if self.launched:
            raise WorldSizeError(
                f"the job asks for {wanted}, but the launcher started {self.local_size} processes on each of "
                f"{self.num_nodes} nodes. Leave both on 'auto', or launch as many as the job asks for"
            )
        raise WorldSizeError(
            f"the job asks for {wanted}, but it was started as one process. "
            f"Start it with: scalekit launch --nproc {wanted_devices} ..."
        )


class Sized(Protocol):
    """Whatever knows how many ranks there are."""

    @property
    def size(self) -> int: ...


def device_type() -> str:
    """``"cuda"`` where torch sees a GPU, otherwise ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def connect(world: World, timeout_seconds: float = 1800) -> None:
    """Joins the job's process group (NCCL on GPUs, gloo on CPUs); does nothing where it stands or for one process."""
    import torch

    if world.size == 1 or torch.distributed.is_initialized():
        return
    cuda = device_type() == "cuda"
    if cuda:
        torch.cuda.set_device(world.local_rank)
    torch.distributed.init_process_group(
        backend="nccl" if cuda else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=torch.device("cuda", world.local_rank) if cuda else None,
    )
    if not cuda:
        # Its threads must end before the interpreter does: left to static destructors they abort the process now and then.
        # NCCL's group would wait there for ranks that wait for this one, which has failed.
        atexit.register(_disconnect)


def _disconnect() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_on_rank_zero(function: Callable[[], T], world: World) -> T:
    """What a function gives on rank 0, on every rank; its error too. ``connect`` comes first."""
    outcome: list[T | Exception] = []
    if world.rank == 0:
        try:
            outcome = [function()]
        except Exception as error:
            outcome = [error]
    (result,) = broadcast_object(outcome, world)
    if isinstance(result, Exception):
        raise result
    return result


def all_reduce_sum(tensor: Any, world: World) -> Any:
    """The sum of all ranks' tensors, on every rank, where the tensor is. ``connect`` comes first."""
    if world.size == 1:
        return tensor
    import torch

    summed = tensor.to(device_type(), copy=True)
    torch.distributed.all_reduce(summed)
    return summed.to(tensor.device)


def all_gather_object(value: T, world: Sized) -> list[T]:
    """Every rank's value, on every rank. ``connect`` comes first."""
    if world.size == 1:
        return [value]
    import torch

    found: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(found, value)
    return found


def broadcast_object(value: T, world: World) -> T:
    """Rank 0's value, on every rank. ``connect`` comes first."""
    if world.size == 1:
        return value
    import torch

    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
