"""What is said of a job's rows before it trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scalekit.data.encoders import chat_template, tasks
from scalekit.data.encoders.causal import TURN_KEYS
from scalekit.data.lengths import Lengths
from scalekit.data.pipeline import DataPipeline
from scalekit.data.preprocessing import token_lengths
from scalekit.data.sources.data_part import Skipped
from scalekit.models.labels import Classes
from scalekit.utils.log_handlers import line


def skip_remark(skipped: Sequence[Skipped]) -> tuple[str, ...]:
    """How many rows were left out."""
    return (
        (line("skipped", f"{len(skipped):,} rows that cannot be used: skipped_rows.jsonl lists them"),)
        if skipped
        else ()
    )


def cut_remark(known: Lengths | None, name: str) -> tuple[str, ...]:
    """How many rows were cut to `sequence_length`, and the tokens lost by it."""
    if known is None or not known.cut_rows:
        return ()
    share = known.lost_tokens / (known.total + known.lost_tokens)
    text = f"{known.cut_rows:,} of {len(known.tokens):,} rows of the {name} to sequence_length: {known.lost_tokens:,} tokens "
    return (line("cut", f"{text}({share:.1%}) are lost"),)


def pack_remark(pipeline: DataPipeline, parts: Sequence[Any], documents: int) -> tuple[str, ...]:
    """In how many rows documents were packed, and how full these are."""
    made, capacity = sum(len(part) for part in parts), pipeline.job.sequence_length or 0
    useful = sum(int(token_lengths(part).sum()) for part in parts) / (made * capacity)
    text = f"{documents:,} documents in {made:,} rows of {capacity} tokens, {useful:.1%} of them useful"
    return (line("packing", f"{text}; a sample of a batch is such a row"),)


def pipeline_remarks(pipeline: DataPipeline) -> tuple[str, ...]:
    """That the rows' look has decided their task, and what is learned of labels that are no single class."""
    if pipeline.task is None:
        return _unread(pipeline.targets.unread(pipeline.columns) if pipeline.is_ready else ())
    unread = tasks.unread(pipeline.columns, pipeline.task)
    return *_task(pipeline, unread), *_unread([*unread, *_unread_keys(pipeline)]), *_turns(pipeline)


def _task(pipeline: DataPipeline, unread: Sequence[str]) -> tuple[str, ...]:
    """Nothing where the job says it all by itself."""
    labels = pipeline.labels
    kind = "" if labels is None or isinstance(labels, Classes) else f" ({labels.problem})"
    if pipeline.job.task is not None:
        return (line("task", f"{pipeline.task}{kind}"),) if kind else ()
    read = [column for column in pipeline.columns if column not in unread]
    return (line("task", f"{pipeline.task}{kind}, by the columns {', '.join(read)}"),)


def _unread_keys(pipeline: DataPipeline) -> list[str]:
    """What turns of a conversation hold, and the chat template never asks for."""
    column = next((each for each in ("messages", "conversations") if each in pipeline.columns), None)
    feature = (getattr(pipeline.source.parts[0].rows, "features", None) or {}).get(column)
    turn = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    template = getattr(pipeline.processor, "chat_template", None)
    if not isinstance(turn, dict) or not isinstance(template, str):
        return []
    return [f"{column}.{key}" for key in turn if key not in TURN_KEYS and key not in template]


def _turns(pipeline: DataPipeline) -> tuple[str, ...]:
    is_chat = pipeline.task == "causal-lm" and tasks.read(pipeline.columns, "causal-lm")[0] in (
        "messages",
        "conversations",
    )
    if not is_chat or chat_template.ends_turns(pipeline.processor):
        return ()
    text = "the chat template writes no end behind what the assistant says, so that the model is not taught to stop"
    return (line("turns", text),)


def _unread(columns: Sequence[str]) -> tuple[str, ...]:
    return (line("columns", f"not used: {', '.join(columns)}"),) if columns else ()
