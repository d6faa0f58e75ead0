"""Small files that other processes may be reading."""

from __future__ import annotations

import os
from pathlib import Path


def write_at_once(path: Path, text: str) -> None:
    """Writes a file beside and moves it into place: whoever reads finds the old text or the new one, never a part."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
