"""Text for language models: rows to tokens and labels, and padding to a micro-batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from scalekit.errors import ColumnError, ConfigError, DataError, NoLabelError
from scalekit.loss import IGNORED

log = logging.getLogger(__name__)

LOSS_ON = ("all", "completions")

Encoded = dict[str, list[int]]


@dataclass(frozen=True)
class Encoder:
    """Turns rows into ``input_ids`` and ``labels``.

    Args:
        tokenizer: a Hugging Face tokenizer.
        loss_on: ``"all"`` tokens, or ``"completions"``: what the assistant says, or the column `completion`.
        sequence_length: rows are cut to this many tokens; None leaves them whole.
    """

    tokenizer: Any
    loss_on: str = "all"
    sequence_length: int | None = None

    def encode(self, row: dict[str, Any]) -> Encoded:
        """One row: ``messages``, ``prompt`` and ``completion``, or ``text``."""
        if "messages" in row:
            encoded = self._conversation(row["messages"])
        elif "prompt" in row:
            end = self.tokenizer.eos_token or ""
            prompt = row["prompt"]
            encoded = self._spans(prompt + row["completion"] + end, [(len(prompt), None)])
        else:
            encoded = self._spans(row["text"] + (self.tokenizer.eos_token or ""), [])
        return {name: values[: self.sequence_length] for name, values in encoded.items()} | {
            "cut": [int(self.sequence_length is not None and len(encoded["input_ids"]) > self.sequence_length)]
        }

    def _conversation(self, messages: Sequence[dict[str, str]]) -> Encoded:
        """Renders the chat template once for the whole and once up to each answer, to find where answers stand."""
        text = self._render(messages)
        spans: list[tuple[int, int | None]] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant" or self.loss_on == "all":
                continue
            before = self._render(messages[:i], add_generation_prompt=True)
            after = self._render(messages[: i + 1])
            if not (text.startswith(before) and text.startswith(after)):
                raise DataError(
                    "the tokenizer's chat template renders a conversation's beginning differently once it goes on, so "
                    "where an answer starts cannot be told. Use loss_on='all'"
                )
            spans.append((len(before), len(after)))
        return self._spans(text, spans, special=False)

    def _spans(self, text: str, spans: list[tuple[int, int | None]], special: bool = True) -> Encoded:
        """Tokens of a text, with loss on those that start within the spans (characters), or on all."""
        everything = self.loss_on == "all"
        out = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=not everything)
        ids = list(out["input_ids"])
        if everything:
            return {"input_ids": ids, "labels": list(ids)}
        labels = [IGNORED] * len(ids)
        for i, (start, end) in enumerate(out["offset_mapping"]):
            if end > start and any(a <= start and (b is None or start < b) for a, b in spans):
                labels[i] = ids[i]
        return {"input_ids": ids, "labels": labels}

    def _render(self, messages: Sequence[dict[str, str]], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options) if messages else ""


def prepare(rows: Any, encoder: Callable[[], Encoder], name: str, processes: int | None = None) -> Any:
    """A Hugging Face data set of tokens.

    Args:
        rows: a data set with the column ``input_ids`` (and ``labels``), ``messages``, ``prompt`` and ``completion``, or
            ``text``.
        encoder: makes the encoder, where one is needed.
        name: of the data, for messages.
        processes: that encode side by side; None for one.

    Raises:
        ColumnError: none of those columns.
        NoLabelError: a row without a token to learn from.
    """
    columns = list(rows.column_names)
    if "input_ids" in columns:
        return rows
    wanted = next((c for c in (("messages",), ("prompt", "completion"), ("text",)) if set(c) <= set(columns)), None)
    if wanted is None:
        raise ColumnError(
            f"the {name} has no column that a language model can be trained on. It has: {', '.join(columns)}. Wanted: "
            "'messages', 'prompt' and 'completion', 'text', or 'input_ids' and 'labels'"
        )
    encode = encoder().encode
    with _one_at_a_time():
        tokens = rows.map(
            partial(_encode_row, encode=encode),
            remove_columns=columns,
            num_proc=processes,
            desc=f"Tokens of the {name}",
        )
    cut = sum(flag for (flag,) in tokens["cut"])
    if cut:
        log.warning("%d of %d rows of the %s are cut to sequence_length", cut, len(tokens), name)
    tokens = tokens.remove_columns("cut")
    _check_labels(tokens, name)
    return tokens


def _one_at_a_time() -> FileLock:
    """Lets a node's first rank prepare and the others take what it cached, without a collective that could time out."""
    import datasets

    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "scalekit-prepare.lock")


def _encode_row(row: dict[str, Any], encode: Callable[[dict[str, Any]], Encoded]) -> Encoded:
    return encode(row)


def _check_labels(tokens: Any, name: str) -> None:
    """A causal model never learns a row's first token, so a label must stand after it."""
    empty = [i for i, labels in enumerate(tokens["labels"]) if not any(label != IGNORED for label in labels[1:])]
    if empty:
        raise NoLabelError(
            f"{len(empty)} of {len(tokens)} rows of the {name} have no label tokens, the first being row {empty[0]}: their "
            "answers are empty or cut off. Drop them, or raise sequence_length"
        )


class Pad:
    """Collates rows of token lists: pads on the right to the longest of the micro-batch.

    ``input_ids`` are padded with the pad token, ``labels`` with -100, all else with 0; numbers are stacked. Rows without
    ``labels`` take their ``input_ids``.

    Args:
        pad_id: the pad token's id.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = {name: self._column(name, [row[name] for row in rows]) for name in rows[0]}
        if "input_ids" in batch:
            lengths = torch.tensor([len(row["input_ids"]) for row in rows])
            inside = torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]
            batch.setdefault("attention_mask", inside.long())
            batch.setdefault("labels", batch["input_ids"].masked_fill(~inside, IGNORED))
        return batch

    def _column(self, name: str, values: list[Any]) -> Tensor:
        parts = [torch.as_tensor(value) for value in values]
        if parts[0].ndim == 0:
            return torch.stack(parts)
        fill = {"input_ids": self._pad_id, "labels": IGNORED}.get(name, 0)
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)


def pad_id(tokenizer: Any, config: Any) -> int:
    """The pad token's id: the tokenizer's, else the model's, else the end token's, else 0 (it is masked anyway)."""
    candidates = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
        getattr(config, "eos_token_id", None),
    )
    return next((int(c) for c in candidates if isinstance(c, int)), 0)


def need_tokenizer(processor: Any, model: Any) -> Any:
    """The tokenizer given, or the one that stands beside the model.

    Raises:
        ConfigError: there is none.
    """
    if processor is not None and not isinstance(processor, str):
        return processor
    name = processor or (model if isinstance(model, str) else getattr(model, "name_or_path", ""))
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise ConfigError(f"the data is text, and no tokenizer was found for {name!r}: give `processor=`") from error
