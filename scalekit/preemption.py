"""How a job is asked to stop: by a signal, or by a file in its folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import final

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they take a machine away; SLURM's by ``--signal=USR1@300``."""

_LOOK_SECONDS = 1.0


@final
class StopRequest:
    """Notes that somebody wants the job to stop; the ranks agree on when.

    Args:
        folder: the run's, where a file named STOP asks too.
        looks: whether this rank looks for the file.
    """

    def __init__(self, folder: Path, looks: bool) -> None:
        self._file, self._looks = folder / "STOP", looks
        self._looked = 0.0
        self.reason: str | None = None

    def listen(self) -> None:
        """Answers signals from now on, in place of whoever did; in the main thread, which alone is sent any."""
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                signal.signal(each, self._note)

    def asked(self) -> bool:
        """Whether this rank has been asked."""
        if self.reason is None and self._looks and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._file.exists():
                self.reason = f"the file {self._file}"
        return self.reason is not None

    def answered(self) -> None:
        """Takes the file away, so that the job can be started again."""
        if self._looks:
            self._file.unlink(missing_ok=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name


def forward(number: int, frame: FrameType | None) -> None:
    """Hands a signal on to the processes that this one has started."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for child in children.read_text().split() if children.exists() else ():
        os.kill(int(child), number)
