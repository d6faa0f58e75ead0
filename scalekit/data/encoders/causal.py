"""Causal language modelling: text, completions of prompts, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, final

from scalekit.data.encoders import chat_template, tool_calls
from scalekit.data.encoders.base import Encoder, Row, shown, text_of
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.marks import Span
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.token_offsets import tokenize
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import DataError, NoLabelError, RowError
from scalekit.objectives.counts import IGNORED

_SLICE = 250

TURN_KEYS = frozenset({"role", "content", "from", "value", "weight"})
"""What is read of a turn, whatever the chat template asks for."""

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
"""Who speaks in ShareGPT's files, by OpenAI's names."""


@dataclass(frozen=True)
class _Text:
    """A rendered row: its text, the spans with loss (characters; None: everywhere), and what the tokenizer is to add."""

    text: str
    spans: list[Span] | None
    special: bool


@dataclass(frozen=True)
class Chat:
    """A row that is a conversation.

    Attributes:
        turns: with ``role`` and ``content``.
        tools: that may be called, or None.
        asks: how many of the first turns only ask.
        weights: of the assistant's turns in the loss, in order: 0 or 1, as OpenAI's files have it; None where nothing says so.
    """

    turns: list[dict[str, Any]]
    tools: Any
    asks: int = 0
    weights: tuple[int, ...] | None = None

    @classmethod
    def of(cls, row: Row) -> Chat | None:
        """None for a row that is none.

        Raises:
            RowError: turns of an unknown form.
        """
        tools = _without_none(row.get("tools") or None)
        column = next((name for name in ("messages", "conversations") if row.get(name) is not None), "prompt")
        if column != "prompt":
            return cls._of(column, _after_system(row.get("system"), row[column]), tools)
        if isinstance(row.get("prompt"), list):
            prompt = _after_system(row.get("system"), row["prompt"])
            return cls._of("prompt", [*prompt, *row["completion"]], tools, asks=len(prompt))
        return None

    @classmethod
    def _of(cls, column: str, messages: Any, tools: Any, asks: int = 0) -> Chat:
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise RowError(
                f"{column!r} should be a list of turns with 'role' and 'content', and is empty or something else"
            )
        turns = [_turn(f"'{column}[{number}]'", message) for number, message in enumerate(messages)]
        weights = [turn.pop("weight", None) for turn in turns]
        if all(weight is None for weight in weights):
            return cls(turns, tools, asks)
        if any(weight not in (None, 0, 1) for weight in weights):
            raise RowError(f"{column!r} has turns with the weights {weights}: give 0 or 1")
        of_assistant = (w for turn, w in zip(turns, weights, strict=True) if turn.get("role") == "assistant")
        return cls(turns, tools, asks, tuple(1 if weight is None else int(weight) for weight in of_assistant))

    def check_loss_on(self, loss_on: str) -> None:
        """Whether weights can be kept.

        Raises:
            RowError: all tokens are learned.
        """
        if loss_on == "all" and self.weights is not None and not all(self.weights):
            raise RowError("it has turns of weight 0, and loss_on='all' learns them: give loss_on='completions'")

    def written(self, tokenizer: Any, loss_on: str) -> tuple[str, list[Span] | None]:
        """As a tokenizer's template writes it, with the spans with loss (characters; None: everywhere).

        These are the assistant's turns behind those that only ask, but for those without weight.

        Raises:
            DataError: the template cannot write it, or does not show what the assistant generates.
        """
        if loss_on == "all":
            return chat_template.texts(tokenizer, [self.turns], self.tools)[0], None
        rendered = chat_template.render(tokenizer, self.turns, self.tools)
        asked = len(chat_template.render(tokenizer, self.turns[: self.asks], self.tools).spans) if self.asks else 0
        if self.weights is None:
            return rendered.text, rendered.spans[asked:]
        if len(self.weights) != len(rendered.spans):
            raise DataError(
                "turns have weights, and the chat template tags other parts of a conversation than its turns"
            )
        pairs = zip(rendered.spans, self.weights, strict=True)
        return rendered.text, [span for number, (span, weight) in enumerate(pairs) if weight and number >= asked]


def _after_system(system: Any, messages: Any) -> Any:
    """A conversation that begins with what stands beside it as its system's turn."""
    if system is not None and not isinstance(system, str):
        raise RowError(f"'system' is {shown(system)}, and should be text")
    if not isinstance(messages, list) or not system or not system.strip():
        return messages
    if any(isinstance(each, dict) and "system" in (each.get("role"), each.get("from")) for each in messages):
        raise RowError("it has a system's turn, and another one in the column 'system': take one out")
    return [{"role": "system", "content": system}, *messages]


def refuse_beside_text(row: Row) -> None:
    """Refuses what belongs to a conversation beside a row that is none.

    Raises:
        RowError: it has a system's text, or tools.
    """
    for column in ("system", "tools"):
        if row.get(column):
            raise RowError(
                f"{column!r} stands beside a text, which has no place for it: give 'messages', or leave it out"
            )


def _turn(where: str, message: dict[str, Any]) -> dict[str, Any]:
    """A turn by OpenAI's names, which ShareGPT's files have not.

    Raises:
        RowError: it is of nobody known.
    """
    # Most of it is text, and there is much of it.
    turn = {
        key: each if isinstance(each, str) else _without_none(each) for key, each in message.items() if each is not None
    }
    if "role" in turn or "from" not in turn:
        return turn
    role, content = _ROLES.get(str(turn.pop("from"))), turn.pop("value", None)
    if role is None:
        raise RowError(f"{where} is from {shown(message['from'])}: known are {', '.join(_ROLES)}")
    return {"role": role, "content": content, **turn}


