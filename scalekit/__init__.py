"""ScaleKit: train any PyTorch model on any hardware, to the same numbers.

Importing this package imports neither torch nor anything else that is heavy; each public name brings its own when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalekit.api import plan, strategy
    from scalekit.checkpoint.module_state import load_module
    from scalekit.data.sources.mixture import Mixture
    from scalekit.errors import ScaleKitError
    from scalekit.exporting import export
    from scalekit.training.fit import fit
    from scalekit.training.result import Run
    from scalekit.training.scale_module import ScaleModule

__version__ = "0.1.0"

_HOME = {
    "fit": "scalekit.training.fit",
    "Run": "scalekit.training.result",
    "ScaleModule": "scalekit.training.scale_module",
    "Mixture": "scalekit.data.sources.mixture",
    "ScaleKitError": "scalekit.errors",
    "load_module": "scalekit.checkpoint.module_state",
    "plan": "scalekit.api",
    "strategy": "scalekit.api",
    "export": "scalekit.exporting",
}

__all__ = [
    "Mixture",
    "Run",
    "ScaleKitError",
    "ScaleModule",
    "__version__",
    "export",
    "fit",
    "load_module",
    "plan",
    "strategy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
