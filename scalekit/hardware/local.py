"""The machine at hand: its GPUs or its CPU, its memory, and what this process takes of them."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalekit.hardware.catalog import DEVICES, TORCH_NAMES, hardware_of
from scalekit.hardware.kernels import kernel_rates
from scalekit.hardware.links import ASSUMED, collective_rates
from scalekit.hardware.measure import (
    host_cores,
    memory_bytes_per_second,
    product_flops,
    remember_context,
    remembered_contexts,
)
from scalekit.hardware.spec import Device, Hardware, check_counts

# For a GPU that is not in the table: the memory of the slowest card in it, and PCIe 3.0 x16.
_UNLISTED_MEMORY_BYTES_PER_SECOND = 300e9
_UNLISTED_BUS_BYTES_PER_SECOND = 16e9
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def detect(processes: int = 1, nodes: int = 1) -> Hardware:
    """The machine at hand: its first GPU where torch sees one, otherwise its CPU, measured for a moment.

    A GPU that is in the table has the table's rates; for any other, `flops` is empty and the bandwidths are those of
    a slow card on PCIe 3.0. Memory is what there really is.

    Args:
        processes: on each node; one for each GPU, or as many as share the CPU.
        nodes: machines like this one.

    Raises:
        ConfigError: less than one process or node.
    """
    import torch

    check_counts(processes, nodes)
    if not torch.cuda.is_available():
        found = cpu(processes, nodes)
    else:
        card = torch.cuda.get_device_properties(0)
        found = replace(
            hardware_of(_gpu(card.name, card.total_memory), processes, nodes),
            host_memory_bytes=_host_memory_bytes(),
            host_bytes_per_second=memory_bytes_per_second(torch.get_num_threads()),
            host_cores=host_cores(),
        )
    return replace(found, device=replace(found.device, context_bytes=remembered_contexts().get(_key(found))))


def taken_bytes(device: Any, used_bytes: int = 0) -> tuple[int, int | None]:
    """The most that this process has taken of a device so far, and on a GPU what of it is beside tensors.

    That is its context and NCCL's buffers; a CPU's process has its libraries, which cannot be told apart.

    Args:
        device: a torch device.
        used_bytes: that others took before this process came.
    """
    import torch

    if device.type != "cuda":
        return most_resident_bytes(), None
    free, total = torch.cuda.mem_get_info(device)
    beside = max(0, total - free - torch.cuda.memory_reserved(device) - used_bytes)
    return torch.cuda.max_memory_reserved(device) + beside, beside


def most_resident_bytes() -> int:
    """The most host memory that this process has held; `getrusage` would begin with what the one that started it held."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def remember(hardware: Hardware, context_bytes: int) -> None:
    """Keeps for `detect` what a probe has measured on this machine; where nothing can be written, it does not."""
    remember_context(_key(hardware), context_bytes)


def _key(hardware: Hardware) -> str:
    """One process alone has no buffers for collectives."""
    return hardware.device.name + (", several" if hardware.world_size > 1 else ", alone")


def _gpu(torch_name: str, total_memory_bytes: int) -> Device:
    """The table's figures for a GPU that torch sees, with the memory it really has."""
    listed = DEVICES.get(TORCH_NAMES.get(torch_name, ""))
    # A slice of a card may bear the whole card's name; it has neither its memory nor its rates.
    if listed and abs(total_memory_bytes / listed.memory_bytes - 1) < 0.1:
        return replace(
            listed, memory_bytes=total_memory_bytes, source=f"{listed.source}; memory as torch reports it here"
        )
    return Device(
        name=torch_name,
        kind="cuda",
        memory_bytes=total_memory_bytes,
        flops={},
        memory_bytes_per_second=_UNLISTED_MEMORY_BYTES_PER_SECOND,
        link_bytes_per_second=_UNLISTED_BUS_BYTES_PER_SECOND,
        bus_bytes_per_second=_UNLISTED_BUS_BYTES_PER_SECOND,
        source="memory as torch reports it here; the rates are guesses, since the device is not in ScaleKit's table",
    )


def cpu(processes: int, nodes: int) -> Hardware:
    """This machine's CPU, shared by so many processes."""
    import torch

    check_counts(processes, nodes)
    cores, memory = host_cores(), _host_memory_bytes()
    threads = torch.get_num_threads()
    # A process has its part of the cores, though no more of them than it has threads: torchrun gives each process one.
    share = min(1.0, cores / (min(threads, cores) * processes))
    rate, kernels = memory_bytes_per_second(threads, processes), kernel_rates(threads, processes)
    # One core feeds gloo, whatever the wire between nodes could carry.
    links = ASSUMED if processes == 1 else collective_rates(threads, processes)
    device = Device(
        name="cpu",
        kind="cpu",
        memory_bytes=memory // processes,
        flops={name: flops * share for name, flops in product_flops(threads, processes).items()},
        memory_bytes_per_second=rate * share,
        link_bytes_per_second=links["all_reduce"],
        bus_bytes_per_second=rate * share,
        source="measured on this machine",
        kernels={
            **{name: value / share if name == "dispatch" else value * share for name, value in kernels.items()},
            **links,
        },
    )
    return Hardware(
        device,
        processes,
        nodes,
        network_bytes_per_second=links["all_reduce"],
        host_memory_bytes=memory,
        host_bytes_per_second=rate * share * processes,
        host_cores=cores,
    )


def _host_memory_bytes() -> int:
    """This machine's memory, or what a container or a batch job may have of it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits_bytes()])


def _cgroup_limits_bytes() -> Iterator[int]:
    """The limits that hold for this process: those of its group and of each above it, in cgroup v2 and v1."""
    own = _OWN_CGROUPS.read_text().splitlines() if _OWN_CGROUPS.is_file() else []
    for controller, root, file in (
        ("", _CGROUP, "memory.max"),
        ("memory", _CGROUP / "memory", "memory.limit_in_bytes"),
    ):
        groups = [line.split(":", 2)[2] for line in own if controller in line.split(":", 2)[1].split(",")]
        # A container sees its own group as the root, though its name may still be the one outside.
        folders = {root} | {root / part for group in groups for part in _above(group)}
        for folder in folders:
            text = (folder / file).read_text().strip() if (folder / file).is_file() else "max"
            if text.isdigit():
                yield int(text)


def _above(group: str) -> list[Path]:
    path = Path(group.lstrip("/"))
    return [path, *path.parents]
