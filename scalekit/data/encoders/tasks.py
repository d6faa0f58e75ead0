"""Which task rows are for, and which of their columns it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalekit.errors import ColumnError
from scalekit.models.tasks import TASKS

TEXTS = frozenset({"text", "text_pair", "prompt", "completion", "question", "context"})
"""The columns that tasks read as text, whatever it looks like."""

CONVERSATIONS = frozenset({"messages", "conversations", "prompt", "completion"})
"""The columns that may hold turns."""

_SHOWN = {"image": "pictures", "images": "pictures", "audio": "sounds", "audios": "sounds"}


def look(row: Mapping[str, Any], config: Any) -> str | None:
    """The task that rows are plainly for; None where they are for none.

    Args:
        row: one of them, or their columns with nothing in them.
        config: of the Hugging Face model, or None: then only images and sounds are known by their look.

    Raises:
        ColumnError: pictures or sounds beside a text, and the model takes none.
    """
    if "input_ids" in row:
        return None
    for name, task in TASKS.items():
        if (task.is_plain or (task.is_told and config is not None)) and _has(row, name):
            return name
    if config is None or not _has(row, "causal-lm"):  # which is written in every way that a text may be
        return None
    beside = _beside(row)
    if beside is not None:
        return _seen_with_text(beside, config)
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq-lm"
    saved_as = next(iter(getattr(config, "architectures", None) or ()), "")
    return "masked-lm" if saved_as.endswith(("ForMaskedLM", "ForPreTraining")) and "text" in row else "causal-lm"


def check_columns(columns: Sequence[str], task: str, name: str, first: Sequence[str]) -> None:
    """Whether rows have what a task needs, in the columns in which the first ones have it.

    Args:
        columns: of the rows.
        task: one of `TASKS`.
        name: of the rows, for messages.
        first: the columns of the rows that are read first.

    Raises:
        ColumnError: they do not.
    """
    if _has(columns, task):
        here, there = read(columns, task), read(first, task) if _has(first, task) else ()
        if here == there:
            return
        raise ColumnError(
            f"the {name} has the columns {', '.join(here)}, and other rows {', '.join(there)}: name them alike"
        )
    wanted = " or ".join(" and ".join(f"'{column}'" for column in each) for each in TASKS[task].columns)
    raise ColumnError(
        f"the {name} has no column that {task} can be trained on. It has: {', '.join(columns)}. Wanted: {wanted}, or "
        "'input_ids' and 'labels'"
    )


def read(columns: Sequence[str], task: str) -> tuple[str, ...]:
    """The columns by which a task knows rows, what is learned last."""
    return next(each for each in TASKS[task].columns if set(each) <= set(columns))


def unread(columns: Sequence[str], task: str) -> list[str]:
    """The columns that a task leaves alone."""
    known = {*read(columns, task), *TASKS[task].beside}
    return [column for column in columns if column not in known]


def _has_picture_parts(row: Mapping[str, Any]) -> bool:
    """Whether a conversation has a picture among the parts of what is said."""
    turns = [turn for name in CONVERSATIONS if isinstance(row.get(name), list) for turn in row[name]]
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") in ("image", "image_url") for part in parts)


def _beside(row: Mapping[str, Any]) -> str | None:
    """The column with what is shown or heard beside a text."""
    return next((name for name in _SHOWN if name in row), "messages" if _has_picture_parts(row) else None)


def _seen_with_text(column: str, config: Any) -> str:
    shown = _SHOWN.get(column, "pictures")
    kind = str(getattr(config, "model_type", ""))
    if shown == "pictures" and _sees(kind, config):
        return "image-text-to-text"
    taken = (
        f"{kind or 'the model'} takes none: take a model of images and text"
        if shown == "pictures"
        else "no task takes them"
    )
    raise ColumnError(f"the rows have {shown} beside their text, in {column!r}, and {taken}, or leave them out")


def _sees(kind: str, config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or hasattr(config, "vision_config")


def _has(columns: Any, task: str) -> bool:
    return any(set(each) <= set(columns) for each in TASKS[task].columns)
