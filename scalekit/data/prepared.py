"""A job's rows, ready to be batched: read, encoded, mixed, and packed where that pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from scalekit.config.settings import Job
from scalekit.data.encoders import tasks
from scalekit.data.encoders.base import Encoder, RandomlyTransformed, Row, drawn_by_content, tried, undecoded
from scalekit.data.lengths import Lengths, lengths_of
from scalekit.data.loading.stream_shards import pack_window
from scalekit.data.packing.packing import pack
from scalekit.data.pipeline import Collate, DataPipeline
from scalekit.data.prepared_part import prepared_part
from scalekit.data.preprocessing import token_lengths
from scalekit.data.remarks import cut_remark, pack_remark, pipeline_remarks, skip_remark
from scalekit.data.sources.data_part import DataPart, Skipped
from scalekit.data.sources.mixture import Mixed
from scalekit.data.sources.read import Source
from scalekit.errors import DataError, EmptyDataError
from scalekit.utils.log_handlers import line

Draw = Callable[[Row, int], Row]

_LOOKED_AT, _FEW = 256, 16


@dataclass(frozen=True)
class Rows:
    """A job's rows.

    Attributes:
        pipeline: how they reach the model.
        train: map-style, or a stream.
        longest: gives the row of training data that costs most, as far as that is plain.
        few: gives some rows of training data, the same on every rank.
        validation: the validation set, or None; it is never packed.
        encode: rows of a stream as they are read; of other rows, which are encoded already, None.
        draw: an encoded row of a stream as it is batched in an epoch; None where nothing about it is random.
        packed: whether documents share rows.
        documents: how many do; 0 where that is not known.
        lengths: of the training rows, before packing; None where they are no tokens, or a stream.
        remarks: for the log.
        skipped: rows that are left out.
    """

    pipeline: DataPipeline
    train: Any
    longest: Callable[[], Any]
    few: Callable[[], list[Any]]
    validation: Any = None
    encode: Callable[[list[Any]], list[Any]] | None = None
    draw: Draw | None = None
    packed: bool = False
    documents: int = 0
    lengths: Lengths | None = None
    remarks: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = field(default=())

    @classmethod
    def prepare(cls, job: Job, source: Source, model: Any) -> Rows:
        """Finds the way of rows to their model, and prepares them for it.

        Args:
            job: its settings.
            source: the rows as they come.
            model: see `Way`.

        Raises:
            ScaleKitError: rows that cannot be used.
        """
        pipeline = DataPipeline(job, source, model)
        if job.packing is True:
            pipeline.packs(np.zeros(0, np.int64))  # refuses what cannot be
        if source.parts[0].is_stream:
            return _streamed(pipeline)
        return _encoded(pipeline) if pipeline.encoder is not None or pipeline.is_ready else _as_they_are(pipeline)

    @property
    def is_stream(self) -> bool:
        """Whether the training rows can only be read one after the other."""
        return self.encode is not None

    @property
    def collate(self) -> Collate:
        """What makes a batch of training rows."""
        return self.pipeline.packed_collate if self.packed else self.pipeline.collate

    def example(self) -> tuple[Any, Collate]:
        """The row that costs most, a batch of which is what a step can cost at most, and what makes a batch of such rows."""
        return self.longest(), self.collate

    def fill(self, rows: int) -> float:
        """The mean length of the longest of so many rows, as a share of the longest row of all: batches are padded to it.

        It is 1 where rows are packed, or are no tokens.
        """
        if self.packed or self.lengths is None or self.lengths.tokens.max() == 0:
            return 1.0
        tokens = np.sort(self.lengths.tokens)
        no_longer = (np.arange(len(tokens) + 1) / len(tokens)) ** rows
        return float(tokens @ np.diff(no_longer)) / int(tokens[-1])

    def summary(self) -> dict[str, Any]:
        """What `data.json` holds."""
        found: dict[str, Any] = {
            "task": self.pipeline.task,
            "classes": None if self.pipeline.labels is None else list(self.pipeline.labels.names),
            "rows": None if self.is_stream else len(self.train),
            "packed_documents": self.documents or None,
            "validation_rows": None if self.validation is None else len(self.validation),
            "skipped_rows": len(self.skipped),
        }
        if self.lengths is not None:
            found |= {"tokens": self.lengths.total, "longest": int(self.lengths.tokens.max())}
            found |= {"cut_rows": self.lengths.cut_rows, "lost_tokens": self.lengths.lost_tokens}
        return found


def held_out(pipeline: DataPipeline, parts: Sequence[DataPart]) -> Any:
    """Rows that are no training rows, made ready for a job's model in the way of its own; None where there are none.

    Raises:
        ScaleKitError: rows that cannot be used.
    """
    if pipeline.task is not None:
        for part in parts:
            tasks.check_columns(list(part.rows.column_names), pipeline.task, part.name, pipeline.columns)
    if pipeline.encoder is None and not pipeline.is_ready:
        return _keyed(pipeline, _one_after_another([_tensors(part.rows) for part in parts]), parts)
    prepared = [prepared_part(pipeline, part, pipeline.validation_encoder).rows for part in parts]
    return _drawn(pipeline, _one_after_another(prepared), pipeline.validation_encoder)


def _encoded(pipeline: DataPipeline) -> Rows:
    """Rows that are encoded once, or checked once and drawn each time that they are read."""
    train = [prepared_part(pipeline, part, pipeline.encoder) for part in pipeline.source.parts]
    others = [prepared_part(pipeline, part, pipeline.validation_encoder) for part in pipeline.source.validation]
    lengths = lengths_of(train)
    if lengths is not None and pipeline.encoder is not None and pipeline.encoder.pads_to_longest:
        pipeline = replace(pipeline, longest=int(max(each.lengths.max(initial=0) for each in (*train, *others))))
    packed = lengths is not None and pipeline.packs(lengths.tokens)
    parts = [pack(each.rows, pipeline.job.sequence_length or 0) if packed else each.rows for each in train]
    skipped = (*pipeline.source.skipped, *chain.from_iterable(each.skipped for each in (*train, *others)))
    documents = sum(len(each.rows) for each in train) if packed else 0
    drawn = _drawn(pipeline, _joined(pipeline, parts), pipeline.encoder)
    return Rows(
        pipeline,
        train=drawn,
        longest=lambda: _longest(pipeline, parts),
        few=lambda: _first(drawn),
        validation=_drawn(pipeline, _one_after_another([each.rows for each in others]), pipeline.validation_encoder),
        packed=packed,
        documents=documents,
        lengths=lengths,
        remarks=(
            *pipeline_remarks(pipeline),
            *skip_remark(skipped),
            *cut_remark(lengths, "data"),
            *cut_remark(lengths_of(others), "validation data"),
            *(pack_remark(pipeline, parts, documents) if packed else ()),
        ),
        skipped=skipped,
    )


def _as_they_are(pipeline: DataPipeline) -> Rows:
    """Rows that no task is known for: tensors, which the user's collator or torch's own batches."""
    train = _joined(pipeline, [_tensors(part.rows) for part in pipeline.source.parts])
    if not len(train):
        raise EmptyDataError("the data has no rows")
    train = _keyed(pipeline, train, pipeline.source.parts)
    return Rows(
        pipeline,
        train,
        longest=lambda: train[0],
        few=lambda: _first(train),
        validation=held_out(pipeline, pipeline.source.validation),
        skipped=pipeline.source.skipped,
    )


def _streamed(pipeline: DataPipeline) -> Rows:
    """A stream, which is encoded as it is read; the validation set is not, and is prepared like any others."""
    if any(part.is_stream for part in pipeline.source.validation):
        raise DataError(
            "the validation set is read again and again, and cannot be a stream: load them without streaming"
        )
    rows = undecoded(pipeline.source.parts[0].rows)
    encode, draw = _encode_of(pipeline), _draw_of(pipeline)
    first = list(islice(iter(rows), _LOOKED_AT))
    # The loader refuses the others, or leaves them out, by their names.
    usable = [made for made, problem in (tried(encode, row) for row in first) if problem is None]
    usable = usable if draw is None else [draw(row, 0) for row in usable]
    if not usable:
        raise EmptyDataError(f"none of the first {len(first)} rows of the stream can be used")
    lengths = np.array(
        [len(row["input_ids"]) for row in usable if isinstance(row, dict) and "input_ids" in row], np.int64
    )
    packed = len(lengths) > 0 and pipeline.packs(lengths)
    if packed:
        usable = pack_window(usable, pipeline.job.sequence_length or 0)
    return Rows(
        pipeline,
        train=rows,
        longest=lambda: max(usable, key=lambda row: len(row["input_ids"])) if len(lengths) else usable[0],
        few=lambda: usable[:_FEW],
        validation=held_out(pipeline, pipeline.source.validation),
        encode=encode,
        draw=draw,
        packed=packed,
        remarks=(
            *pipeline_remarks(pipeline),
            *((line("packing", f"in rows of {pipeline.job.sequence_length} tokens"),) if packed else ()),
        ),
        skipped=pipeline.source.skipped,
    )


def _encode_of(pipeline: DataPipeline) -> Callable[[list[Any]], list[Any]]:
    """What makes of a stream's rows what is batched."""
    encoder = pipeline.encoder

    def encode(rows: list[Row]) -> list[Row]:
        if encoder is None:
            return rows
        made = encoder.encode(rows)
        kept = [{name: value for name, value in row.items() if name != "lost"} for row in made]
        return kept if encoder.replaces else rows

    return encode


