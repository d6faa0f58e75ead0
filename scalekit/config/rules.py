"""What a setting's hint asks for, in words, and how a hint is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from scalekit.config.markers import Above, AtLeast, AtMost, Below, Is, Says, Unit


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The hints of a class's fields, with their markers."""
    return {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if hint is not KW_ONLY}


def markers(hint: Any) -> tuple[Any, ...]:
    """The markers at the outside of a hint."""
    return tuple(getattr(hint, "__metadata__", ()))


def as_number(value: Any, kind: type) -> int | float | None:
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


def bare(hint: Any) -> Any:
    """A hint without its markers."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def alternatives(hint: Any) -> Iterator[Any]:
    """The hints of which a value must have one."""
    if get_origin(bare(hint)) in (Union, UnionType):
        for each in get_args(bare(hint)):
            yield from alternatives(each)
    else:
        yield hint


def choices_of(hint: Any) -> list[str]:
    """The names among what a value may be."""
    return [name for each in alternatives(hint) if get_origin(bare(each)) is Literal for name in get_args(bare(each))]


def takes_text(hint: Any) -> bool:
    """Whether a value may be any text."""
    return any(bare(each) is str for each in alternatives(hint))


def path_in_words(path: tuple[Any, ...]) -> str:
    """A place in a setting, such as ``generate.prompts[0]``."""
    first, *rest = path
    return str(first) + "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in rest)


def rule(hint: Any, value: Any = None) -> str:
    """What a hint asks for, in words that stand after "must be".

    Args:
        hint: of a setting.
        value: that breaks it; a bound that nobody needs to be told is told where it passes that.
    """
    parts = list(_parts(hint, value))
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"


def _parts(hint: Any, value: Any) -> Iterator[str]:
    """What a value may be instead of each other."""
    found, kind = markers(hint), bare(hint)
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
        yield f"a list, of which each is {rule(get_args(kind)[0], None)}"
    else:
        yield {str: "a text", NoneType: "None", None: "None"}.get(kind, "a mapping of names")


def _number_rule(kind: type, found: Sequence[Any], value: Any) -> str:
    number = as_number(value, kind)
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
