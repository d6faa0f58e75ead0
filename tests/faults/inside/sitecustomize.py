"""Kills at a chosen moment, from inside: Python imports this file by its name in every process that has it on its path.

FAULT names the moment: ``RANK:COUNT`` is just before the COUNTth change that a rank's writer makes to the file system.
FAULT_KILLS says whom: ``all`` processes of the job, or the writer's own ``self``. It happens once: FAULT_DONE is the file that
says so.
"""

import os
import signal
import sys
from pathlib import Path

_CHANGES = ("pwrite", "ftruncate", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


def _strike() -> None:
    done = Path(os.environ["FAULT_DONE"])
    if done.exists():
        return
    done.touch()
    if os.environ["FAULT_KILLS"] == "all":
        for process in _of_the_job():
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _of_the_job() -> list[int]:
    """Every process that has inherited this job's environment."""
    mark = f"FAULT_DONE={os.environ['FAULT_DONE']}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _in_writer(rank: int, count: int) -> None:
    left = [count]

    def before(function):  # type: ignore[no-untyped-def]
        def changed(*arguments, **options):  # type: ignore[no-untyped-def]
            if _rank() == rank:
                left[0] -= 1
                if left[0] == 0:
                    _strike()
            return function(*arguments, **options)

        return changed

    for name in _CHANGES:
        setattr(os, name, before(getattr(os, name)))


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


if "FAULT" in os.environ and not Path(os.environ["FAULT_DONE"]).exists():
    _who, _when = os.environ["FAULT"].split(":")
    if "scalekit.checkpoint.writer" in sys.orig_argv:
        _in_writer(int(_who), int(_when))
