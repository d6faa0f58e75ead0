"""Rows that are tokens already, for a Hugging Face model: which column is the target, and whether it knows the tokens."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from scalekit.errors import ColumnError, RowError
from scalekit.models.adapters import innermost
from scalekit.models.tasks import TASKS
from scalekit.objectives.counts import IGNORED
from scalekit.objectives.objective import TARGETS

_ALIASES = ("label", "label_ids")
"""What transformers' own collators take for labels too."""

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForImageTextToText")
_NEEDED = {
    "ForMaskedLM": "the tokens that were masked, -100 elsewhere",
    "ForTokenClassification": "a class for each token, -100 where it has none",
    "ForSequenceClassification": "a class or a number for each row",
    "ForConditionalGeneration": "the tokens of the target",
    "ForSeq2SeqLM": "the tokens of the target",
}
_FLOATS = ("regression", "multi_label_classification")


@dataclass(frozen=True)
class Targets:
    """How the target of such rows comes about.

    Attributes:
        column: that holds it; None where it is another than labels, or the tokens themselves.
        are_tokens: whether the tokens are their own labels, as causal language models learn.
        are_floats: whether labels are numbers, or one of 0 and 1 for each class.
        is_one: whether a row's label is one class, where it is one number.
        taken: what the model's forward pass takes by name; None where that is unknown.
    """

    column: str | None = None
    are_tokens: bool = False
    are_floats: bool = False
    is_one: bool = False
    taken: frozenset[str] | None = None

    def name(self, column: str) -> str | None:
        """What a column is called in a batch; None where it is not part of one."""
        if column == self.column:
            return "labels"
        if (self.are_tokens and column in _ALIASES) or (self.taken is not None and column not in self.taken):
            return None
        return column

    def unread(self, columns: Sequence[str]) -> list[str]:
        """The columns that are not part of a batch."""
        return [column for column in columns if self.name(column) is None]

    @classmethod
    def of(cls, columns: Sequence[str], model: Any, task: str | None, has_loss: bool) -> Targets:
        """Of rows with these columns.

        Args:
            columns: of the rows.
            model: the model, or its configuration.
            task: which head it gets; the one it was saved with by default.
            has_loss: whether the job has a loss of its own, which knows its target.

        Raises:
            ColumnError: the model learns from labels, and there are none.
        """
        kind = _kind(model, task)
        found = cls._of(columns, kind, getattr(model, "config", model), has_loss)
        taken = _taken(model, task)
        return found if taken is None else replace(found, taken=taken | set(TARGETS if has_loss else ()))

    @classmethod
    def _of(cls, columns: Sequence[str], kind: str, config: Any, has_loss: bool) -> Targets:
        column = next((name for name in ("labels", *_ALIASES) if name in columns), None)
        if has_loss:
            return cls("labels" if column == "labels" else None)
        if _is_causal(kind, config) or not kind:
            # A text's class beside its tokens is nothing that it learns.
            return cls("labels" if column == "labels" else None, are_tokens=column != "labels")
        if column is not None or "start_positions" in columns:
            is_one = kind.endswith("ForSequenceClassification")
            problem = getattr(config, "problem_type", None)
            learns_number = is_one and problem is None and getattr(config, "num_labels", None) == 1
            return cls(column, are_floats=learns_number or problem in _FLOATS, is_one=is_one)
        needed = next((text for ending, text in _NEEDED.items() if kind.endswith(ending)), "what it learns")
        raise ColumnError(
            f"the rows are tokens without labels, and {kind} learns from them: add the column 'labels', {needed}. There are: "
            f"{', '.join(columns)}"
        )


def uncounted(rows: Any, targets: Targets, model: Any, task: str | None) -> NDArray[np.bool_]:
    """Which rows have nothing that the loss counts, shape [rows]: no label, or none but the first, which is not predicted.

    Args:
        rows: a Hugging Face data set with ``input_ids``.
        targets: of these rows.
        model, task: as for `Targets.of`.
    """
    column = "input_ids" if targets.are_tokens else targets.column
    if column is None or column not in rows.column_names or "List" not in type(rows.features[column]).__name__:
        return np.zeros(len(rows), np.bool_)
    seen = "attention_mask" if targets.are_tokens and "attention_mask" in rows.column_names else column
    is_shifted = predicts_next(model, task)
    found = [_uncounted(chunk, column, seen, is_shifted) for chunk in rows.with_format("arrow").iter(batch_size=10_000)]
    return np.concatenate(found)


