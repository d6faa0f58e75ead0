"""Sequence-to-sequence language modelling: a prompt to the encoder, its completion from the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from scalekit.data.encoders.base import Encoder, Row, text_of
from scalekit.data.encoders.causal import tokenizer_identity
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.masked import cut_between_specials
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.pretokenized import Targets
from scalekit.data.encoders.truncation import Limit


@final
@dataclass(frozen=True)
class Seq2Seq(Encoder):
    """Rows with ``prompt`` and ``completion`` to ``input_ids`` and ``labels``, each cut by itself.

    Args:
        tokenizer: a Hugging Face tokenizer.
        limit: the longest prompt, and the longest completion.
    """

    tokenizer: Any
    limit: Limit
    made: ClassVar[Mapping[str, str]] = {"input_ids": "int32[]", "labels": "int32[]"}

    def identity(self) -> tuple[Any, ...]:
        return "seq2seq", *tokenizer_identity(self.tokenizer), self.limit

    def encode(self, rows: list[Row]) -> list[Row]:
        prompts = cut_between_specials(self.tokenizer, [text_of(row, "prompt") for row in rows], None, self.limit)
        answers = self.tokenizer(text_target=[text_of(row, "completion") for row in rows], verbose=False)["input_ids"]
        return [self._cut(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return Pad(pad_id(self.tokenizer, None), Targets())(rows)

    def _cut(self, prompt: Row, answer: list[int]) -> Row:
        labels, lost = self.limit.cut(answer)
        return {"input_ids": prompt["input_ids"], "labels": labels, "lost": prompt["lost"] + lost}


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    return Seq2Seq(wanted.processor(), wanted.limit)
