"""The YAML strategies and launch files, in the wheel beside the code, in a checkout at the top level; and the cache."""

from __future__ import annotations

import os
from pathlib import Path

from scalekit.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(name: str) -> Path:
    """The folder of ``strategies`` or ``launch``, as installed or as checked out."""
    installed = _PACKAGE / f"_{name}"
    if installed.is_dir():
        return installed
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise ConfigError(f"the installation of ScaleKit is damaged: its folder {name!r} is missing. Install it again")


def cache_folder() -> Path:
    """Where ScaleKit keeps what it need not find out again: `SCALEKIT_CACHE`, or ``scalekit`` among the user's other caches."""
    others = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SCALEKIT_CACHE") or Path(others) / "scalekit")
