"""Conversations with pictures as people store them: pictures among the parts of what is said, or beside the conversation.

Where nothing says which turn a picture belongs to, it stands at the beginning of the first turn that is not the system's.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scalekit.errors import RowError, shown

Message = dict[str, Any]

_MARK = "<image>"
"""What stands for a picture in the text of many data sets, whatever the model's own token is."""

_KEYS = ("image", "url", "path", "bytes", "base64")
_PICTURE = {"type": "image"}


def gathered(messages: Sequence[Message], beside: Sequence[Any], token: str) -> tuple[list[Message], list[Any]]:
    """A conversation in parts, ``{"type": "text", "text": ...}`` and ``{"type": "image"}``, and its pictures in that order.

    Args:
        messages: with contents in text or in parts; a picture's part may hold it (``image``, ``url``, ``path``, ``base64``, or
            OpenAI's ``image_url``), or stand for one that is beside.
        beside: pictures that stand beside the conversation, in order.
        token: what the model's processor writes for a picture, which also may stand in a text.

    Raises:
        RowError: there are more pictures than places for them, or fewer; a part of another kind; a picture in a tool's result.
    """
    turns = [_parted(number, message) for number, message in enumerate(messages)]
    pictures = [part for turn in turns for part in turn["content"] or () if part["type"] == "image"]
    if beside and not pictures:
        turns = _with_places(turns, len(beside), token)
        pictures = [part for turn in turns for part in turn["content"] or () if part["type"] == "image"]
    held = [_held(part) for part in pictures]
    found, left = _dealt(pictures, held, beside)
    if left or any(value is None for value in found):
        raise RowError(
            f"it has {len(beside)} picture{'s' * (len(beside) != 1)} beside the conversation, and "
            f"{held.count(None)} place{'s' * (held.count(None) != 1)} for them in it"
        )
    return [{**turn, "content": _bare(turn["content"])} for turn in turns], found


def _dealt(parts: Sequence[Message], held: Sequence[Any], beside: Sequence[Any]) -> tuple[list[Any], int]:
    """The picture of each part, and how many are left: its own, the one that its ``index`` names, or the next."""
    places = [part for part, value in zip(parts, held, strict=True) if value is None]
    named = [number for part in places if isinstance(number := part.get("index"), int)]
    order: list[int] = named if len(named) == len(places) else list(range(len(places)))
    if sorted(order) != list(range(len(order))):
        raise RowError(f"its parts name the pictures {order}: give each one's number once, from 0")
    rest = iter(beside[number] if number < len(beside) else None for number in order)
    return [next(rest) if value is None else value for value in held], max(len(beside) - len(order), 0)


def in_text(messages: Sequence[Message]) -> list[Message]:
    """A conversation in parts whose turns without a picture are text again."""
    return [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message["content"], list) and all(part["type"] == "text" for part in message["content"])
        else message
        for message in messages
    ]


def _parted(number: int, message: Message) -> Message:
    """A turn whose content is in parts, or None."""
    content = message.get("content")
    if content is None:
        return {**message, "content": None}
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RowError(f"'messages[{number}].content' is {shown(content)}, and should be text or a list of parts")
    return {**message, "content": [_part(number, message, part) for part in parts]}


def _part(number: int, message: Message, part: Any) -> Message:
    kept = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = kept.get("type", "text" if "text" in kept else None)
    where = f"'messages[{number}].content'"
    if kind == "text" and isinstance(kept.get("text"), str):
        return {**kept, "type": "text"}
    if kind in ("image", "image_url"):
        if message.get("role") in ("tool", "assistant"):
            whose = "a tool's result" if message["role"] == "tool" else "what the assistant says"
            raise RowError(
                f"{where}, {whose}, holds a picture: pictures are seen where the user shows them; take it out"
            )
        return {**kept, "type": "image"}
    raise RowError(f"{where} holds {shown(part) if kind is None else f'a part of type {kind!r}'}: give text and images")


def _with_places(turns: list[Message], pictures: int, token: str) -> list[Message]:
    """A conversation with a place for each picture: where its text says so, or at its beginning."""
    mark = re.compile("|".join(re.escape(each) for each in dict.fromkeys((_MARK, token)) if each))
    split = [
        {**turn, "content": [piece for part in turn["content"] or () for piece in _split(part, mark)]}
        if turn.get("role") == "user"
        else turn
        for turn in turns
    ]
    marked = sum(part["type"] == "image" for turn in split for part in turn["content"] or ())
    if marked:
        return split
    first = next((number for number, turn in enumerate(turns) if turn.get("role") != "system"), 0)
    return [
        {**turn, "content": [*[_PICTURE] * pictures, *(turn["content"] or ())]} if number == first else turn
        for number, turn in enumerate(turns)
    ]


def _split(part: Message, mark: re.Pattern[str]) -> list[Message]:
    """A part of text, cut where a picture stands in it."""
    first, *rest = mark.split(part["text"])
    pieces = [{**part, "text": first}]
    for text in rest:
        pieces += [_PICTURE, {**part, "text": text}]
    return [piece for piece in pieces if piece.get("text") != ""] if rest else pieces


def _held(part: Message) -> Any:
    """The picture that a part holds; None where it stands for one beside the conversation."""
    address = part.get("image_url")
    value = address.get("url") if isinstance(address, Mapping) else address
    value = next((part[key] for key in _KEYS if part.get(key) is not None), None) if value is None else value
    if isinstance(value, bytes) or (isinstance(value, str) and part.get("base64") == value):
        return {"bytes": value if isinstance(value, bytes) else base64.b64decode(value), "path": None}
    if isinstance(value, str) and value.startswith("data:"):
        return {"bytes": base64.b64decode(value.partition(",")[2]), "path": None}
    if isinstance(value, str) and re.match("[a-z]+://", value) and not value.startswith("file://"):
        raise RowError(
            f"its picture is at {value[:60]!r}: rows are read again in each epoch, so load it into the data first"
        )
    return value.removeprefix("file://") if isinstance(value, str) else value


def _bare(content: Any) -> Any:
    return None if content is None else [_PICTURE if part["type"] == "image" else part for part in content]
