"""Marks around what messages say, and where they stand in the rendered text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, final

Span = tuple[int, int]
Message = dict[str, Any]


# Noncharacters: Unicode keeps them out of text, for a program's own use. A mark is one of the first two, a name, the third.
OPEN = "\ufdd0"
CLOSE = "\ufdd1"
STOP = "\ufdd2"
_MARK = re.compile(f"([{OPEN}{CLOSE}])([0-9a-z]+){STOP}")


class Mark(NamedTuple):
    """Where something that a message says starts or ends in the rendered text."""

    place: int
    name: str
    opens: bool


class Drawn(NamedTuple):
    """A rendering with its marks taken out."""

    text: str
    marks: list[Mark]

    @classmethod
    def read(cls, marked: str) -> Drawn:
        parts: list[str] = []
        marks: list[Mark] = []
        place = done = 0
        for found in _MARK.finditer(marked):
            parts.append(marked[done : found.start()])
            place, done = place + found.start() - done, found.end()
            marks.append(Mark(place, found[2], found[1] == OPEN))
        return cls("".join([*parts, marked[done:]]), marks)


def said(message: Message) -> list[str]:
    """The texts of a message."""
    content = message.get("content")
    parts: list[Any] = content if isinstance(content, list) else [{"text": content}]
    return [part["text"] for part in parts if says(part)]


def says(part: Any) -> bool:
    """Whether a part of a message's content is text."""
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def called(message: Message) -> list[str]:
    """The names of the tools that a message calls."""
    calls = [call for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    names = [(call.get("function") or call).get("name") for call in calls]
    return [name for name in names if isinstance(name, str)]


def marked(messages: Sequence[Message], kinds: Sequence[str]) -> tuple[list[Message], list[list[str]]]:
    """The messages with marks of some kinds, and the names of each message's marks."""
    markers = [Marker(messages.index(message), kinds) for message in messages]
    marked = [marker.mark(message) for marker, message in zip(markers, messages, strict=True)]
    return marked, [marker.names for marker in markers]


@final
class Marker:
    """Puts marks around what a message says.

    Args:
        number: of the message, which begins its marks' names. Equal messages have equal ones, for templates compare them.
        kinds: what is marked: what the assistant "said", the tools that it "called", what "other" roles say, and of both
            what is "empty".
    """

    def __init__(self, number: int, kinds: Sequence[str]) -> None:
        self._number = number
        self._kinds = kinds
        self.names: list[str] = []

    def mark(self, message: Message) -> Message:
        out = dict(message)
        if "content" in message and ("said" if message.get("role") == "assistant" else "other") in self._kinds:
            out["content"] = self._content(message["content"], calls=bool(message.get("tool_calls")))
        if "called" in self._kinds and message.get("tool_calls"):
            out["tool_calls"] = [self._call(call) for call in message["tool_calls"]]
        return out

    def _content(self, content: Any, calls: bool) -> Any:
        if isinstance(content, str):
            # Templates ask whether there is any content beside a call, so an empty one must stay empty there
            return self._text(content, empty="empty" in self._kinds and not calls)
        if isinstance(content, list):
            return [{**part, "text": self._text(part["text"])} if says(part) else part for part in content]
        return content

    def _call(self, call: Any) -> Any:
        if not isinstance(call, dict):
            return call
        if call.get("function"):
            return {**call, "function": self._call(call["function"])}
        return {**call, "name": self._text(call["name"])} if isinstance(call.get("name"), str) else call

    def _text(self, text: str, empty: bool = False) -> str:
        """Marks stand within the blanks around a text, so that a template can trim them."""
        core = text.strip()
        if not (core or empty):
            return text
        name = f"{self._number}x{len(self.names)}"
        self.names.append(name)
        blank = text.index(core)
        end = blank + len(core)
        return f"{text[:blank]}{OPEN}{name}{STOP}{core}{CLOSE}{name}{STOP}{text[end:]}"
