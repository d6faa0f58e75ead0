"""Text with a label for a whole row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from scalekit.data.encoders.base import Encoder, Row, text_of, typed, types_of
from scalekit.data.encoders.causal import tokenizer_identity
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.masked import cut_between_specials
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.pretokenized import Targets
from scalekit.data.encoders.truncation import Limit
from scalekit.models.labels import Labels


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


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    pad = getattr(wanted.config, "pad_token_id", None)
    return LabelledTexts(wanted.processor(), wanted.labels(parts), wanted.limit, pad, wanted.column)