def _draw_of(pipeline: DataPipeline) -> Draw | None:
    """What is random in a stream's rows, by the epoch."""
    encoder, seed = pipeline.encoder, pipeline.job.seed
    if encoder is None or not encoder.draws:
        return None
    return lambda row, epoch: drawn_by_content(encoder, row, seed, epoch)


def _joined(pipeline: DataPipeline, parts: Sequence[Any]) -> Any:
    """The training rows of all parts, drawn by weight where they are a mixture."""
    weights = [part.weight for part in pipeline.source.parts if part.weight is not None]
    return Mixed(parts, weights, pipeline.job.seed) if len(weights) == len(parts) > 1 else _one_after_another(parts)


def _one_after_another(parts: Sequence[Any]) -> Any:
    return None if not parts else parts[0] if len(parts) == 1 else ConcatDataset(parts)


def _drawn(pipeline: DataPipeline, rows: Any, encoder: Encoder | None) -> Any:
    is_drawn = rows is not None and encoder is not None and encoder.draws
    return RandomlyTransformed(rows, encoder, pipeline.job.seed) if is_drawn and encoder is not None else rows


def _keyed(pipeline: DataPipeline, rows: Any, parts: Sequence[DataPart]) -> Any:
    """Rows of torch data sets, whose code is the user's and may draw; those of lists and Hugging Face's are there already."""
    draws = any(isinstance(part.rows, Dataset) and not isinstance(part.rows, TensorDataset) for part in parts)
    return RandomlyTransformed(rows, None, pipeline.job.seed) if draws else rows


def _longest(pipeline: DataPipeline, parts: Sequence[Any]) -> Any:
    rows = _drawn(pipeline, ConcatDataset(parts), pipeline.encoder)
    lengths = np.concatenate([token_lengths(part) for part in parts])
    return rows[int(lengths.argmax()) if len(lengths) else 0]


def _first(rows: Any) -> list[Any]:
    return [rows[place] for place in range(min(_FEW, len(rows)))]


def _tensors(rows: Any) -> Any:
    """Hugging Face rows as tensors, which torch's own collator stacks, unless the user has formatted them."""
    return rows.with_format("torch") if hasattr(rows, "with_format") and not rows._format_type else rows
