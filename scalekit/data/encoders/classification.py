"""Text with a label for a whole row, or a class for each of its words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from scalekit.data.encoders.base import Encoder, Row, text_of, typed, types_of
from scalekit.data.encoders.causal import tokenizer_identity
from scalekit.data.encoders.masked import cut_between_specials
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.pretokenized import Targets
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import NoLabelError, RowError
from scalekit.models.labels import Classes, Labels
from scalekit.objectives.counts import IGNORED


@final
@dataclass(frozen=True)
class LabelledTexts(Encoder):
    """Rows with ``text`` (and ``text_pair``) and ``label`` to ``input_ids`` and a label.

    Args:
        tokenizer: a Hugging Face tokenizer.
        labels: what a label is.
        limit: the longest row.
        pad: the token by which a model that reads to the last one knows where a row ends; the tokenizer's by default.
        column: with the label.
    """

    tokenizer: Any
    labels: Labels
    limit: Limit
    pad: int | None = None
    column: str = "label"

    @property
    def made(self) -> Mapping[str, str]:  # type: ignore[override]
        return {"input_ids": "int32[]", "token_type_ids": "int8[]", "labels": self.labels.type}

    def identity(self) -> tuple[Any, ...]:
        return "classes", *tokenizer_identity(self.tokenizer), self.labels.identity(), self.limit, self.column

    def encode(self, rows: list[Row]) -> list[Row]:
        texts = [text_of(row, "text") for row in rows]
        pairs = [text_of(row, "text_pair") for row in rows] if "text_pair" in rows[0] else None
        labels = [self.labels.encode(row[self.column]) for row in rows]
        cut = cut_between_specials(self.tokenizer, texts, pairs, self.limit)
        return [
            {"input_ids": each["input_ids"], "token_type_ids": types_of(each), "labels": label, "lost": each["lost"]}
            for each, label in zip(cut, labels, strict=True)
        ]

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        pad = pad_id(self.tokenizer, None) if self.pad is None else self.pad
        return Pad(pad, Targets())(typed(rows))


@final
@dataclass(frozen=True)
class TokenClasses(Encoder):
    """Rows with ``tokens`` (words) and ``tags`` to ``input_ids`` and a class for each word's first token.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        labels: the classes.
        limit: the longest row.
        column: with the words' classes.
    """

    tokenizer: Any
    labels: Classes
    limit: Limit
    column: str = "tags"
    made: ClassVar[Mapping[str, str]] = {"input_ids": "int32[]", "labels": "int32[]"}

    def identity(self) -> tuple[Any, ...]:
        return "tags", *tokenizer_identity(self.tokenizer), self.labels.identity(), self.limit, self.column

    def encode(self, rows: list[Row]) -> list[Row]:
        return [self._one(row) for row in rows]

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return Pad(pad_id(self.tokenizer, None), Targets())(rows)

    def _one(self, row: Row) -> Row:
        words, tags = row.get("tokens"), row.get(self.column)
        if not words or tags is None or len(words) != len(tags):
            raise RowError(
                f"it has {len(words or ())} words in 'tokens' and {len(tags or ())} classes in {self.column!r}"
            )
        options: dict[str, Any] = {"is_split_into_words": True, "verbose": False}
        encoded = self.tokenizer(words, **options)
        _, lost = self.limit.cut(encoded["input_ids"])
        if lost:
            encoded = self.tokenizer(words, truncation=True, max_length=self.limit.cut_at, **options)
        numbers = [self.labels.encode(tag) for tag in tags]
        labels, before = [], None
        for word in encoded.word_ids():
            labels.append(IGNORED if word is None or word == before else numbers[word])
            before = word
        if all(label == IGNORED for label in labels):
            raise NoLabelError("none of its words has a token")
        return {"input_ids": encoded["input_ids"], "labels": labels, "lost": lost}
