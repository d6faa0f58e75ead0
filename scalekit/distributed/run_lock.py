"""One job in a run's folder at a time, for as long as any process of it lives."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from scalekit.errors import RunInUseError

_JOB, _RANKS = ".job.lock", ".ranks.lock"
_PATIENCE_SECONDS = 10.0
_LOOK_SECONDS = 0.2


def claim(folder: Path) -> int:
    """Makes a run's folder this job's; one process of the job does, for all.

    What is left of a job that was killed is given some seconds to notice.

    Returns:
        A descriptor to close at the job's end; the system closes it when the process ends, however it ends.

    Raises:
        RunInUseError: another job's process lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = os.open(folder / _JOB, os.O_RDWR | os.O_CREAT, 0o644)
    ranks = os.open(folder / _RANKS, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _in_time(lambda: _lock(mine, fcntl.LOCK_EX) and _lock(ranks, fcntl.LOCK_EX)):
            raise RunInUseError(
                f"{folder} is in use by another job, that of {holder(folder) or 'somebody'}: wait for it, end it, "
                "or choose another output_dir"
            )
        os.ftruncate(mine, 0)
        who = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        os.pwrite(mine, who.encode(), 0)
        os.fsync(mine)
    except BaseException:
        os.close(mine)
        raise
    finally:
        os.close(ranks)
    return mine


def holder(folder: Path) -> str:
    """Who has claimed a folder last, in words; empty where nobody has."""
    try:
        return (folder / _JOB).read_text()
    except OSError:
        return ""


def is_held_by(folder: Path, who: str) -> bool:
    """Whether a folder is the one that somebody has claimed; file servers are given some seconds to tell."""
    return _in_time(lambda: holder(folder) == who)


def join(folder: Path) -> int:
    """Shows that this process is one of the job's that has claimed the folder; every process of it does.

    Returns:
        A descriptor, as of `claim`.
    """
    descriptor = os.open(folder / _RANKS, os.O_RDONLY)
    _lock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _in_time(condition: Callable[[], bool]) -> bool:
    """Whether something is true, or becomes so in some seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > _PATIENCE_SECONDS:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _lock(descriptor: int, how: int) -> bool:
    """Whether a lock could be had; it is held until its descriptor is closed."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: there is nothing to be known
    return True
