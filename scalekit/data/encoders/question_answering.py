"""Question answering by spans: where in the context the answer starts and ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from scalekit.data.encoders.base import Encoder, Row, text_of, typed, types_of
from scalekit.data.encoders.causal import tokenizer_identity
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.pretokenized import Targets
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import NoLabelError, RowError


@final
@dataclass(frozen=True)
class Spans(Encoder):
    """Rows with ``question``, ``context`` and ``answers`` (SQuAD's form) to ``start_positions`` and ``end_positions``.

    A question without an answer points to the first token, as SQuAD 2.0 has it. Of several answers the first is learned.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        limit: the longest row; contexts alone are cut.
        length: to which all rows are padded. The answer is sought among all tokens, padding too, so that a row's loss depends
            on it. By default that of the longest row of a batch.
    """

    tokenizer: Any
    limit: Limit
    length: int = 0
    pads_to_longest: ClassVar[bool] = True
    made: ClassVar[Mapping[str, str]] = {
        "input_ids": "int32[]",
        "token_type_ids": "int8[]",
        "start_positions": "int64",
        "end_positions": "int64",
    }

    def identity(self) -> tuple[Any, ...]:
        return "spans", *tokenizer_identity(self.tokenizer), self.limit

    def encode(self, rows: list[Row]) -> list[Row]:
        return [self._one(row) for row in rows]

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return Pad(pad_id(self.tokenizer, None), Targets(), self.length)(typed(rows))

    def _one(self, row: Row) -> Row:
        question, context = text_of(row, "question"), text_of(row, "context")
        start, end = _answer(row, context)
        options: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
        encoded = self.tokenizer(question, context, **options)
        _, lost = self.limit.cut(encoded["input_ids"])
        if lost:
            encoded = self.tokenizer(
                question, context, truncation="only_second", max_length=self.limit.cut_at, **options
            )
        within = [
            place
            for place, (part, (a, b)) in enumerate(zip(encoded.sequence_ids(), encoded["offset_mapping"], strict=True))
            if part == 1 and b > start and a < end
        ]
        if end > start and (not within or encoded["offset_mapping"][within[-1]][1] < end):
            raise NoLabelError("its answer was cut off with the end of its context: raise sequence_length")
        first, last = (within[0], within[-1]) if within else (0, 0)
        ids = {"input_ids": encoded["input_ids"], "token_type_ids": types_of(encoded)}
        return {**ids, "start_positions": first, "end_positions": last, "lost": lost}


def _answer(row: Row, context: str) -> tuple[int, int]:
    """The first answer's characters; an empty span where there is none."""
    answers = row.get("answers") or {}
    if not isinstance(answers, Mapping):
        raise RowError("'answers' should hold the lists 'text' and 'answer_start', as SQuAD's do")
    texts, starts = answers.get("text") or [], answers.get("answer_start") or []
    if not texts:
        return 0, 0
    if len(starts) != len(texts) or context[starts[0] : starts[0] + len(texts[0])] != texts[0]:
        raise RowError(f"its answer {texts[0]!r} does not stand in its context where 'answer_start' says")
    return starts[0], starts[0] + len(texts[0].rstrip())  # no token may stand for a blank at its end


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    return Spans(wanted.processor(), wanted.limit, wanted.longest or wanted.limit.cut_at or 0)