def _uncounted(chunk: Any, column: str, seen: str, is_shifted: bool) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    lists = chunk[seen].combine_chunks()
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    counted = values != (IGNORED if seen == column else 0)
    if is_shifted:
        counted[(ends - lengths)[lengths > 0]] = False
    sums = np.concatenate([[0], np.cumsum(counted)])
    return np.asarray(sums[ends] == sums[ends - lengths])


def _kind(model: Any, task: str | None) -> str:
    """The class of a model, which may not be built yet; empty where nothing says it."""
    if isinstance(model, nn.Module):
        return type(innermost(model)).__name__
    if task is not None:
        return TASKS[task].model_class
    return next(iter(getattr(model, "architectures", None) or ()), "")


def main_input(model: Any, task: str | None) -> str:
    """The column by which rows are known that a model takes as they are: ``input_ids``, or what it calls the like.

    Args:
        model, task: as for `Targets.of`.
    """
    return str(getattr(_class_of(model, task), "main_input_name", "input_ids"))


def _class_of(model: Any, task: str | None) -> Any:
    """The module, or the class of transformers that it will be; None where nothing says it."""
    import transformers

    if isinstance(model, nn.Module):
        return innermost(model)
    found = getattr(transformers, _kind(model, task), None)
    return found if task is None else getattr(found, "_model_mapping", {}).get(type(model), None)


def predicts_next(model: Any, task: str | None) -> bool:
    """Whether a model learns to predict the next token.

    Args:
        model, task: as for `Targets.of`.
    """
    return _is_causal(_kind(model, task), getattr(model, "config", model))


def _taken(model: Any, task: str | None) -> frozenset[str] | None:
    """What the forward pass of a model of transformers takes by name; None where it takes whatever it is given."""
    from transformers.utils import TransformersKwargs

    found = _class_of(model, task)
    if not hasattr(found, "forward") or not hasattr(found, "save_pretrained"):
        return None
    names = inspect.signature(found.forward).parameters
    return frozenset([*names, *TransformersKwargs.__annotations__]) if main_input(model, task) in names else None


def _is_causal(kind: str, config: Any) -> bool:
    """Whether models of a class predict the next token: decoders that see pictures are called conditional, as T5 is."""
    is_decoder = kind.endswith("ForConditionalGeneration") and not getattr(config, "is_encoder_decoder", False)
    return kind.endswith(_CAUSAL) or is_decoder


def embedding_rows(model: Any) -> int | None:
    """The tokens that a model, or one of this configuration, has an embedding for; None where it does not say."""
    if hasattr(model, "get_input_embeddings"):
        try:
            return int(model.get_input_embeddings().weight.shape[0])
        except (NotImplementedError, AttributeError):
            return None
    config = getattr(model, "config", model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "vocab_size", None)
    return found if isinstance(found, int) and found > 0 else None


def check_tokens(rows: Any, known: int | None, tokenizer: Any, name_row: Callable[[int], str]) -> None:
    """Whether the embedding has a row for every token of some rows: on a GPU another one would end the process.

    Args:
        rows: a Hugging Face data set with ``input_ids``.
        known: rows of the embedding; None where they are unknown.
        tokenizer: that may name the token; or None.
        name_row: says where a row came from.

    Raises:
        RowError: a token is beyond the embedding.
    """
    if known is None or "input_ids" not in getattr(rows, "column_names", ()):
        return
    import pyarrow.compute as pc

    place = 0
    for chunk in rows.with_format("arrow").iter(batch_size=10_000):
        ids = chunk["input_ids"].combine_chunks()
        flat = pc.list_flatten(ids)
        bounds = pc.min_max(flat).as_py()
        if len(flat) and not 0 <= bounds["min"] <= bounds["max"] < known:
            values = flat.to_numpy(zero_copy_only=False)
            first = int(np.flatnonzero((values < 0) | (values >= known))[0])
            row = place + int(pc.list_parent_indices(ids)[first].as_py())
            raise RowError(f"{name_row(row)}: {_told(int(values[first]), known, tokenizer)}")
        place += len(ids)


def _told(token: int, known: int, tokenizer: Any) -> str:
    text = (
        tokenizer.convert_ids_to_tokens(token) if hasattr(tokenizer, "convert_ids_to_tokens") and token >= 0 else None
    )
    named = f"the token {text!r} (id {token})" if text else f"the token id {token}"
    return (
        f"{named} is beyond the model's embedding, which has {known} rows: name it in new_tokens, which "
        "gives it one, or take the tokenizer that the model was made with"
    )
