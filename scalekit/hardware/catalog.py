"""The table of cards, and the nodes that they are sold in, from `devices.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from scalekit.errors import ConfigError, UnknownNameError
from scalekit.hardware.spec import Device, Hardware, check_counts

_GIB = 2**30
LARGEST_NODE = 8  # devices: what the nodes that these cards are sold in hold; larger ones are written out
THIS_MACHINE = ("cpu", "local", "auto")

_READER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where it can be: the table is read at each start
_TABLE: Mapping[str, Any] = yaml.load(Path(__file__).with_name("devices.yaml").read_bytes(), _READER)
_ROWS: Mapping[str, Mapping[str, Any]] = _TABLE["devices"]


def _device(name: str, row: Mapping[str, Any]) -> Device:
    return Device(
        name=name,
        kind="cuda",
        memory_bytes=int(row["memory"] * _GIB),
        flops={kind: rate * 1e12 for kind, rate in row["tflops"].items()},
        memory_bytes_per_second=row["bandwidth"] * 1e9,
        link_bytes_per_second=row["link"] * 1e9,
        bus_bytes_per_second=row["bus"] * 1e9,
        source=row["source"],
    )


DEVICES: Mapping[str, Device] = {name: _device(name, row) for name, row in _ROWS.items()}
TORCH_NAMES = {called: name for name, row in _ROWS.items() for called in row["torch"]}
"""What torch calls them."""


def find_device(name: str) -> Device:
    """A device of the table: any case, without the memory where one is meant by that name, with or without ``RTX``.

    Raises:
        UnknownNameError: no such device.
        ConfigError: several devices have that name.
    """
    found = [device for device in DEVICES.values() if _letters(name) in _spellings(device.name)]
    found = [device for device in found if _ROWS[device.name].get("is_usual")] or found
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
    node = _TABLE["nodes"][_ROWS.get(device.name, {}).get("node", "plain")]
    return Hardware(
        device,
        devices_per_node,
        nodes,
        network_bytes_per_second=node["network"] * 1e9 / (devices_per_node if node.get("is_shared") else 1),
        host_memory_bytes=node["memory"] * _GIB,
        host_bytes_per_second=node["bandwidth"] * 1e9,
        host_cores=node["cores"],
    )
