"""A conversation as a chat template renders it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, final

from scalekit.data.encoders import tool_calls
from scalekit.data.encoders.marks import CLOSE, OPEN, STOP, Drawn, Message, Span
from scalekit.errors import DataError, RowError

_TAG = re.compile(r"(\{%[-+]?)\s*((?:end)?generation)\s*([-+]?%\})")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_CALLS = {"generation": "call scalekit_generated()", "endgeneration": "endcall"}
_MACRO = f"{{% macro scalekit_generated() %}}{OPEN}tag{STOP}{{{{ caller() }}}}{CLOSE}tag{STOP}{{% endmacro %}}"


@final
class Page:
    """The tokenizer's template for one conversation: messages to text."""

    def __init__(self, tokenizer: Any, tools: Any) -> None:
        self._tokenizer = tokenizer
        self._takes_objects: bool | None = None
        self._tools = tool_calls.tools_of(tools)
        try:
            self._template: str = tokenizer.get_chat_template(None, self._tools)
        except ValueError as error:
            raise DataError(
                "the tokenizer has no chat template to use: set its `chat_template`, or give rows with the column 'text'"
            ) from error
        self.has_tags = bool(_TAG.search(_COMMENT.sub("", self._template)))

    def fitted(self, messages: Sequence[Message]) -> list[Message]:
        """A conversation whose calls have their arguments in the form that the template takes."""
        if not tool_calls.have_arguments(messages):
            return tool_calls.with_arguments(messages, tool_calls.as_object)
        if self._takes_objects is None:
            self._takes_objects = tool_calls.takes_objects(self, messages)
        change = tool_calls.as_object if self._takes_objects else tool_calls.as_text
        return tool_calls.with_arguments(messages, change)

    def texts(self, conversations: list[list[Message]]) -> list[str]:
        if not all(conversations):
            raise RowError("a conversation without messages cannot be rendered")
        found: list[str] = self._apply(conversations)
        for messages, text in zip(conversations, found, strict=True):
            if any(isinstance(parts := message.get("content"), list) and str(parts) in text for message in messages):
                raise RowError(
                    "the chat template writes a content in parts as Python prints a list: join the parts to one string"
                )
        return found

    def __call__(self, messages: Sequence[Message], prompt: bool = False, template: str | None = None) -> str:
        text: str = self._apply(messages, prompt, template)
        return text

    def _apply(self, conversations: Any, prompt: bool = False, template: str | None = None) -> Any:
        from jinja2.exceptions import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                conversations,
                tools=self._tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except TemplateError as error:
            raise RowError(f"the chat template refuses the conversation: {error.message or error}") from error
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise RowError(f"the chat template cannot render the conversation: {error}") from error

    def tagged(self, messages: Sequence[Message], text: str) -> Iterator[Span]:
        """What the template's author tags as generated.

        transformers counts tagged characters too, but from a wrong start where the tags stand in a macro or a set block.
        """
        template = _MACRO + _TAG.sub(lambda tag: f"{tag[1]} {_CALLS[tag[2]]} {tag[3]}", self._template)
        drawn = Drawn.read(self(messages, template=template))
        places = [mark.place for mark in drawn.marks]
        if drawn.text != text or [mark.opens for mark in drawn.marks] != [True, False] * (len(places) // 2):
            raise DataError("the chat template changes or nests what it tags with {% generation %}. Use loss_on='all'")
        return zip(places[::2], places[1::2], strict=True)

    @property
    def opening(self) -> str:
        """The token that only opens a text; some templates write it after each turn."""
        bos = self._tokenizer.bos_token
        return "" if bos is None or bos == self._tokenizer.eos_token else str(bos)

    def special(self) -> re.Pattern[str]:
        """The special tokens that may end a turn."""
        tokens = {token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        tokens |= set(self._tokenizer.all_special_tokens)
        tokens.discard(self.opening)
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
