"""What a job says: short lines on the screen, and everything, other libraries' remarks too, in the run's ``log.txt``.

Rank 0 speaks for the job; other ranks say only what is wrong with them. Python's own `logging` carries all of it. The levels on
the screen are: INFO of ScaleKit, WARNING of libraries whose warnings a user can act on, ERROR of the others.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

from scalekit.utils.log_handlers import CHATTER, WANDB, File, Screen, from_library, is_chatter, is_terminal, line, plain

_OWN = logging.getLogger("scalekit")

_LIBRARIES = {
    "DeepSpeed": logging.ERROR,  # its warnings are about settings that ScaleKit has made
    "datasets": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "lightning": logging.WARNING,
    "lightning.fabric": logging.WARNING,
    "lightning.pytorch": logging.WARNING,
    "transformers": logging.WARNING,
    WANDB: logging.WARNING,
}
"""Other libraries' loggers, and the least level that is shown. From INFO on they are written down."""

_TORCH = {
    "torch.utils.cpp_extension": logging.ERROR,  # that there is no CUDA, on a machine without
}
"""Loggers of torch that are shown less than WARNING allows. Levels are torch's own (`TORCH_LOGS`)."""


def say(text: str) -> None:
    """Says a whole line, made by `line`; one that begins with WARNING is a warning."""
    _OWN.log(logging.WARNING if text.startswith("WARNING") else logging.INFO, text)


def log(label: str, text: str) -> None:
    """Says a line."""
    say(line(label, text))


def detail(label: str, text: str) -> None:
    """A line for ``log.txt``, which the screen shows only where a job is verbose."""
    _OWN.debug(line(label, text))


def warn(text: str) -> None:
    """Says what is wrong, while the job continues."""
    log("WARNING", text)


def alarm(text: str) -> None:
    """Says what is wrong, on whichever rank."""
    _OWN.error(line("WARNING", text))


def duration(seconds: float) -> str:
    """A time as people write it: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    left = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if left >= size:
            rest = left % size // part
            return f"{left // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{left} s"


@final
class JobLog:
    """The log of a job that runs.

    Args:
        rank: of this process.
        is_verbose: whether the screen shows everything.
    """

    def __init__(self, rank: int, is_verbose: bool) -> None:
        self._file = File() if rank == 0 else None
        self._is_verbose, self._leads = is_verbose, rank == 0
        self._kept: dict[str, tuple[list[logging.Handler], int, bool]] = {}

    def open(self, folder: Path) -> None:
        """Writes what was said so far, and from now on what is said, to ``log.txt`` in the run's folder; on rank 0."""
        if self._file is not None:
            self._file.open(folder / "log.txt")

    def hear(self, name: str) -> None:
        """Takes a library's logger over; once more where the library has been imported since."""
        library = logging.getLogger(name)
        before, level, propagates = self._kept.get(name, ([], library.level, library.propagate))
        found = [each for each in library.handlers if not isinstance(each, (Screen, File)) and each not in before]
        self._kept[name] = ([*before, *found], level, propagates)
        screen = Screen(from_library)
        screen.setLevel(self._least(_LIBRARIES.get(name, _TORCH.get(name, logging.WARNING))))
        others = [each for each in library.handlers if not is_terminal(each)]
        library.handlers = [*others, screen, *([self._file] if self._file is not None else [])]
        if name in _LIBRARIES:
            library.setLevel(logging.INFO if self._leads or self._is_verbose else logging.ERROR)
        if name.partition(".")[0] != name:
            library.propagate = False  # what it belongs to is heard as well

    def begin(self) -> None:
        """Takes over all that speaks."""
        importlib.import_module("transformers.utils.logging").get_logger()  # which brings its handler
        _OWN.setLevel(logging.DEBUG if self._leads else logging.ERROR)
        _SCREEN.setLevel(logging.DEBUG if self._is_verbose else logging.INFO)
        if self._file is not None:
            _OWN.addHandler(self._file)
        for name in (*_LIBRARIES, *_TORCH, *_torch_loggers()):
            self.hear(name)

    def end(self) -> None:
        """Gives everything back as it was."""
        for name, (handlers, level, propagate) in self._kept.items():
            library = logging.getLogger(name)
            library.handlers, library.propagate = handlers, propagate
            library.setLevel(level)
        _OWN.setLevel(logging.INFO)
        _SCREEN.setLevel(logging.INFO)
        if self._file is not None:
            _OWN.removeHandler(self._file)
            self._file.close()

    def heard_warning(self, shown: Callable[..., None]) -> Callable[..., None]:
        """What Python is to do with a warning: written down, and shown as before where a user can act on it."""

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: Any = None,
            text: Any = None,
        ) -> None:
            if self._file is not None:
                told = warnings.formatwarning(message, category, filename, lineno, text)
                self._file.handle(logging.LogRecord("py.warnings", logging.WARNING, filename, lineno, told, None, None))
            if self._is_verbose or (self._leads and not is_chatter(message, category, filename)):
                shown(message, category, filename, lineno, file, text)

        return show

    def note(self, error: BaseException) -> None:
        """Writes down with what a job ended; the screen has it from whoever catches it."""
        if self._file is not None:
            known = (type(error), error, error.__traceback__)
            self._file.handle(logging.LogRecord("scalekit", logging.ERROR, "", 0, "the job ended with", None, known))

    def _least(self, level: int) -> int:
        return logging.INFO if self._is_verbose else level if self._leads else logging.ERROR


