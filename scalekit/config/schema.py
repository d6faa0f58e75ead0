"""A job file's JSON schema, for editors: they complete names and choices, and show what a setting means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from scalekit.config.documentation import meanings
from scalekit.config.markers import Above, AtLeast, AtMost, Below, Is, Needed, NotEmpty, Open
from scalekit.config.rules import hints_of, markers
from scalekit.config.settings import Job

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null", None: "null"}
_WRITABLE: tuple[Any, ...] = (1, 0.5, "text", [{"text": "a row"}], {"path": "a file"})
"""Of each kind that a file can hold, by which it shows whether a rule in words takes any."""

_BOUNDS = {AtLeast: "minimum", AtMost: "maximum", Above: "exclusiveMinimum", Below: "exclusiveMaximum"}


def schema() -> dict[str, Any]:
    """The schema of a job file, by JSON Schema 2020-12."""
    meaning, hints = meanings(Job), hints_of(Job)
    properties = {
        each.name: {
            "description": meaning[each.name],
            **({} if each.default in (MISSING, ()) else {"default": each.default}),
            **(_of(hints[each.name]) or {}),
        }
        for each in fields(Job)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A job of ScaleKit",
        "type": "object",
        "properties": properties,
        "required": ["model"],
        "additionalProperties": False,
    }


def _of(hint: Any) -> dict[str, Any] | None:
    """What a value may be: nothing said where it may be of several kinds; None where no file can hold it, as a function."""
    kind, found = (get_args(hint)[0], markers(hint)) if get_origin(hint) is Annotated else (hint, ())
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _of_alternatives(get_args(kind))
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    if is_typeddict(kind):
        return _of_block(kind, is_open=Open in found)
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _of(get_args(kind)[1]) or {}}
    if origin is Sequence:
        return {
            "type": "array",
            "items": _of(get_args(kind)[0]) or {},
            **({"minItems": 1} if NotEmpty in found else {}),
        }
    if kind not in _TYPES:
        tests = [each.test for each in found if isinstance(each, Is)]
        return {} if all(any(map(test, _WRITABLE)) for test in tests) else None
    bounds = {_BOUNDS[type(each)]: each.bound for each in found if type(each) in _BOUNDS}
    return {"type": _TYPES[kind], **bounds, **({"minLength": 1} if NotEmpty in found else {})}


def _of_alternatives(hints: Sequence[Any]) -> dict[str, Any] | None:
    options = [each for each in map(_of, hints) if each is not None]
    return options[0] if len(options) == 1 else {"anyOf": options} if options else None


def _of_block(block: Any, is_open: bool) -> dict[str, Any]:
    hints = hints_of(block)
    needed = [key for key, hint in hints.items() if Needed in markers(hint)]
    properties = {key: found for key, hint in hints.items() if (found := _of(hint)) is not None}
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": is_open}
