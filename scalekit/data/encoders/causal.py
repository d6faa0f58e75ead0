"""Causal language modelling: text, completions of prompts, conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from scalekit.data import chat
from scalekit.data.encoders.encoder import Encoder, Row, text_of
from scalekit.data.encoders.limit import Limit
from scalekit.data.padding import Pad, pad_id
from scalekit.errors import NoLabelError, RowError
from scalekit.loss import IGNORED

LOSS_ON = ("all", "completions")


@dataclass(frozen=True)
class _Text:
    """A rendered row: its text, the spans with loss (characters; None: everywhere), and what the tokenizer is to add."""

    text: str
    spans: list[chat.Span] | None
    special: bool


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

    @property
    def features(self) -> Any:
        from datasets import Features, List, Value

        tokens = List(Value("int32"))
        return Features({"input_ids": tokens, "labels": tokens, "lost": Value("int32")})

    def identity(self) -> tuple[Any, ...]:
        return "causal", *tokenizer_identity(self.tokenizer), self.loss_on, self.limit

    def encode(self, rows: list[Row]) -> list[Row]:
        texts = [self._rendered(row) for row in rows]
        everywhere = self.loss_on == "all"
        encoded: list[Row] = [{}] * len(rows)
        for special in (True, False):
            places = [place for place, text in enumerate(texts) if text.special == special]
            if not places:
                continue
            tokens = self.tokenizer(
                [texts[place].text for place in places],
                add_special_tokens=special,
                return_attention_mask=False,
                return_offsets_mapping=not everywhere,
                verbose=False,
            )
            offsets = [None] * len(places) if everywhere else tokens["offset_mapping"]
            for place, ids, where in zip(places, tokens["input_ids"], offsets, strict=True):
                encoded[place] = self._labelled(texts[place], ids, where)
        return encoded

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return Pad(pad_id(self.tokenizer, None))(rows)

    def _rendered(self, row: Row) -> _Text:
        everywhere = self.loss_on == "all"
        if row.get("messages") is not None:
            return self._conversation(row["messages"], row.get("tools"))
        if isinstance(row.get("prompt"), list):
            return self._conversation([*row["prompt"], *row["completion"]], row.get("tools"), len(row["prompt"]))
        if "prompt" in row:
            prompt, text = row["prompt"] or "", row["completion"]
            if not isinstance(text, str) or not isinstance(prompt, str):
                raise RowError("'prompt' and 'completion' should both be text")
            return _Text(prompt + text, None if everywhere else [(len(prompt), len(prompt + text))], special=True)
        return _Text(text_of(row, "text"), None if everywhere else [], special=True)

    def _conversation(self, messages: Any, tools: Any, learned_from: int = 0) -> _Text:
        """A conversation; loss on the assistant's turns, from one on."""
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise RowError(
                "'messages' should be a list of turns with 'role' and 'content', and is empty or something else"
            )
        # Arrow gives each turn the keys of all.
        turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
        everywhere = self.loss_on == "all"
        rendered = chat.render(self.tokenizer, turns, tools or None, mark=not everywhere)
        spans = rendered.spans
        if learned_from and not everywhere:
            asked = chat.render(self.tokenizer, turns[:learned_from], tools or None)
            spans = spans[len(asked.spans) :]
        return _Text(rendered.text, None if everywhere else spans, special=False)

    def _labelled(self, text: _Text, ids: list[int], offsets: Any) -> Row:
        end = self.tokenizer.eos_token_id
        if text.special and end is not None and (not ids or ids[-1] != end):
            ids = [*ids, end]
        if text.spans is None:
            labels = list(ids)
        else:
            labels = chat.labels(ids[: len(offsets)], offsets, text.spans, IGNORED)
            labels += ids[len(offsets) :]
        ids, lost = self.limit.cut(ids)
        labels = labels[: len(ids)]
        if not any(label != IGNORED for label in labels[1:]):
            raise NoLabelError(
                "it has nothing to learn: its answer is empty or was cut off"
                if text.spans is not None
                else "it has nothing to learn: less than two tokens"
            )
        return {"input_ids": ids, "labels": labels, "lost": lost}


def tokenizer_identity(tokenizer: Any) -> tuple[Any, ...]:
    """What a tokenizer's work depends on, as plain values that are the same in every process."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inner = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    return type(tokenizer).__name__, inner, tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token
