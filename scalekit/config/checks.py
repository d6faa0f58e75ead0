"""Checks a value by the hint of its setting, and says the rule in words where it breaks it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

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
    Says,
    Unit,
    can_be_path,
    is_a,
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


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The hints of a class's fields, with their markers."""
    return {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if hint is not KW_ONLY}


def markers(hint: Any) -> tuple[Any, ...]:
    """The markers at the outside of a hint."""
    return tuple(getattr(hint, "__metadata__", ()))


def marked(cls: type, marker: type) -> list[str]:
    """The fields of a class that have a marker, in their order."""
    return [name for name, hint in hints_of(cls).items() if marker in markers(hint)]


def takes_flag(hint: Any) -> bool:
    """Whether a setting may be true or false, so that a flag without a value means true."""
    return bool in (_bare(each) for each in _alternatives(hint))


def choices(hint: Any) -> list[str] | None:
    """The names that a setting chooses from; None where it is no choice of names."""
    return _names(hint) or None


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


def rule(hint: Any) -> str:
    """What a hint asks for, in words that stand after "must be"."""
    return _rule(hint, None)


class _RefusedError(Exception):
    """A value is not what its hint says; `path` leads to it from the setting's name."""

    def __init__(self, path: tuple[Any, ...], value: Any, hint: Any, said: ScaleKitError | None = None) -> None:
        super().__init__(path)
        self.path, self._value, self._hint, self._said = path, value, hint, said

    def error(self, kind: type[ScaleKitError]) -> ScaleKitError:
        if self._said is not None:
            return self._said
        name, value, hint = _name(self.path), self._value, self._hint
        names = [each for each in _names(hint) if isinstance(each, str)]
        if isinstance(value, str) and len(names) > 1 and not _takes_text(hint):
            return UnknownNameError(name, value, names, _rule(hint, value))
        near = nearest(value, names) if isinstance(value, str) else ""
        return kind(f"{name}={shown(value)} must be {_rule(hint, value)}" + (f". {near}" if near else ""))


def _converted(path: tuple[Any, ...], value: Any, hint: Any) -> Any:
    check_package(str(path[0]), value)
    kind, found = _bare(hint), markers(hint)
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
        number = _number(value, kind)
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
    blocks = [each for each in alternatives if is_typeddict(_bare(each))]
    if isinstance(value, Mapping) and blocks:
        meant = max(blocks, key=lambda block: len(hints_of(_bare(block)).keys() & set(value)))
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
            raise _RefusedError((*path, key), item, Any, UnknownNameError(f"key in {_name(path)}", key, hints))
    for key, hint in hints.items():
        if Needed in markers(hint) and key not in value:
            said = ConfigError(f"{_name(path)} has no {key}: {key} must be {rule(hint)}")
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


def _number(value: Any, kind: type) -> int | float | None:
    """A value as a number, text included, since YAML reads 1e-4 as text; None where it is none that can be reckoned with."""
    try:
        if isinstance(value, str):
            value = float(value) if kind is float or not value.strip().lstrip("+-").isdigit() else int(value)
        if isinstance(value, bool) or not isinstance(value, (Integral, Real)):
            return None
        if kind is int and isinstance(value, Integral):
            return int(value)
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        return None
    return int(number) if kind is int else number


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


# -- the rule in words -----------------------------------------------------------------------------------------------


def _bare(hint: Any) -> Any:
    """A hint without its markers."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _alternatives(hint: Any) -> Iterator[Any]:
    """The hints of which a value must have one."""
    if get_origin(_bare(hint)) in (Union, UnionType):
        for each in get_args(_bare(hint)):
            yield from _alternatives(each)
    else:
        yield hint


def _names(hint: Any) -> list[str]:
    return [
        name for each in _alternatives(hint) if get_origin(_bare(each)) is Literal for name in get_args(_bare(each))
    ]


def _takes_text(hint: Any) -> bool:
    return any(_bare(each) is str for each in _alternatives(hint))


def _name(path: tuple[Any, ...]) -> str:
    """A place in a setting, such as ``generate.prompts[0]``."""
    first, *rest = path
    return str(first) + "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in rest)


def _rule(hint: Any, value: Any) -> str:
    """The rule; a bound that nobody needs to be told is told where `value` passes it."""
    parts = list(_parts(hint, value))
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _parts(hint: Any, value: Any) -> Iterator[str]:
    """What a value may be instead of each other."""
    found, kind = markers(hint), _bare(hint)
    said = next((each.rule for each in found if isinstance(each, (Says, Is))), None)
    if said is not None:
        yield said
    elif get_origin(kind) in (Union, UnionType):
        for each in get_args(kind):
            yield from _parts(each, value)
    elif get_origin(kind) is Literal:
        yield from map(repr, get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    elif kind in (int, float):
        yield _number_rule(kind, found, value)
    elif is_typeddict(kind):
        yield f"a mapping with the keys {', '.join(hints_of(kind))}"
    elif get_origin(kind) is Sequence:
        yield f"a list, of which each is {_rule(get_args(kind)[0], None)}"
    else:
        yield {str: "a text", NoneType: "None", None: "None"}.get(kind, "a mapping of names")


def _number_rule(kind: type, found: Sequence[Any], value: Any) -> str:
    number = _number(value, kind)
    words = ["a whole number" if kind is int else "a number"]
    low = next((each for each in found if isinstance(each, (AtLeast, Above))), None)
    high = next((each for each in found if isinstance(each, (AtMost, Below))), None)
    if isinstance(low, Above) and isinstance(high, Below):
        words.append(f"between {low.bound:g} and {high.bound:g}")
    else:
        if low is not None:
            words.append(f"of at least {low.bound:g}" if isinstance(low, AtLeast) else f"above {low.bound:g}")
        if isinstance(high, AtMost) and (not high.plain or (number is not None and number > high.bound)):
            words.append(f"and at most {high.bound}")
        if isinstance(high, Below):
            words.append(f"and below {high.bound:g}")
    words += [f"({each.name})" for each in found if isinstance(each, Unit)]
    return " ".join(words)
