"""The end of a Python process without taking thousands of modules apart, which takes a second where torch is imported."""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import final

_FAILED_TO_FLUSH = 120  # as Python has it


@final
class SwiftExit:
    """Ends this process behind everything that is due at its end: threads, functions of `atexit`, what is still to be written.

    It is to be made before anything else registers at `atexit`, since what is registered first is called last.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._end)

    def after(self, program: Callable[[], None]) -> None:
        """Runs a program, and remembers how it ended; one that an interrupt ends is left to Python.

        Raises:
            SystemExit: the program's own.
        """
        try:
            program()
        except SystemExit as end:
            self._code = _number(end.code)
            raise
        self._code = 0

    def _end(self) -> None:
        if self._code is None:
            return
        _flush_open_files()
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            self._code = self._code or _FAILED_TO_FLUSH
        ctypes.CDLL(None).fflush(None)
        os._exit(self._code)


def _number(code: object) -> int:
    """The exit code that Python makes of `SystemExit`'s: text is an error, and has been printed then."""
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _flush_open_files() -> None:
    """Python writes what is in the buffers of files that nobody closed when it lets go of them."""
    # By their types: to ask a proxy what it is could wake what stands behind it.
    for each in gc.get_objects():
        if issubclass(type(each), io.IOBase):
            with suppress(Exception):
                if not each.closed:
                    each.flush()
