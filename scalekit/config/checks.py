"""Checks a value by the hint of its setting, and says the rule in words where it breaks it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, is_typeddict

from scalekit.config.markers import (
    Above,
    AtLeast,
    AtMost,
    Below,
    FromPath,
    Is,
    Needed,
    NotEmpty,
    Open,
    Raises,
    can_be_path,
    is_a,
)
from scalekit.config.rules import (
    alternatives,
    as_number,
    bare,
    choices_of,
    hints_of,
    markers,
    path_in_words,
    rule,
    takes_text,
)
from scalekit.errors import ConfigError, ScaleKitError, UnknownNameError, nearest, shown


def check_package(name: str, value: Any) -> None:
    """Whether a value that is to be one of Lightning's is one of the package that ScaleKit stands on.

    Raises:
        ConfigError: it is one of `pytorch_lightning`, which has classes of its own by the same names. None of its steps and
            hooks would be called.
    """
    if any(kind.__module__.partition(".")[0] == "pytorch_lightning" for kind in type(value).__mro__):
        raise ConfigError(
            f"{name}: {type(value).__name__} is of the package pytorch_lightning, whose classes are not those of lightning: "
            "write `import lightning.pytorch as pl` instead of `import pytorch_lightning as pl`"
        )


def marked(cls: type, marker: type) -> list[str]:
    """The fields of a class that have a marker, in their order."""
    return [name for name, hint in hints_of(cls).items() if marker in markers(hint)]


def takes_flag(hint: Any) -> bool:
    """Whether a setting may be true or false, so that a flag without a value means true."""
    return bool in (bare(each) for each in alternatives(hint))


def checked(name: str, value: Any, hint: Any) -> Any:
    """A setting's value as its hint says, converted where nothing is lost: 3.0 and "3" to 3, "1e-4" to a number.

    Args:
        name: of the setting, for messages.
        value: what was given.
        hint: the type of its field, with markers.

    Raises:
        ConfigError: it is something else; or the kind of error that the hint's `Raises` names.
    """
    try:
        return _converted((name,), value, hint)
    except _RefusedError as refused:
        kinds = [each.kind for each in markers(hint) if isinstance(each, Raises)]
        error = refused.error(kinds[0] if kinds else ConfigError)
        error.setting = name
        raise error from None


class _RefusedError(Exception):
    """A value is not what its hint says; `path` leads to it from the setting's name."""

    def __init__(self, path: tuple[Any, ...], value: Any, hint: Any, said: ScaleKitError | None = None) -> None:
        super().__init__(path)
        self.path, self._value, self._hint, self._said = path, value, hint, said

    def error(self, kind: type[ScaleKitError]) -> ScaleKitError:
        if self._said is not None:
            return self._said
        name, value, hint = path_in_words(self.path), self._value, self._hint
        names = [each for each in choices_of(hint) if isinstance(each, str)]
        if isinstance(value, str) and len(names) > 1 and not takes_text(hint):
            return UnknownNameError(name, value, names, rule(hint, value))
        near = nearest(value, names) if isinstance(value, str) else ""
        return kind(f"{name}={shown(value)} must be {rule(hint, value)}" + (f". {near}" if near else ""))


def _converted(path: tuple[Any, ...], value: Any, hint: Any) -> Any:
    check_package(str(path[0]), value)
    kind, found = bare(hint), markers(hint)
    if FromPath in found and isinstance(value, os.PathLike):
        value = os.fspath(value)
    converted = _of_kind(path, value, kind, hint)
    if any(_breaks(converted, each) for each in found):
        raise _RefusedError(path, value, hint)
    return converted


def _of_kind(path: tuple[Any, ...], value: Any, kind: Any, hint: Any) -> Any:
    origin, refused = get_origin(kind), _RefusedError(path, value, hint)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _of_union(path, value, get_args(kind), refused)
    if is_typeddict(kind):
        return _of_block(path, value, kind, refused, is_open=Open in markers(hint))
    if origin is Mapping:
        return _of_mapping(path, value, get_args(kind)[1], refused)
    if origin is Sequence:
        return _of_sequence(path, value, get_args(kind)[0], refused)
    if origin is Literal:
        is_one = isinstance(value, str) and value in get_args(kind)
    elif kind in (None, NoneType):
        is_one = value is None
    elif kind is bool and is_a(value, "numpy.bool_"):
        return bool(value)
    elif kind in (int, float):
        number = as_number(value, kind)
        if number is None:
            raise refused
        return number
    else:
        is_one = isinstance(value, kind)
    if not is_one:
        raise refused
    return value


def _of_union(path: tuple[Any, ...], value: Any, alternatives: Sequence[Any], refused: _RefusedError) -> Any:
    """The first alternative that takes a value; where none does, what is wrong inside of the nearest one is told."""
    deepest = refused
    blocks = [each for each in alternatives if is_typeddict(bare(each))]
    if isinstance(value, Mapping) and blocks:
        meant = max(blocks, key=lambda block: len(hints_of(bare(block)).keys() & set(value)))
        alternatives = [each for each in alternatives if each is meant or each not in blocks]
    for each in alternatives:
        try:
            return _converted(path, value, each)
        except _RefusedError as inner:
            if len(inner.path) > len(deepest.path):
                deepest = inner
    raise deepest


def _of_block(path: tuple[Any, ...], value: Any, block: Any, refused: _RefusedError, is_open: bool) -> Any:
    if not isinstance(value, Mapping):
        raise refused
    hints = hints_of(block)
    for key, item in value.items():
        if key not in hints and not is_open:
            raise _RefusedError((*path, key), item, Any, UnknownNameError(f"key in {path_in_words(path)}", key, hints))
    for key, hint in hints.items():
        if Needed in markers(hint) and key not in value:
            said = ConfigError(f"{path_in_words(path)} has no {key}: {key} must be {rule(hint)}")
            raise _RefusedError((*path, key), None, hint, said)
    return {key: _converted((*path, key), item, hints[key]) if key in hints else item for key, item in value.items()}


def _of_mapping(path: tuple[Any, ...], value: Any, hint: Any, refused: _RefusedError) -> Any:
    if not (isinstance(value, Mapping) and all(isinstance(key, str) and key for key in value)):
        raise refused
    return {key: _converted((*path, key), item, hint) for key, item in value.items()}


def _of_sequence(path: tuple[Any, ...], value: Any, hint: Any, refused: _RefusedError) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        raise refused
    made = [_converted((*path, place), item, hint) for place, item in enumerate(value)]
    return tuple(made) if isinstance(value, tuple) else made


def _breaks(value: Any, marker: Any) -> bool:
    """Whether a value breaks a marker's rule."""
    if isinstance(marker, Is):
        return not marker.test(value)
    if marker is FromPath:
        return not can_be_path(value)
    if marker is NotEmpty:
        return not (value.strip() if isinstance(value, str) else len(value))
    if isinstance(marker, AtLeast):
        return not value >= marker.bound
    if isinstance(marker, AtMost):
        return not value <= marker.bound
    if isinstance(marker, Above):
        return not value > marker.bound
    return isinstance(marker, Below) and not value < marker.bound
