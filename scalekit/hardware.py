"""Hardware to plan for: a device's figures, and how many of them stand in how many nodes.

The rates in the table are peaks, as the datasheets give them; what a program reaches is less, and is for the reader of
these figures to judge. Memory sizes are the ones that a program finds, which is less than what is printed on the box.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import yaml

from scalekit.errors import ConfigError, UnknownNameError
from scalekit.files import write_at_once
from scalekit.resources import cache_folder

COMPUTE_TYPES = ("float32", "bfloat16", "float16")
KINDS = ("cuda", "cpu")
LARGEST_NODE = 8  # devices: what the nodes that these cards are sold in hold; larger ones are written out

_GIB = 2**30
# gloo over loopback or TCP, which one core feeds: measured rates lie around 1 GB/s whatever the wire could carry.
_GLOO_BYTES_PER_SECOND = 1e9
# For a GPU that is not in the table: the memory of the slowest card in it, and PCIe 3.0 x16.
_UNLISTED_MEMORY_BYTES_PER_SECOND = 300e9
_UNLISTED_BUS_BYTES_PER_SECOND = 16e9
_CONTEXTS = "contexts.json"
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Device:
    """One device, as one process of a job uses it.

    Attributes:
        name: such as ``H100-80GB``.
        kind: ``cuda`` or ``cpu``, as torch calls it (AMD's GPUs are ``cuda`` too).
        memory_bytes: what torch reports as total memory; a CUDA context and the allocator still take theirs from it.
        flops: peak FLOP/s of dense matrix products by compute type; ``float32`` without TF32, as torch's default is.
            Empty where unknown.
        memory_bytes_per_second: to and from the device's own memory.
        link_bytes_per_second: to the node's other devices, one direction (NVLink, Infinity Fabric, otherwise PCIe).
        bus_bytes_per_second: between host and device, one direction.
        source: where the figures are from.
        context_bytes: what a process takes of it beside tensors, where a probe has measured that here.
    """

    name: str
    kind: str
    memory_bytes: int
    flops: Mapping[str, float] = field(hash=False)
    memory_bytes_per_second: float
    link_bytes_per_second: float
    bus_bytes_per_second: float
    source: str
    context_bytes: int | None = None


@dataclass(frozen=True)
class Hardware:
    """Nodes of equal devices.

    Attributes:
        device: each of them.
        devices_per_node: on one node, which is also its number of processes.
        nodes: how many.
        network_bytes_per_second: between nodes, one direction, of each device.
        host_memory_bytes: of one node.
        host_bytes_per_second: to and from the host memory of one node, reads and writes together.
        host_cores: of one node.
    """

    device: Device
    devices_per_node: int = 1
    nodes: int = 1
    _: KW_ONLY
    network_bytes_per_second: float
    host_memory_bytes: int
    host_bytes_per_second: float
    host_cores: int

    def __post_init__(self) -> None:
        _check_counts(self.devices_per_node, self.nodes)

    @property
    def world_size(self) -> int:
        """All devices, and as many processes."""
        return self.nodes * self.devices_per_node

    @property
    def name(self) -> str:
        """Such as ``64x8xH100-80GB``, ``8xH100-80GB`` or ``H100-80GB``."""
        if self.nodes > 1:
            return f"{self.nodes}x{self.devices_per_node}x{self.device.name}"
        return f"{self.devices_per_node}x{self.device.name}" if self.devices_per_node > 1 else self.device.name

    @classmethod
    def parse(cls, text_or_path: str | Path) -> Hardware:
        """Reads hardware from a name, from counts and a name, or from a file.

        ``H100-80GB`` is one device, ``8xH100-80GB`` a node of them, ``64x8xH100-80GB`` 64 such nodes; of a number
        above 8 alone, each node holds 8. ``4xcpu`` is this machine's CPU with 4 processes on it, ``local`` (or
        ``auto``) what `detect` finds. A path that ends in ``.yaml`` or ``.yml`` is a mapping with Hardware's fields,
        its ``device`` a name or a mapping with Device's.

        Raises:
            UnknownNameError: no such device, or an unknown key in the file.
            ConfigError: a name that may be several, counts that make no nodes, or a file that holds no hardware.
        """
        text = str(text_or_path).strip()
        if text.endswith((".yaml", ".yml")):
            return _read(Path(text))
        first, second, name = _counts(text)
        if second is not None:
            return _build(name, second, first or 0)
        if first is None or first <= LARGEST_NODE or name.lower() in _THIS_MACHINE:
            return _build(name, 1 if first is None else first)
        return _build(name, *_nodes_of(first, find_device(name).name))


def find_device(name: str) -> Device:
    """A device of the table: any case, without the memory where only one has that name, with or without ``RTX``.

    Raises:
        UnknownNameError: no such device.
        ConfigError: several devices have that name.
    """
    found = [device for device in DEVICES.values() if _letters(name) in _spellings(device.name)]
    if not found:
        raise UnknownNameError("hardware", name, (*DEVICES, *_THIS_MACHINE))
    if len(found) > 1:
        several = " or ".join(device.name for device in found)
        raise ConfigError(f"hardware {name!r} may be {several}: give its memory too")
    return found[0]


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

    _check_counts(processes, nodes)
    if not torch.cuda.is_available():
        found = _cpu(processes, nodes)
    else:
        card = torch.cuda.get_device_properties(0)
        found = replace(
            _hardware(_gpu(card.name, card.total_memory), processes, nodes),
            host_memory_bytes=_host_memory_bytes(),
            host_bytes_per_second=_copy_bytes_per_second(torch.get_num_threads()),
            host_cores=_host_cores(),
        )
    return replace(found, device=replace(found.device, context_bytes=_remembered().get(_key(found))))


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
    file = cache_folder() / _CONTEXTS
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_at_once(file, json.dumps({**_remembered(), _key(hardware): context_bytes}))


def _key(hardware: Hardware) -> str:
    """One process alone has no buffers for collectives."""
    return hardware.device.name + (", several" if hardware.world_size > 1 else ", alone")


def _remembered() -> dict[str, int]:
    try:
        return dict(json.loads((cache_folder() / _CONTEXTS).read_text()))
    except (OSError, ValueError):
        return {}


def _card(
    name: str, gib: float, float32: float, half: float, memory: float, link: float, bus: float, source: str
) -> Device:
    """A row of the table: GiB that torch reports, TFLOP/s, and GB/s."""
    return Device(
        name=name,
        kind="cuda",
        memory_bytes=int(gib * _GIB),
        flops={"float32": float32 * 1e12, "bfloat16": half * 1e12, "float16": half * 1e12},
        memory_bytes_per_second=memory * 1e9,
        link_bytes_per_second=link * 1e9,
        bus_bytes_per_second=bus * 1e9,
        source=source,
    )


# Memory: total memory differs by driver and ECC by some 0.1 GiB, so each row has about the least that torch's messages
# of such cards report. FLOP/s: dense, where datasheets often print the figure with sparsity, which is twice that. Link
# and bus: half of what datasheets print, which is both directions together (PCIe 4.0 x16 is 32 GB/s, 5.0 64 GB/s).
_CARDS = (
    _card("A10", 21.6, 31.2, 125, 600, 32, 32, "NVIDIA A10 datasheet; PCIe 4.0"),
    _card("A100-40GB", 39.2, 19.5, 312, 1555, 300, 32, "NVIDIA A100 datasheet, SXM4 40 GB; NVLink 3"),
    _card("A100-80GB", 79.1, 19.5, 312, 2039, 300, 32, "NVIDIA A100 datasheet, SXM4 80 GB; NVLink 3"),
    _card("H100-80GB", 79.1, 67, 989.4, 3350, 450, 64, "NVIDIA H100 datasheet, SXM5; NVLink 4"),
    _card("H200-141GB", 139.7, 67, 989.4, 4800, 450, 64, "NVIDIA H200 datasheet, SXM; NVLink 4"),
    # An early B200 was announced with 192 GB; the DGX has 1440 GB on eight. The hosts that it is sold with are PCIe 5.0.
    _card("B200-180GB", 178.3, 75, 2250, 8000, 900, 64, "NVIDIA DGX B200 datasheet, an eighth of it; NVLink 5"),
    _card("L4", 21.9, 30.3, 121, 300, 32, 32, "NVIDIA L4 datasheet; PCIe 4.0"),
    _card("L40S", 44.3, 91.6, 362, 864, 32, 32, "NVIDIA L40S datasheet; PCIe 4.0"),
    # Half the tensor rate of its float16 sums, since torch sums in float32. GeForce cards have no peer-to-peer: what
    # they send each other goes through host memory, crossing two buses, so the link is half of one.
    _card("RTX-4090", 23.5, 82.6, 165.2, 1008, 16, 32, "NVIDIA Ada GPU architecture whitepaper, RTX 4090; PCIe 4.0"),
    # Seven links of 64 GB/s, one to each other device of the node: all of them together.
    _card("MI300X-192GB", 191.6, 163.4, 1307.4, 5300, 448, 64, "AMD Instinct MI300X datasheet; Infinity Fabric"),
)
DEVICES: Mapping[str, Device] = {device.name: device for device in _CARDS}

_THIS_MACHINE = ("cpu", "local", "auto")

# What torch calls them. Whole names: an A10G, an H100 PCIe, an H20 or a slice of a card are other devices.
_TORCH_NAMES = {
    "NVIDIA A10": "A10",
    "A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-40GB": "A100-40GB",
    "NVIDIA A100-SXM4-80GB": "A100-80GB",
    "NVIDIA H100 80GB HBM3": "H100-80GB",
    "NVIDIA H200": "H200-141GB",
    "NVIDIA B200": "B200-180GB",
    "NVIDIA L4": "L4",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX-4090",
    "AMD Instinct MI300X": "MI300X-192GB",
    "AMD Instinct MI300X VF": "MI300X-192GB",
}


@dataclass(frozen=True)
class _Host:
    """What a node has beside its devices, where nothing better is known; of the whole node, however few are used.

    A rented eighth of such a node has less, and says so in a file.
    """

    memory_bytes: int
    bytes_per_second: float
    cores: int
    network_bytes_per_second: float
    network_shared: bool = False  # one adapter for the node, not one for each device


# As a DGX H100: 2 TiB, two sockets of 56 cores and 8 channels DDR5-4800, and 400 Gbit/s InfiniBand for each device.
_HOPPER_HOST = _Host(2048 * _GIB, 614e9, 112, 50e9)
# As a DGX A100: 1 TiB (the smaller of its two), two sockets of 64 cores and 8 channels DDR4-3200, 200 Gbit/s each.
_AMPERE_HOST = _Host(1024 * _GIB, 410e9, 128, 25e9)
# A server for PCIe cards: 256 GiB, one socket of 32 cores and 8 channels DDR4-3200, 100 Gbit/s that its devices share.
_PLAIN_HOST = _Host(256 * _GIB, 205e9, 32, 12.5e9, network_shared=True)
_HOSTS = {
    "A100-40GB": _AMPERE_HOST,
    "A100-80GB": _AMPERE_HOST,
    "H100-80GB": _HOPPER_HOST,
    "H200-141GB": _HOPPER_HOST,
    "B200-180GB": _HOPPER_HOST,
    "MI300X-192GB": _HOPPER_HOST,
}


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _spellings(name: str) -> set[str]:
    return {_letters(name), _letters(re.sub(r"^RTX-|-\d+GB$", "", name))}


def _counts(text: str) -> tuple[int | None, int | None, str]:
    """The numbers before a device's name, and the name."""
    count = r"(?:(-?\d+)\s*x\s*)?"
    parts = re.split(f"^{count}{count}", text, maxsplit=1, flags=re.IGNORECASE)
    first, second = (None if part is None else int(part) for part in parts[1:3])
    return first, second, parts[3].strip()


