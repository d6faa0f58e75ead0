"""Which part of a rendered conversation the assistant generates, exact to the character.

A template with ``{% generation %}`` tags says it itself. Of any other, the conversation is rendered once as it is, and once
with marks around what the messages say, which must not change the text otherwise. That tells where each message stands,
however the template moves, trims or rewrites it. Where a turn starts is then read off what the template writes as a
generation prompt, and where it ends off the special token that it writes after the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scalekit.data.encoders.assistant_spans import WAYS_OUT, Search
from scalekit.data.encoders.marks import CLOSE, OPEN, STOP, Message, Span
from scalekit.data.encoders.template_page import Page
from scalekit.errors import DataError, RowError


@dataclass(frozen=True)
class Rendered:
    """A conversation as a template writes it.

    Attributes:
        text: the whole.
        spans: the characters (start, end) that the assistant generates, in order: of each of its turns what follows the
            generation prompt, up to and with the token that ends the turn.
    """

    text: str
    spans: list[Span]


def texts(tokenizer: Any, conversations: Sequence[Sequence[Message]], tools: Any = None) -> list[str]:
    """Conversations through the tokenizer's chat template, many at once, which is faster; see `render`."""
    page = Page(tokenizer, tools)
    return page.texts([page.fitted(messages) for messages in conversations])


def render(tokenizer: Any, messages: Sequence[Message], tools: Any = None) -> Rendered:
    """A conversation through the tokenizer's chat template, and what of it the assistant generates.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        messages: with ``role`` and ``content``, and whatever else the template reads. Arguments of calls may be objects or
            JSON text: the template gets what it takes.
        tools: JSON schemas of the tools that the assistant may call, also as JSON text, or None.

    Raises:
        RowError: the template refuses the conversation.
        DataError: no template, or one that does not show where a turn starts or ends.
    """
    page = Page(tokenizer, tools)
    messages = page.fitted(messages)
    (text,) = page.texts([messages])
    if any(sign in text for sign in (OPEN, CLOSE, STOP)):
        raise RowError(
            "the conversation holds U+FDD0, U+FDD1 or U+FDD2, which Unicode keeps out of text: take them out"
        )
    spans = list(page.tagged(messages, text) if page.has_tags else Search(page, messages, text).spans())
    ends = [0, *(end for _, end in spans)]
    if not all(before <= start <= end for before, (start, end) in zip(ends, spans, strict=False)):
        raise DataError(f"the chat template writes the assistant's turns out of order: {spans}. {WAYS_OUT}")
    return Rendered(text, spans)


def ends_turns(tokenizer: Any) -> bool:
    """Whether a template writes something behind what the assistant says; so too where it cannot write a plain answer."""
    said = "scalekit"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    try:
        return not texts(tokenizer, [turns])[0].rstrip().endswith(said)
    except DataError:
        return True


def labels(ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span], ignored: int) -> list[int]:
    """Labels of a tokenized text: tokens that start within a span carry their id.

    Args:
        ids: tokens, shape [tokens].
        offsets: the characters (start, end) of each, in order, shape [tokens, 2]. Tokens without characters, such as
            those that the tokenizer adds, carry no loss.
        spans: in order and disjoint.
        ignored: the label of all other tokens.
    """
    out = [ignored] * len(ids)
    rest = iter(spans)
    a, b = next(rest, (0, 0))
    for i, (start, end) in enumerate(offsets):
        while start >= b and (span := next(rest, None)):
            a, b = span
        if a <= start < b and start < end:
            out[i] = ids[i]
    return out
