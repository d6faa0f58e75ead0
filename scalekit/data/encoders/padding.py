"""Batches of unequal rows, padded to the longest."""

from __future__ import annotations

import sys
from typing import Any, final

import torch
from torch import Tensor

from scalekit.data.encoders.pretokenized import Targets, embedding_rows
from scalekit.objectives.counts import IGNORED


@final
class Pad:
    """Collates rows of token lists: pads on the right to the longest of the micro-batch.

    ``input_ids`` are padded with the pad token, ``labels`` with -100, all else with 0; numbers are stacked.

    Args:
        pad_id: the pad token's id.
        targets: how labels come about; by default rows without them take their ``input_ids``, but for what ``attention_mask``
            says is padding, as causal language models learn.
        length: to which all are padded at least.
    """

    def __init__(self, pad_id: int, targets: Targets | None = None, length: int = 0) -> None:
        self._pad_id = pad_id
        self._length = length
        self._targets = Targets(are_tokens=True) if targets is None else targets

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        # Text that stands beside tokens is nothing that a model takes.
        names = [name for name, value in rows[0].items() if not isinstance(value, str)]
        batch = {}
        for name in names:
            told = self._targets.name(name)
            if told is not None:
                batch[told] = self._column(told, [row[name] for row in rows])
        if "input_ids" in batch:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            inside = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
            batch.setdefault("attention_mask", inside.long())
            if self._targets.are_tokens:
                seen = inside & (batch["attention_mask"] != 0)
                batch.setdefault("labels", batch["input_ids"].masked_fill(~seen, IGNORED))
        labels = batch.get("labels")
        if labels is not None and (self._targets.are_floats or (self._targets.is_one and labels.ndim > 1)):
            batch["labels"] = labels.float()
        return batch

    def _column(self, name: str, values: list[Any]) -> Tensor:
        parts = [torch.as_tensor(value) for value in values]
        if parts[0].ndim == 0:
            return torch.stack(parts)
        return padded(name, parts, self._pad_id, self._length)


def padded(name: str, values: list[Tensor], pad_id: int, length: int = 0) -> Tensor:
    """A column's values, padded on the right to the longest, or to a length, shape [rows, longest]."""
    fill = {"input_ids": pad_id, "labels": IGNORED}.get(name, 0)
    found = torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=fill)
    return torch.nn.functional.pad(found, (0, max(length - found.shape[1], 0)), value=fill)


def pad_id(tokenizer: Any, config: Any) -> int:
    """The pad token's id: the tokenizer's, else the model's, else the end token's, else 0 (it is masked anyway)."""
    candidates = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
        getattr(config, "eos_token_id", None),
    )
    known = embedding_rows(config) or sys.maxsize  # a configuration may name tokens that its model is too small for
    return next((int(c) for c in candidates if isinstance(c, int) and 0 <= c < known), 0)
