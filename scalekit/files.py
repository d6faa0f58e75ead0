"""What the processes of a machine do with files beside each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


def write_at_once(path: Path, text: str) -> None:
    """Writes a file beside and moves it into place: whoever reads finds the old text or the new one, never a part."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


@contextmanager
def alone(name: str) -> Iterator[None]:
    """One process of the user's at a time, on this machine."""
    with FileLock(Path(tempfile.gettempdir()) / f"scalekit-{os.getuid()}-{name}.lock"):
        yield