def _without_none(value: Any) -> Any:
    """Arrow gives each mapping the keys of all: of turns, of calls' arguments, of tools' parameters."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


@final
@dataclass(frozen=True)
class Causal(Encoder):
    """Rows with ``messages`` (and ``tools``), ``prompt`` and ``completion``, or ``text``, to ``input_ids`` and ``labels``.

    Args:
        tokenizer: a Hugging Face tokenizer.
        loss_on: ``"all"`` tokens, or ``"completions"``: what the assistant says, or the column `completion`.
        limit: the longest row.
    """

    tokenizer: Any
    loss_on: str
    limit: Limit
    made: ClassVar[Mapping[str, str]] = {"input_ids": "int32[]", "labels": "int32[]"}

    def identity(self) -> tuple[Any, ...]:
        return "causal", *tokenizer_identity(self.tokenizer), self.loss_on, self.limit

    def encode(self, rows: list[Row]) -> list[Row]:
        if len(rows) <= _SLICE:
            return self._tokenized(self._rendered(rows))
        # The tokenizer lets go of Python's lock, so the next rows are rendered meanwhile.
        with ThreadPoolExecutor(1) as tokenizing:
            slices = [rows[start : start + _SLICE] for start in range(0, len(rows), _SLICE)]
            made = [tokenizing.submit(self._tokenized, self._rendered(each)) for each in slices]
        return [row for each in made for row in each.result()]

    def _tokenized(self, texts: list[_Text]) -> list[Row]:
        everywhere, end = self.loss_on == "all", self.tokenizer.eos_token_id
        encoded: list[Row] = [{}] * len(texts)
        for special in (True, False):
            places = [place for place, text in enumerate(texts) if text.special == special]
            if not places:
                continue
            found = tokenize(self.tokenizer, [texts[place].text for place in places], special, offsets=not everywhere)
            for place, (ids, offsets) in zip(places, found, strict=True):
                encoded[place] = self._labelled(texts[place], ids, offsets, end)
        return encoded

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return Pad(pad_id(self.tokenizer, None))(rows)

    def _rendered(self, rows: list[Row]) -> list[_Text]:
        chats = [Chat.of(row) for row in rows]
        for each in chats:
            if each is not None:
                tool_calls.check_parts(each.turns)
                each.check_loss_on(self.loss_on)
        turns = [each.turns for each in chats if each is not None and each.tools is None]
        if self.loss_on == "all" and len(turns) == len(rows):
            return [_Text(text, None, special=False) for text in chat_template.texts(self.tokenizer, turns)]
        return [
            self._written(row) if found is None else _Text(*found.written(self.tokenizer, self.loss_on), special=False)
            for row, found in zip(rows, chats, strict=True)
        ]

    def _written(self, row: Row) -> _Text:
        refuse_beside_text(row)
        everywhere = self.loss_on == "all"
        if "prompt" in row:
            prompt, text = "" if row["prompt"] is None else row["prompt"], row["completion"]
            for column, value in (("prompt", prompt), ("completion", text)):
                if not isinstance(value, str):
                    raise RowError(f"{column!r} is {shown(value)}: 'prompt' and 'completion' should both be text")
            return _Text(prompt + text, None if everywhere else [(len(prompt), len(prompt + text))], special=True)
        return _Text(text_of(row, "text"), None if everywhere else [], special=True)

    def _labelled(self, text: _Text, ids: list[int], offsets: Any, end: int | None) -> Row:
        labels = list(ids)
        if text.spans is not None:
            spans = text.spans
            if text.special:
                spans = [(_with_blanks(text.text, first, offsets), last) for first, last in spans]
            labels = chat_template.labels(ids, offsets, spans, IGNORED)
            if all(label == IGNORED for label in labels):
                raise NoLabelError("it has nothing to learn: its answer is empty")
        if text.special and end is not None:
            if not ids or ids[-1] != end:
                ids, labels = [*ids, end], [*labels, end]
            labels[-1] = end  # the end that the tokenizer writes by itself is learned like one that is added
        ids, lost = self.limit.cut(ids)
        labels = labels[: len(ids)]
        if not any(label != IGNORED for label in labels[1:]):
            raise NoLabelError(
                "it has nothing to learn: its answer was cut off"
                if text.spans is not None
                else "it has nothing to learn: less than two tokens"
            )
        return {"input_ids": ids, "labels": labels, "lost": lost}


def _with_blanks(text: str, start: int, offsets: Any) -> int:
    """Where an answer starts, whose first token may take up the blanks before it, as " yes" does where a prompt ends in one."""
    for first, last in offsets:
        if first < start < last and text[first:start].isspace():
            return int(first)
    return start


def tokenizer_identity(tokenizer: Any) -> tuple[Any, ...]:
    """What a tokenizer's work depends on, as plain values that are the same in every process."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = backend.to_str()
        inner: Any = whole[
            whole.index('"added_tokens"') :
        ]  # what stands before is its last call's truncation and padding
    else:
        inner = sorted(tokenizer.get_vocab().items()), repr(sorted(tokenizer.init_kwargs.items(), key=str))
    names = ("chat_template", "eos_token", "bos_token", "truncation_side", "src_lang", "tgt_lang", "model_input_names")
    return type(tokenizer).__name__, inner, *(getattr(tokenizer, name, None) for name in names)


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    return Causal(wanted.processor(), wanted.loss_on, wanted.limit)