@contextmanager
def job_log(rank: int, is_verbose: bool = False) -> Iterator[JobLog]:
    """Makes this process's log that of a job, until the job ends."""
    job = JobLog(rank, is_verbose)
    with ExitStack() as ending, warnings.catch_warnings():
        ending.callback(job.end)
        job.begin()
        for category, _, message in CHATTER:
            # Shown, which is to say: written down; no filter of a user's may make errors of them.
            warnings.filterwarnings("default", message, category, r"(torch|lightning)\." if not message else "")
        warnings.showwarning = job.heard_warning(warnings.showwarning)
        if not is_verbose:
            ending.enter_context(_without_bars())
        global _current
        _current = job
        ending.callback(_forget)
        try:
            yield job
        except BaseException as error:
            job.note(error)
            raise


def hear(name: str) -> None:
    """Takes over the logger of a library that has just been imported, where a job runs."""
    if _current is not None:
        _current.hear(name)


_current: JobLog | None = None


def _forget() -> None:
    global _current
    _current = None


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hides bars of loading and preparing; a download's stays, where there is a terminal to show it on."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    from transformers.utils import logging as transformers

    with ExitStack() as ending:
        shows_downloads = not hub.are_progress_bars_disabled()
        if transformers.is_progress_bar_enabled():
            transformers.disable_progress_bar()  # downloads' too
            ending.callback(transformers.enable_progress_bar)
        if shows_downloads and sys.stderr.isatty():
            hub.enable_progress_bars()
        datasets = sys.modules.get("datasets")
        if datasets is None:
            ending.enter_context(environment("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"))
        elif not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            ending.callback(datasets.enable_progress_bars)
        yield


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable that a library reads when it is imported, unless the user has."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _torch_loggers() -> list[str]:
    """Those that write to the screen by themselves."""
    loggers = logging.root.manager.loggerDict
    return [
        name
        for name, each in loggers.items()
        if name.partition(".")[0] == "torch"
        and isinstance(each, logging.Logger)
        and any(map(is_terminal, each.handlers))
    ]


_SCREEN = Screen(plain)
_SCREEN.setLevel(logging.INFO)
if not any(isinstance(each, Screen) for each in _OWN.handlers):
    _OWN.addHandler(_SCREEN)
_OWN.setLevel(logging.INFO)
_OWN.propagate = False