def _nodes_of(devices: int, name: str) -> tuple[int, int]:
    """How many are on each node, and the nodes, of a number of devices that one node does not hold."""
    if devices % LARGEST_NODE == 0:
        return LARGEST_NODE, devices // LARGEST_NODE
    even = max(n for n in range(1, LARGEST_NODE + 1) if devices % n == 0)
    raise ConfigError(
        f"a node holds at most {LARGEST_NODE} {name}, and {devices} is no multiple of that. "
        f"Write nodes x devices, such as '{devices // even}x{even}x{name}'"
    )


def _build(name: str, devices_per_node: int, nodes: int = 1) -> Hardware:
    """Hardware from a device's name or this machine's."""
    if name.lower() == "cpu":
        return _cpu(devices_per_node, nodes)
    if name.lower() in _THIS_MACHINE:
        return detect(devices_per_node, nodes)
    return _hardware(find_device(name), devices_per_node, nodes)


def _hardware(device: Device, devices_per_node: int, nodes: int) -> Hardware:
    """Hardware whose nodes are as nodes of such devices usually are."""
    _check_counts(devices_per_node, nodes)
    host = _HOSTS.get(device.name, _PLAIN_HOST)
    return Hardware(
        device,
        devices_per_node,
        nodes,
        network_bytes_per_second=host.network_bytes_per_second / (devices_per_node if host.network_shared else 1),
        host_memory_bytes=host.memory_bytes,
        host_bytes_per_second=host.bytes_per_second,
        host_cores=host.cores,
    )


