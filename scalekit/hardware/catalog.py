"""The table of cards, and the nodes that they are sold in.

The rates in the table are peaks, as the datasheets give them; what a program reaches is less, and is for the reader of
these figures to judge. Memory sizes are the ones that a program finds, which is less than what is printed on the box.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from scalekit.errors import ConfigError, UnknownNameError
from scalekit.hardware.spec import Device, Hardware, check_counts

_GIB = 2**30
LARGEST_NODE = 8  # devices: what the nodes that these cards are sold in hold; larger ones are written out


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


THIS_MACHINE = ("cpu", "local", "auto")


# What torch calls them. Whole names: an A10G, an H100 PCIe, an H20 or a slice of a card are other devices.
TORCH_NAMES = {
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


def find_device(name: str) -> Device:
    """A device of the table: any case, without the memory where only one has that name, with or without ``RTX``.

    Raises:
        UnknownNameError: no such device.
        ConfigError: several devices have that name.
    """
    found = [device for device in DEVICES.values() if _letters(name) in _spellings(device.name)]
    if not found:
        raise UnknownNameError("hardware", name, (*DEVICES, *THIS_MACHINE))
    if len(found) > 1:
        several = " or ".join(device.name for device in found)
        raise ConfigError(f"hardware {name!r} may be {several}: give its memory too")
    return found[0]


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _spellings(name: str) -> set[str]:
    return {_letters(name), _letters(re.sub(r"^RTX-|-\d+GB$", "", name))}


def hardware_of(device: Device, devices_per_node: int, nodes: int) -> Hardware:
    """Hardware whose nodes are as nodes of such devices usually are."""
    check_counts(devices_per_node, nodes)
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
