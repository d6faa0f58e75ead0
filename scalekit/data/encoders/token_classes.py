"""Text with a class for each of its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from scalekit.data.encoders.base import Encoder, Row
from scalekit.data.encoders.causal import tokenizer_identity
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.labelled import classes_of
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.pretokenized import Targets
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import NoLabelError, RowError
from scalekit.models.labels import Classes
from scalekit.objectives.counts import IGNORED


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


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    classes = classes_of(list(parts), wanted.column, wanted.head)
    return TokenClasses(wanted.processor(), classes, wanted.limit, wanted.column)
