"""Hardware to plan for: a device's figures, how many of them stand in how many nodes, and what this machine has.

`spec` is what hardware is, `catalog` the table of cards, `measure` and `kernels` what is measured here and kept, `local` this
machine, `parsing` names and files, `precision` the type that a device computes fastest; each knows those before it.
"""

from scalekit.hardware.catalog import DEVICES, LARGEST_NODE, find_device
from scalekit.hardware.local import detect, most_resident_bytes, remember, taken_bytes
from scalekit.hardware.precision import fastest_precision, slow_precision_warning
from scalekit.hardware.spec import COMPUTE_TYPES, KINDS, Device, Hardware

__all__ = [
    "COMPUTE_TYPES",
    "DEVICES",
    "KINDS",
    "LARGEST_NODE",
    "Device",
    "Hardware",
    "detect",
    "fastest_precision",
    "find_device",
    "most_resident_bytes",
    "remember",
    "slow_precision_warning",
    "taken_bytes",
]
