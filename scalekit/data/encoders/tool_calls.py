"""Calls of tools as people store them: in objects, or as JSON text, which OpenAI's form and Arrow files have.

A chat template takes a call's arguments as an object, as text, or as either. Which it takes is found by rendering both.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scalekit.errors import RowError, shown

Message = dict[str, Any]

_PROBE = {"scalekitkey": "scalekitvalue"}


def tools_of(value: Any) -> Any:
    """A row's tools as a list of objects; None where it has none.

    Args:
        value: the column ``tools``: a list of objects, JSON text of it, or a list of JSON texts.

    Raises:
        RowError: text that is no JSON, or something else than objects.
    """
    found = _parsed(value, "'tools'") if isinstance(value, str) and value.strip() else value
    if not found:
        return None
    if not isinstance(found, list):
        raise RowError(f"'tools' is {_shown(found)}, and should be a list of objects")
    return [_tool(each, f"'tools[{number}]'") for number, each in enumerate(found)]


def _tool(value: Any, where: str) -> Any:
    tool = as_object(value, where)
    function = tool["function"] if isinstance(tool.get("function"), dict) else tool
    if isinstance(function.get("parameters"), str):
        function = {**function, "parameters": as_object(function["parameters"], f"{where}, its parameters")}
    return {**tool, "function": function} if "function" in tool else function


def have_arguments(messages: Sequence[Message]) -> bool:
    """Whether a tool is called with arguments in a conversation.

    Raises:
        RowError: calls that are no list of objects.
    """
    found: list[Any] = []
    with_arguments(messages, lambda value, where: found.append(value))
    return bool(found)


def takes_objects(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> bool:
    """Whether a template takes arguments as objects; else it takes them as JSON text.

    Args:
        render: writes a conversation by the template.
        messages: a conversation with calls, which is written with one argument more.

    Raises:
        RowError: the template refuses the conversation in both forms, or writes the arguments in neither.
    """
    try:
        text = render(with_arguments(messages, _probe))
        bare = _rendered(render, with_arguments(messages, lambda value, where: {}))
        if text != bare and repr(_PROBE)[1:-1] not in text:  # else it writes none, or prints them as Python does
            return True
        refusal = RowError(
            "the chat template does not write the arguments that a tool is called with: use one that does, or take "
            "'tool_calls' out"
        )
    except RowError as error:
        refusal = error
    written = _rendered(render, with_arguments(messages, lambda value, where: json.dumps(_PROBE)))
    if written is None or json.dumps(_PROBE) not in written:
        raise refusal
    return False


def _probe(value: Any, where: str) -> Any:
    """Arguments with one more, by which they are known in a text."""
    try:
        return {**as_object(value, where), **_PROBE}
    except RowError:  # It is refused where objects are taken.
        return _PROBE


def _rendered(render: Callable[[Sequence[Message]], str], messages: Sequence[Message]) -> str | None:
    try:
        return render(messages)
    except RowError:
        return None


def with_arguments(messages: Sequence[Message], change: Callable[[Any, str], Any]) -> list[Message]:
    """A conversation with other arguments of its calls.

    Args:
        messages: of the conversation.
        change: gives new arguments, by the old ones and their place in the row.

    Raises:
        RowError: calls that are no list of objects.
    """
    return [
        {**message, "tool_calls": _calls(message["tool_calls"], f"messages[{number}].tool_calls", change)}
        if message.get("tool_calls")
        else message
        for number, message in enumerate(messages)
    ]


def _calls(value: Any, where: str, change: Callable[[Any, str], Any]) -> list[Any]:
    calls = _parsed(value, f"'{where}'") if isinstance(value, str) else value
    if not isinstance(calls, list):
        raise RowError(f"'{where}' is {_shown(calls)}, and should be a list of calls")
    return [_call(call, f"{where}[{number}]", change) for number, call in enumerate(calls)]


def _call(value: Any, where: str, change: Callable[[Any, str], Any]) -> Any:
    call = as_object(value, f"'{where}'")
    if call.get("function"):
        return {**call, "function": _call(call["function"], f"{where}.function", change)}
    return {**call, "arguments": change(call["arguments"], f"'{where}.arguments'")} if "arguments" in call else call


def as_object(value: Any, where: str) -> dict[str, Any]:
    """An object, or JSON text of one, such as arguments for a template that takes objects.

    Raises:
        RowError: it is none.
    """
    found = _parsed(value, where) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise RowError(f"{where} is {_shown(found)}, and should be an object")
    return found


def as_text(value: Any, where: str) -> str:
    """Arguments for a template that takes text, which stays as it is."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_parts(messages: Sequence[Message]) -> None:
    """Whether what messages hold is text.

    Raises:
        RowError: a part is an image or the like, or a content is an object.
    """
    for number, message in enumerate(messages):
        content, role = message.get("content"), message.get("role")
        where = f"'messages[{number}].content'" + (", a tool's result," if role == "tool" else "")
        if isinstance(content, dict):
            raise RowError(f"{where} is an object ({shown(content)}): write it as JSON text")
        if content is not None and not isinstance(content, (str, list)):
            raise RowError(f"{where} is {_shown(content)}, and should be text: write it in quotation marks")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
            if kind != "text":
                raise RowError(
                    f"{where} holds a part of type {kind!r}, and this task takes text alone: take the part out"
                )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        fix = "write {} where there are none" if not text.strip() else "write it as JSON"
        raise RowError(f"{where} is {shown(text)}, which is no JSON ({error}): {fix}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _shown(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"
