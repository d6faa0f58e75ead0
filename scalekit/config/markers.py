"""What stands in the hint of a setting beside its type: range, unit, rule, group, and what it may do.

A field's hint is made of `int`, `float`, `bool`, `str`, `None`, `Literal`, `X | Y`, `Sequence[X]`, `Mapping[str, X]`, a
`TypedDict` for a mapping with known keys, and `Annotated[X, marker, ...]` with the markers below.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias

from scalekit.errors import ScaleKitError


class Group(Enum):
    """What a setting is about."""

    MODEL = "Model"
    DATA = "Data"
    TRAINING = "Training"
    PARALLELISM = "Parallelism, precision and memory"
    EVALUATION = "Evaluation"
    SAVING = "Saving and resuming"
    TRACKING = "Tracking"


@dataclass(frozen=True)
class AtLeast:
    """A number's lower bound, which it may be."""

    bound: float


@dataclass(frozen=True)
class Above:
    """A number's lower bound, which it may not be."""

    bound: float


@dataclass(frozen=True)
class Below:
    """A number's upper bound, which it may not be."""

    bound: float


@dataclass(frozen=True)
class AtMost:
    """A number's upper bound, which it may be.

    Attributes:
        bound: the bound.
        plain: whether nobody needs to be told before it is passed.
    """

    bound: int
    plain: bool = False


@dataclass(frozen=True)
class Unit:
    """What a number counts, such as ``"tokens"``."""

    name: str


@dataclass(frozen=True)
class Is:
    """A test that a value must pass, and the same in words, to stand after "must be"."""

    rule: str
    test: Callable[[Any], bool]


@dataclass(frozen=True)
class Says:
    """The rule of a hint in words, where they are not to be made from its parts."""

    rule: str


@dataclass(frozen=True)
class Raises:
    """The kind of error that a wrong value gives, where it is not `ConfigError`."""

    kind: type[ScaleKitError]


class NotEmpty:
    """A text or a list that has something in it."""


class FromPath:
    """A text that can be the path of something, and for which a `pathlib.Path` may be given."""


class Needed:
    """A key that its mapping must have."""


class Open:
    """A mapping that may have other keys too."""


class MayChange:
    """A setting that may be another one when a run is resumed."""


class LeftToModule:
    """A setting that a LightningModule decides by itself, so that it would have no effect there."""


_LARGEST = 2**31 - 1
_LONGEST_NAME_BYTES = 255
_LONGEST_PATH_BYTES = 4000

Auto: TypeAlias = Literal["auto"]
Count: TypeAlias = Annotated[int, AtLeast(1), AtMost(_LARGEST, plain=True)]
Whole: TypeAlias = Annotated[int, AtLeast(0), AtMost(_LARGEST, plain=True)]
Text: TypeAlias = Annotated[str, NotEmpty]
Place: TypeAlias = Annotated[str, NotEmpty, FromPath]


def is_a(value: Any, *kinds: str) -> bool:
    """Whether a value is of one of these classes, given as ``"module.Class"``; no module is imported for it.

    A value cannot be of a class whose module has not been imported.
    """
    for kind in kinds:
        module, _, name = kind.rpartition(".")
        cls = getattr(sys.modules.get(module), name, None)
        if isinstance(cls, type) and isinstance(value, cls):
            return True
    return False


def takes(*arguments: str) -> Callable[[Any], bool]:
    """A test for functions that can be called with so many arguments, as far as their signature says."""

    def test(value: Any) -> bool:
        if not callable(value):
            return False
        try:
            signature = inspect.signature(value.forward if is_a(value, "torch.nn.Module") else value)
        except Exception:  # built-in functions, and objects that describe themselves wrongly, do not say
            return True
        try:
            signature.bind(*arguments)
        except TypeError:
            return False
        return True

    return test


def function_of(*arguments: str) -> Callable[[Any], bool]:
    """A test for functions of so many arguments; a class is none."""
    return lambda value: not isinstance(value, type) and takes(*arguments)(value)


def can_be_path(text: str) -> bool:
    """Whether a text could be the path of something: no NUL, and no name that is longer than a file system allows."""
    try:
        parts = os.fsencode(text).split(os.fsencode(os.sep))
    except UnicodeEncodeError:
        return False
    is_short = max(map(len, parts)) <= _LONGEST_NAME_BYTES and sum(map(len, parts)) <= _LONGEST_PATH_BYTES
    return is_short and "\0" not in text


def can_be_folder(path: str) -> bool:
    """Whether a path is a folder that can be written to, or one can be made there."""
    try:
        os.stat(path)
    except FileNotFoundError:
        parent = os.path.dirname(path.rstrip(os.sep))
        return not os.path.islink(path) and can_be_folder(parent or os.curdir)
    except (OSError, ValueError):  # such as a file on the way
        return False
    return os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)
