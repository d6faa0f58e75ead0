"""From what a user writes to hardware: a name, counts and a name, or a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from scalekit.errors import ConfigError
from scalekit.hardware.catalog import LARGEST_NODE, THIS_MACHINE, find_device, hardware_of
from scalekit.hardware.local import cpu, detect
from scalekit.hardware.spec import COMPUTE_TYPES, KINDS, Device, Hardware, check_known, positive, whole
from scalekit.utils.yaml_text import read_mapping


def parse(text_or_path: str | Path) -> Hardware:
    """Reads hardware; see `Hardware.parse`."""
    text = str(text_or_path).strip()
    if text.endswith((".yaml", ".yml")):
        return _read(Path(text))
    first, second, name = _counts(text)
    if second is not None:
        return _build(name, second, first or 0)
    if first is None or first <= LARGEST_NODE or name.lower() in THIS_MACHINE:
        return _build(name, 1 if first is None else first)
    return _build(name, *_nodes_of(first, find_device(name).name))


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
        return cpu(devices_per_node, nodes)
    if name.lower() in THIS_MACHINE:
        return detect(devices_per_node, nodes)
    return hardware_of(find_device(name), devices_per_node, nodes)


def _read(path: Path) -> Hardware:
    block, _ = read_mapping(path, "hardware", "a mapping with the key 'device'")
    return _from_mapping(path, block)


def _from_mapping(path: Path, block: Mapping[str, Any]) -> Hardware:
    check_known(f"key in {path}:", block, [each.name for each in fields(Hardware)])
    device = block.get("device")
    if not isinstance(device, (str, int, Mapping)):
        raise ConfigError(f"{path} must say its device: a name such as 'H100-80GB', or a mapping of its figures")
    counts = [whole(name, block.get(name, 1)) for name in ("devices_per_node", "nodes")]
    own = _own_device(path, device) if isinstance(device, Mapping) else None
    base = hardware_of(own, *counts) if own else _build(str(device), *counts)
    given: dict[str, Any] = {name: whole(name, block[name]) for name in _WHOLE if name in block}
    given |= {name: positive(name, block[name]) for name in _RATES if name in block}
    return replace(base, **given)


_WHOLE = ("host_memory_bytes", "host_cores")
_RATES = ("network_bytes_per_second", "host_bytes_per_second")
_DEVICE_RATES = ("memory_bytes_per_second", "link_bytes_per_second", "bus_bytes_per_second")


def _own_device(path: Path, block: Mapping[str, Any]) -> Device:
    """A device that a file describes; `kind` is "cuda" and `source` the file where it does not say."""
    names = [each.name for each in fields(Device) if each.name != "kernels"]
    check_known(f"key in `device:` of {path}:", block, names)
    missing = [name for name in names if name not in block and name not in ("kind", "source", "context_bytes")]
    if missing:
        raise ConfigError(f"`device:` of {path} lacks {', '.join(missing)}")
    kind, flops = block.get("kind", "cuda"), block["flops"]
    check_known("kind of device", [kind], KINDS)
    if not isinstance(flops, Mapping):
        raise ConfigError(f"flops={flops!r} of {path} must be a mapping of compute types, such as bfloat16, to FLOP/s")
    check_known("compute type in `flops:`", flops, COMPUTE_TYPES)
    rates: dict[str, Any] = {name: positive(name, block[name]) for name in _DEVICE_RATES}
    return Device(
        name=str(block["name"]),
        kind=kind,
        memory_bytes=whole("memory_bytes", block["memory_bytes"]),
        flops={name: positive(f"flops of {name}", value) for name, value in flops.items()},
        source=str(block.get("source", path)),
        context_bytes=whole("context_bytes", block["context_bytes"]) if "context_bytes" in block else None,
        **rates,
    )
