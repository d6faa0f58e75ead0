"""Kills at a chosen moment, from inside: Python imports this file by its name in every process that has it on its path.

FAULT is ``RANK:COUNT:WHOM``: just before the COUNTth change that a rank's writer makes to the file system it kills ``all``
processes of the job, or its own ``self``. It strikes once: the file ``struck`` in the job's folder says so, and where.
"""

import os
import signal
import sys
from pathlib import Path

_CHANGES = ("pwrite", "ftruncate", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


def _strike(whom: str, where: str) -> None:
    from tests.faults.alive import JOB, processes

    struck = Path(os.environ[JOB], "struck")
    if struck.exists():
        return
    struck.write_text(where)
    if whom == "all":
        for process in processes(os.environ[JOB]):
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch(count: int, whom: str) -> None:
    """Counts what the writer, and shutil for it, ask of the system."""
    left = [count]

    def before(function):  # type: ignore[no-untyped-def]
        def changed(*arguments, **options):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] == 0:
                _strike(whom, f"{function.__name__} {arguments[0]}")
            return function(*arguments, **options)

        return changed

    for name in _CHANGES:
        setattr(os, name, before(getattr(os, name)))


if "FAULT" in os.environ and "scalekit.checkpoint.writer_process" in sys.orig_argv:
    _rank, _count, _whom = os.environ["FAULT"].split(":")
    if os.environ.get("RANK", "0") == _rank:
        _watch(int(_count), _whom)
