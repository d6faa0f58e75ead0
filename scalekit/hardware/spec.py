"""A device's figures, and how many of them stand in how many nodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from scalekit.errors import ConfigError, UnknownNameError

COMPUTE_TYPES = ("float32", "bfloat16", "float16")
KINDS = ("cuda", "cpu")


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
        kernels: of a CPU that was measured, what it reaches in other operations than products, and in collectives; see
            `kernels.KERNELS` and `links.COLLECTIVES`.
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
    kernels: Mapping[str, float] = field(default_factory=dict, hash=False)


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
        check_counts(self.devices_per_node, self.nodes)

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
        from scalekit.hardware.parsing import parse  # which knows the cards and this machine, and they this module

        return parse(text_or_path)


def check_known(kind: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Refuses a name that is not among those known."""
    for name in given:
        if name not in known:
            raise UnknownNameError(kind, name, known)


def positive(name: str, value: Any) -> float:
    """A setting as a number; YAML reads 1e9 as text, which is taken for the number it says."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}={value!r} is not a number") from None
    if isinstance(value, bool) or not 0 < number < math.inf:
        raise ConfigError(f"{name}={value!r} must be a number above 0")
    return number


def whole(name: str, value: Any) -> int:
    """A setting as a whole number above 0."""
    number = positive(name, value)
    if number != int(number):
        raise ConfigError(f"{name}={value!r} is not a whole number")
    return int(number)


def check_counts(devices_per_node: int, nodes: int) -> None:
    """Refuses less than one device or node."""
    for name, value in (("devices_per_node", devices_per_node), ("nodes", nodes)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1")
