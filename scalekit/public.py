"""Small public functions; the package's own modules have other names, so that neither hides the other."""

from __future__ import annotations

from scalekit import dtypes, engines
from scalekit.engines.engine import Engine
from scalekit.strategies import Strategy
from scalekit.world import World, device_type


def strategy(name_or_path: str, precision: str = "auto") -> Engine:
    """A strategy ready for `lightning.Trainer(strategy=...)`; the Trainer's own `precision` stays unset.

    Args:
        name_or_path: a name in ``strategies/``, or the path of a strategy file.
        precision: ``32-true``, ``bf16-mixed``, ``bf16-true``, ``16-mixed`` or ``"auto"``.

    Raises:
        ScaleKitError: no such strategy or precision, or a package is missing.
    """
    device = device_type()
    spec = Strategy.load(name_or_path)
    return engines.engine(spec, dtypes.resolve(precision, device), device, World.from_environment())
