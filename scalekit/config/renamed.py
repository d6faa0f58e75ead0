"""Settings that had another name or value before: the old one is understood, with a warning."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from scalekit.errors import ConfigError

NAMES = {
    "average_decay": "ema_decay",
    "schedule": "lr_schedule",
    "shuffle_rows": "shuffle_buffer_size",
    "workers": "num_workers",
}
_VALUES = {("memory_check", "refuse"): "error", ("on_bad_row", "refuse"): "error"}


def understood(settings: Mapping[str, Any], warn: bool = True) -> dict[str, Any]:
    """Settings by their present names and values.

    Args:
        settings: of a job, by name.
        warn: whether to warn of old ones, on rank 0, for all.

    Raises:
        ConfigError: a setting is given by both of its names.
    """
    found: dict[str, Any] = {}
    warn = warn and os.environ.get("RANK", "0") == "0"
    for name, value in settings.items():
        new = NAMES.get(name, name)
        if new != name and new in settings:
            raise ConfigError(f"{name} is the old name of {new}: give {new} alone")
        found[new] = _VALUES.get((new, value), value) if isinstance(value, str) else value
        if warn and new != name:
            warnings.warn(f"the setting {name} is called {new} now", FutureWarning, stacklevel=3)
        if warn and found[new] is not value:
            warnings.warn(f"{new}: {value!r} is called {found[new]!r} now", FutureWarning, stacklevel=3)
    return found
