"""How a job is asked to stop: by a signal, or by a file in its folder."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol, final

from scalekit.distributed.process import STOP_SIGNALS
from scalekit.errors import PreemptedError
from scalekit.utils.log_handlers import line

_LOOK_SECONDS = 1.0


@final
class StopRequest:
    """Notes that somebody wants the job to stop; the ranks agree on when.

    Until the ranks first agree, at the end of the first step, there is nothing to save, so a signal ends the process at once.

    Args:
        looks: whether this rank looks for the file.

    Attributes:
        reason: by what this rank has been asked.
    """

    def __init__(self, looks: bool) -> None:
        self._looks = looks
        self._looked = 0.0
        self._file: Path | None = None  # before training
        self._has_been_heard = False
        self.reason: str | None = None

    def begin(self, folder: Path) -> None:
        """From the end of the first step on a signal is noted, and the training continues until the ranks agree.

        Args:
            folder: the run's, where a file named STOP asks too.
        """
        self._file = folder / "STOP"

    def asked(self) -> bool:
        """Whether this rank has been asked; the ranks agree by it, first at the end of the first step."""
        self._has_been_heard = True
        if self.reason is None and self._file and self._looks and time.monotonic() - self._looked > _LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._file.exists():
                self.reason = f"the file {self._file}"
        return self.reason is not None

    def answered(self) -> None:
        """Takes the file away, so that the job can be started again."""
        if self._looks and self._file:
            self._file.unlink(missing_ok=True)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if not self._has_been_heard:
            raise PreemptedError(
                line(
                    "stopped",
                    f"by {self.reason} before the first step was done: started again, the job begins as it did",
                )
            )


class _Receiver(Protocol):
    def send_signal(self, number: int) -> None: ...


@final
class SignalForwarder:
    """A launcher's answer to a signal: it hands it on to the processes that it has started.

    Attributes:
        is_asked: whether there was any.
        processes: those that live at the moment.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.processes: Callable[[], Sequence[_Receiver]] = tuple
        self._number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.is_asked, self._number = True, number
        self.again()

    def again(self) -> None:
        """Hands on what came while processes were being started."""
        if self._number is not None:
            for each in self.processes():
                each.send_signal(self._number)


@contextmanager
def handle_stop_signals(handler: StopRequest | SignalForwarder) -> Iterator[None]:
    """Has signals answered in place of whoever did; in the main thread, which alone is sent any."""
    is_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.signal(each, handler) for each in STOP_SIGNALS} if is_main else {}
    try:
        yield
    finally:
        for each, earlier in before.items():
            signal.signal(each, signal.SIG_DFL if earlier is None else earlier)