def _read(path: Path) -> Hardware:
    try:
        block = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the hardware {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(block, dict):
        raise ConfigError(f"{path} holds no hardware: it must be a mapping with the key 'device'")
    return _from_mapping(path, block)


def _from_mapping(path: Path, block: Mapping[str, Any]) -> Hardware:
    _known(f"key in {path}:", block, [each.name for each in fields(Hardware)])
    device = block.get("device")
    if not isinstance(device, (str, int, Mapping)):
        raise ConfigError(f"{path} must say its device: a name such as 'H100-80GB', or a mapping of its figures")
    counts = [_whole(name, block.get(name, 1)) for name in ("devices_per_node", "nodes")]
    own = _own_device(path, device) if isinstance(device, Mapping) else None
    base = _hardware(own, *counts) if own else _build(str(device), *counts)
    given: dict[str, Any] = {name: _whole(name, block[name]) for name in _WHOLE if name in block}
    given |= {name: _positive(name, block[name]) for name in _RATES if name in block}
    return replace(base, **given)


_WHOLE = ("host_memory_bytes", "host_cores")
_RATES = ("network_bytes_per_second", "host_bytes_per_second")
_DEVICE_RATES = ("memory_bytes_per_second", "link_bytes_per_second", "bus_bytes_per_second")


def _own_device(path: Path, block: Mapping[str, Any]) -> Device:
    """A device that a file describes; `kind` is "cuda" and `source` the file where it does not say."""
    names = [each.name for each in fields(Device)]
    _known(f"key in `device:` of {path}:", block, names)
    missing = [name for name in names if name not in block and name not in ("kind", "source", "context_bytes")]
    if missing:
        raise ConfigError(f"`device:` of {path} lacks {', '.join(missing)}")
    kind, flops = block.get("kind", "cuda"), block["flops"]
    _known("kind of device", [kind], KINDS)
    if not isinstance(flops, Mapping):
        raise ConfigError(f"flops={flops!r} of {path} must be a mapping of compute types, such as bfloat16, to FLOP/s")
    _known("compute type in `flops:`", flops, COMPUTE_TYPES)
    return Device(
        name=str(block["name"]),
        kind=kind,
        memory_bytes=_whole("memory_bytes", block["memory_bytes"]),
        flops={name: _positive(f"flops of {name}", value) for name, value in flops.items()},
        source=str(block.get("source", path)),
        context_bytes=_whole("context_bytes", block["context_bytes"]) if "context_bytes" in block else None,
        **{name: _positive(name, block[name]) for name in _DEVICE_RATES},
    )


def _known(kind: str, given: Iterable[Any], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)


def _positive(name: str, value: Any) -> float:
    """A setting as a number; YAML reads 1e9 as text, which is taken for the number it says."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}={value!r} is not a number") from None
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ConfigError(f"{name}={value!r} must be a number above 0")
    return number


def _whole(name: str, value: Any) -> int:
    number = _positive(name, value)
    if number != int(number):
        raise ConfigError(f"{name}={value!r} is not a whole number")
    return int(number)


def _check_counts(devices_per_node: int, nodes: int) -> None:
    for name, value in (("devices_per_node", devices_per_node), ("nodes", nodes)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")


def _gpu(torch_name: str, total_memory_bytes: int) -> Device:
    """The table's figures for a GPU that torch sees, with the memory it really has."""
    listed = DEVICES.get(_TORCH_NAMES.get(torch_name, ""))
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


def _cpu(processes: int, nodes: int) -> Hardware:
    """This machine's CPU, shared by so many processes."""
    import torch

    _check_counts(processes, nodes)
    cores, memory = _host_cores(), _host_memory_bytes()
    threads = torch.get_num_threads()
    # A process has its part of the cores, though no more of them than it has threads: torchrun gives each process one.
    share = min(1.0, cores / (min(threads, cores) * processes))
    rate = _copy_bytes_per_second(threads)
    device = Device(
        name="cpu",
        kind="cpu",
        memory_bytes=memory // processes,
        flops={name: flops * share for name, flops in _matmul_flops(threads).items()},
        memory_bytes_per_second=rate * share,
        link_bytes_per_second=_GLOO_BYTES_PER_SECOND,
        bus_bytes_per_second=rate * share,
        source="measured on this machine",
    )
    return Hardware(
        device,
        processes,
        nodes,
        network_bytes_per_second=_GLOO_BYTES_PER_SECOND,
        host_memory_bytes=memory,
        host_bytes_per_second=rate,
        host_cores=cores,
    )


def _host_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


@lru_cache
def _copy_bytes_per_second(threads: int) -> float:
    """Bytes read and written by a copy that no cache holds; `threads` is torch's, which the result holds for."""
    import torch

    source = torch.ones(16 * 2**20, dtype=torch.float32, device="cpu")
    target = torch.zeros_like(source)
    return 2 * source.nbytes / _best_seconds(lambda: target.copy_(source))


@lru_cache
def _matmul_flops(threads: int) -> Mapping[str, float]:
    """FLOP/s of square products by compute type; float16 is left out, since nothing trains in it on a CPU."""
    import torch

    return {name: _best_flops(getattr(torch, name)) for name in ("float32", "bfloat16")}


def _best_flops(dtype: Any) -> float:
    """The best rate of growing sizes, which ends before a slow machine takes long."""
    import torch

    best = 0.0
    for size in (256, 512, 1024):
        # Ones, not random numbers: the generators are the job's.
        matrix = torch.ones(size, size, dtype=dtype, device="cpu")
        target = torch.empty_like(matrix)
        seconds = _best_seconds(partial(torch.mm, matrix, matrix, out=target))
        best = max(best, 2 * size**3 / seconds)
        if 8 * seconds > 0.15:  # which is what the next size takes
            break
    return best


def _best_seconds(run: Callable[[], object], budget_seconds: float = 0.05) -> float:
    """The shortest of as many repetitions as fit the budget, and one at least; others on the machine only slow it."""
    best, end = math.inf, time.perf_counter() + budget_seconds
    while math.isinf(best) or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)
