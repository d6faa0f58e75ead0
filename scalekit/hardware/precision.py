"""The precision that a device computes fastest, and what is said of one that it computes slowly."""

from __future__ import annotations

from collections.abc import Mapping

from scalekit.hardware.local import detect
from scalekit.hardware.measure import processor, product_flops
from scalekit.hardware.spec import Device

CLEARLY_FASTER = 1.3
"""How much faster products in bfloat16 must be for it to be chosen: casts and normalization take some of it back."""

_PLAIN, _HALF = "32-true", "bf16-mixed"
_COMPUTE = {"32-true": "float32", "bf16-mixed": "bfloat16", "bf16-true": "bfloat16", "16-mixed": "float16"}
# The flags by which a processor says that it multiplies in bfloat16: x86's and ARM's.
_HALF_FLAGS = {"avx512_bf16", "amx_bf16", "avx10_2", "bf16", "svebf16"}


def fastest(flops: Mapping[str, float]) -> str:
    """bf16-mixed where bfloat16 is clearly faster than float32, else 32-true.

    Args:
        flops: FLOP/s of products by compute type; a type that is missing is not computed natively.
    """
    single, half = flops.get("float32", 0.0), flops.get("bfloat16", 0.0)
    return _HALF if half > 0 and half >= CLEARLY_FASTER * single else _PLAIN


def fastest_precision(device: str | Device) -> str:
    """What precision ``"auto"`` means on a device: measured on this machine's CPU, by the figures of a card.

    Args:
        device: ``"cpu"`` or ``"cuda"``, this machine's, or a device's figures.
    """
    if isinstance(device, Device) and device.flops:
        return fastest(device.flops)
    if (device.kind if isinstance(device, Device) else device) == "cuda":
        return _HALF if _has_bfloat16() else _PLAIN
    return fastest(_flops_here())


def slow_precision_warning(precision: str, device: str | Device) -> str | None:
    """Says that a precision is clearly slower on a device than another, how much, and which; None where it is not.

    Args:
        precision: by its name; ``"auto"`` is never slow.
        device: as for `fastest_precision`.
    """
    if precision not in _COMPUTE:
        return None
    if device == "cpu":
        return _warning(precision, _flops_here(), _this_cpu(), "run")
    known = device if isinstance(device, Device) else detect().device
    if known.kind == "cpu":
        return _warning(precision, known.flops, _this_cpu() if known.name == "cpu" else known.name, "run")
    if not known.flops:
        if _COMPUTE[precision] != "bfloat16" or _has_bfloat16():
            return None
        return f"precision {precision} is slow on {known.name}, which emulates bfloat16. 32-true is faster here"
    return _warning(precision, known.flops, known.name, "have a peak of")


def _warning(precision: str, flops: Mapping[str, float], where: str, verb: str) -> str | None:
    best = fastest(flops)
    if _COMPUTE[best] == _COMPUTE[precision]:
        return None
    fast, slow = flops[_COMPUTE[best]], flops.get(_COMPUTE[precision], 0.0)
    if slow == 0.0:
        lacking = f"which does not compute {_COMPUTE[precision]} by itself"
        return f"precision {precision} is slow on {where}, {lacking}. {best} is the fastest here"
    if fast < CLEARLY_FASTER * slow:
        return None
    at = "at " if verb == "run" else ""
    return (
        f"precision {precision} is {_factor(fast / slow)}x slower than {best} on {where}: matrix products {verb} {at}"
        f"{_readable(slow)} against {_readable(fast)}. {best} is the fastest here"
    )


def _factor(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.5 else f"{ratio:.1f}"


def _readable(flops: float) -> str:
    """Such as 86 GFLOP/s or 1.3 GFLOP/s."""
    scale, unit = (1e12, "TFLOP/s") if flops >= 1e12 else (1e9, "GFLOP/s")
    return f"{flops / scale:.3g} {unit}" if flops >= 10 * scale else f"{flops / scale:.2g} {unit}"


def _flops_here() -> Mapping[str, float]:
    import torch

    return product_flops(torch.get_num_threads())


def _this_cpu() -> str:
    name, flags = processor()
    lacks = bool(flags) and not _HALF_FLAGS & set(flags.split())
    return f"this CPU ({name}{', no bfloat16 instructions' if lacks else ''})"


def _has_bfloat16() -> bool:
    """Of a GPU that is not in the table, torch knows; where none is seen, it is taken for a current one."""
    import torch

    return not torch.cuda.is_available() or bool(torch.cuda.is_bf16_supported(including_emulation=False))
