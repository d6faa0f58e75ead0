"""Every error that ScaleKit raises on purpose.

ScaleKitError
├── ConfigError                 a setting is wrong; nothing has started yet
│   ├── UnknownNameError        a name that does not exist, with the nearest that does
│   ├── StrategyError           a strategy file that cannot be used
│   ├── BatchSizeError          a global batch that cannot be split
│   ├── WorldSizeError          settings and the launcher disagree about the processes
│   ├── DoesNotFitError         the devices are too small for the job, with what would fit
│   └── RunInUseError           another job is at work in the run's folder
├── DependencyError             a package that the job needs is missing, with the extra that brings it
├── DataError                   the data cannot be used
│   ├── EmptyDataError          no rows
│   ├── ColumnError             no column that the task can use
│   ├── RowError                a row that cannot be used
│   │   └── NoLabelError        a row that the loss could not learn from
│   └── StreamError             a stream that cannot be split or resumed
├── ModelError                  the model cannot be used
│   ├── NoLossError             a model without a loss
│   ├── LossReductionError      a loss that cannot be computed in parts, since nobody knows what it is a mean over
│   └── LeakError               a model that cannot keep packed documents apart
├── NonFiniteError              a loss or gradient became NaN or infinite
├── UnreachableRanksError       a rank failed alone, where the others wait for it and cannot be told
├── CheckpointError             a checkpoint cannot be written, read or continued
└── PreemptedError              the job was asked to stop, and has saved: started again, it resumes
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

_LONGEST_SHOWN = 100

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def shown(value: object) -> str:
    """A value as a message shows it: on one line, and shortened where it is long."""
    try:
        text = _REPR.repr(value).replace("\n", " ")
    except Exception:  # an object's own repr may fail, and a number may have too many digits to write
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 23]}...{text[-20:]}"


def nearest(name: object, known: Iterable[str]) -> str:
    """ "Did you mean ...?", where one of the known names is near; empty where none is."""
    near = difflib.get_close_matches(str(name)[:_LONGEST_SHOWN], list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


class ScaleKitError(Exception):
    """The root of ScaleKit's errors. One travels between processes as its type and its message.

    Attributes:
        setting: the name of the setting that is wrong, where it is one.
    """

    setting: str | None = None

    def at(self, place: str) -> ScaleKitError:
        """The same error, with the place of what is wrong.

        Args:
            place: such as a file and a line.
        """
        return _again(type(self), f"{self} ({place})")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), str(self))


def _again(kind: type[ScaleKitError], message: str) -> ScaleKitError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    return error


class ConfigError(ScaleKitError, ValueError):
    """A setting is wrong; nothing has started yet."""


class UnknownNameError(ConfigError):
    """A name that does not exist.

    Args:
        kind: what the name stands for, such as ``"strategy"``; or the setting, where there is a `rule`.
        name: what was given.
        known: the names that exist; the nearest one is suggested.
        rule: what the setting must be, in words.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], rule: str | None = None) -> None:
        self.name = name
        self.setting = str(name) if rule is None else kind
        self.known = sorted(known)
        hint = nearest(name, self.known)
        if rule is None:
            hint = f" {hint}" if hint else ""
            super().__init__(f"unknown {kind} {shown(name)}.{hint} Known: {', '.join(self.known)}")
        else:
            super().__init__(f"{kind}={shown(name)} must be {rule}" + (f". {hint}" if hint else ""))


class StrategyError(ConfigError):
    """A strategy file that cannot be used."""


class BatchSizeError(ConfigError):
    """A global batch that cannot be split over ranks and micro-batches."""

    @classmethod
    def unsplittable(cls, global_batch_size: int, micro_batch_size: int, ranks: int) -> BatchSizeError:
        """Names the nearest sizes that can be split."""
        round_size = micro_batch_size * ranks
        lower = global_batch_size // round_size * round_size
        near = ", ".join(str(n) for n in (lower, lower + round_size) if n)
        return cls(
            f"global_batch_size={global_batch_size} cannot be split into micro-batches of {micro_batch_size} "
            f"on {ranks} ranks; the nearest that can: {near}"
        )


class WorldSizeError(ConfigError):
    """Settings and the launcher disagree about how many processes there are."""


class DoesNotFitError(ConfigError):
    """The devices are too small for the job, by prediction."""


class RunInUseError(ConfigError):
    """Another job is at work in the run's folder."""


class DependencyError(ScaleKitError, ImportError):
    """A package that the job needs is missing."""

    def __init__(self, package: str, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the package {package!r}. Install it with: pip install 'scalekit[{extra}]'")


class DataError(ScaleKitError, ValueError):
    """The data cannot be used."""


class EmptyDataError(DataError):
    """No rows."""


class ColumnError(DataError):
    """No column that the task can use."""


class RowError(DataError):
    """A row that cannot be used; whoever knows where it came from says so."""


class NoLabelError(RowError):
    """A row that the loss could not learn from."""


class StreamError(DataError):
    """A stream that cannot be split over ranks, or resumed."""


class ModelError(ScaleKitError, ValueError):
    """The model cannot be used."""


class InputsError(ModelError):
    """A batch is not what the model or its loss takes."""


class NoLossError(ModelError):
    """A model without a loss."""


class LossReductionError(ModelError):
    """A loss that is a mean over nothing that was counted, in a job that runs global batches in parts."""


class LeakError(ModelError):
    """A model, or its attention's backend, that cannot keep packed documents apart."""


class NonFiniteError(ScaleKitError, ArithmeticError):
    """A loss or gradient became NaN or infinite."""


class UnreachableRanksError(ScaleKitError, RuntimeError):
    """A rank failed alone in what all ranks do together; the others wait for it, and cannot be told."""


class CheckpointError(ScaleKitError, RuntimeError):
    """A checkpoint cannot be written, read or continued."""


class PreemptedError(ScaleKitError, SystemExit):
    """The job was asked to stop, and has saved: started again by the same command, it resumes.

    A program that does not catch it ends with `code`, which is `sysexits.h`'s for "try again later".
    """

    code = 75
