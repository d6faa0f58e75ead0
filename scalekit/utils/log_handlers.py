"""Where log lines go: to the screen, and to a run's file."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import final

LABEL_WIDTH = 10
"""Of what stands before each line's text."""


WANDB = "scalekit.wandb"
"""The logger that Weights & Biases is told to write to, instead of the terminal."""


CHATTER = [
    # Warnings that no user can act on: torch's and Lightning's own use of each other's older names, a `validation_step` without
    # a validation set, loaders that Lightning cannot know to begin at their position, Lightning's own arguments for W&B.
    (FutureWarning, r"[/\\](torch|lightning)[/\\]", ""),
    (Warning, "", r".*isinstance\(treespec, LeafSpec\)"),
    (Warning, "", r"You defined a `validation_step` but have no"),
    (Warning, "", r"You're resuming from a checkpoint that ended before the epoch ended"),
    (Warning, "", r"The number of training batches \(\d+\) is smaller than the logging interval"),
]


def line(label: str, text: str) -> str:
    """A line of the log: what it is about, and what there is to say."""
    return f"{label:{LABEL_WIDTH}} {text}"


_WANDB_CHATTER = re.compile(r"The anonymous setting has no effect|Changes to your `wandb` environment variables")


_MOST_WAITING = 10_000
"""Lines that are kept while there is no file to write them to."""


def is_chatter(message: Warning | str, category: type[Warning], filename: str) -> bool:
    """Whether a warning is one that no user can act on."""
    return any(
        issubclass(category, kind) and re.search(place, filename) and re.match(text, str(message))
        for kind, place, text in CHATTER
    )


def is_terminal(handler: logging.Handler) -> bool:
    """Whether a handler writes to the screen: a library's own does."""
    if isinstance(handler, (Screen, File)) or type(handler).__name__ == "_StderrHandler":
        return True
    return type(handler) is logging.StreamHandler


def plain(record: logging.LogRecord) -> str:
    """A record's text."""
    return record.getMessage()


def from_library(record: logging.LogRecord) -> str:
    """A record's text with its level and its library."""
    text = record.getMessage()
    return line(record.levelname, text if record.name == WANDB else f"{record.name}: {text}")


@final
class Screen(logging.Handler):
    """Writes lines to where `sys.stdout` is at the moment, beside a bar where one stands."""

    def __init__(self, made: Callable[[logging.LogRecord], str]) -> None:
        super().__init__()
        self._made = made

    def emit(self, record: logging.LogRecord) -> None:
        text = self._made(record)
        if record.name == WANDB and _WANDB_CHATTER.search(text) and self.level > logging.INFO:
            return
        with suppress(OSError, ValueError):  # whoever reads has gone, or the stream is closed: no reason to end a job
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(text, file=sys.stdout)
            else:
                print(text, file=sys.stdout)
            sys.stdout.flush()


@final
class File(logging.Handler):
    """Writes lines with their times to a file that is known later; what a full disk does not take waits for room."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: deque[str] = deque(maxlen=_MOST_WAITING)
        self._descriptor: int | None = None

    def open(self, path: Path) -> None:
        with suppress(OSError):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._write()

    def emit(self, record: logging.LogRecord) -> None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        who = "" if record.name == "scalekit" else f"{record.levelname} {record.name}: "
        text = who + record.getMessage().rstrip().replace("\n", "\n" + 21 * " ")
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self._waiting.append(f"{when}  {text}\n")
        self._write()

    def _write(self) -> None:
        while self._descriptor is not None and self._waiting:
            text = self._waiting[0].encode(errors="replace")
            try:
                written = os.write(self._descriptor, text)
            except OSError:
                return
            if written < len(text):
                self._waiting[0] = text[written:].decode(errors="replace")
            else:
                self._waiting.popleft()

    def close(self) -> None:
        if self._descriptor is not None:
            self._write()
            os.close(self._descriptor)
            self._descriptor = None
        super().close()
