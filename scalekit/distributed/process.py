"""How long the processes live that a job has started: none outlives it, and none ends before it has to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a machine away; SLURM's by ``--signal=USR1@300``."""

_LOOK_SECONDS = 0.2


def exit_with_parent(parent: int | None = None) -> None:
    """Ends this process when the one that started it is gone, from whose death nobody would tell it.

    Args:
        parent: its process id; that of the present parent by default.
    """
    parent = parent or os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, name="scalekit-parent", daemon=True).start()


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Processes started within it are out of a signal's reach, which schedulers send to all of a job's processes.

    They are needed until the rank that has started them has saved.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_on_parent_signal(*_: object) -> None:
    """Has a process that reads data end when the rank that has started it says so, by SIGTERM, and when nobody else does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def listen() -> None:
        while signal.sigwaitinfo(STOP_SIGNALS).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=listen, name="scalekit-signals", daemon=True).start()
