"""Masked language modelling: text, of which other tokens are hidden each time that it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from scalekit.data.encoders.base import Encoder, Row, text_of
from scalekit.data.encoders.causal import tokenizer_identity
from scalekit.data.encoders.encoder_settings import EncoderSettings
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import ConfigError, NoLabelError
from scalekit.objectives.counts import IGNORED

HIDDEN_SHARE = 0.15
"""Of the tokens (Devlin et al., "BERT", NAACL 2019, section 3.1)."""


@final
@dataclass(frozen=True)
class Masked(Encoder):
    """Rows with ``text`` to ``input_ids`` and ``labels``, with labels at the hidden tokens alone; at least one a row.

    Args:
        tokenizer: a Hugging Face tokenizer with a mask token.
        limit: the longest row.
    """

    tokenizer: Any
    limit: Limit
    draws: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.tokenizer.mask_token is None:
            raise ConfigError(
                f"a masked language model needs a mask token, which {self.tokenizer.name_or_path!r} lacks"
            )

    made: ClassVar[Mapping[str, str]] = {"input_ids": "int32[]", "special_tokens_mask": "int8[]"}

    def identity(self) -> tuple[Any, ...]:
        return "masked", *tokenizer_identity(self.tokenizer), self.limit

    def encode(self, rows: list[Row]) -> list[Row]:
        texts = [text_of(row, "text") for row in rows]
        cut = cut_between_specials(self.tokenizer, texts, None, self.limit)
        if any(all(each["special_tokens_mask"]) for each in cut):
            raise NoLabelError("it has nothing to hide: none of its tokens stands for text")
        return [{name: each[name] for name in (*self.made, "lost")} for each in cut]

    def draw(self, row: Row) -> Row:
        from transformers import DataCollatorForLanguageModeling

        mask = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=HIDDEN_SHARE).torch_mask_tokens
        ids = torch.as_tensor(row["input_ids"])[None]
        special = torch.as_tensor(row["special_tokens_mask"], dtype=torch.bool)[None]
        while True:
            hidden, labels = mask(ids.clone().long(), special)
            if bool((labels != IGNORED).any()):
                return {"input_ids": hidden[0], "labels": labels[0]}

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return Pad(pad_id(self.tokenizer, None))(rows)


def cut_between_specials(tokenizer: Any, texts: list[str], pairs: list[str] | None, limit: Limit) -> list[Row]:
    """What the tokenizer makes of texts, which of its tokens are special, and how many are ``lost``; what it puts at the ends
    stays there."""
    options: dict[str, Any] = {"return_attention_mask": False, "return_special_tokens_mask": True, "verbose": False}
    whole = tokenizer(texts, pairs, **options)
    found: list[Row] = []
    for place in range(len(texts)):
        row: Row = {name: values[place] for name, values in whole.items()}
        _, lost = limit.cut(row["input_ids"])
        if lost:
            pair = None if pairs is None else pairs[place]
            row = dict(tokenizer(texts[place], pair, truncation=True, max_length=limit.cut_at, **options))
        found.append({**row, "lost": lost})
    return found


def make(wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a job."""
    return Masked(wanted.processor(), wanted.limit)
