"""What the processes of a machine do with files beside each other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write_text(path: Path, text: str, on_disk: bool = False) -> None:
    """Writes a file beside and moves it into place: whoever reads finds the old text or the new one, never a part.

    Args:
        path: of the file.
        text: all of it.
        on_disk: whether to wait until it is on the disk.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with beside.open("w") as file:
            file.write(text)
            if on_disk:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)  # a part of it, as on a full disk
        raise


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """One process of the user's at a time, on this machine."""
    from filelock import FileLock  # which takes a third of the start of the process that writes checkpoints

    with FileLock(Path(tempfile.gettempdir()) / f"scalekit-{os.getuid()}-{name}.lock"):
        yield
