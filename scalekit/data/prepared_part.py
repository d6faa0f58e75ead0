"""One part of a job's rows, encoded once, or checked where it is tokens already."""

from __future__ import annotations

import numpy as np

from scalekit.data.encoders.base import Encoder, refused
from scalekit.data.encoders.pretokenized import check_tokens, embedding_rows, uncounted
from scalekit.data.encoders.truncation import Limit
from scalekit.data.pipeline import DataPipeline
from scalekit.data.preprocessing import Prepared, prepare, token_lengths
from scalekit.data.sources.data_part import DataPart, Skipped
from scalekit.errors import EmptyDataError, NoLabelError, RowError


def prepared_part(pipeline: DataPipeline, part: DataPart, encoder: Encoder | None) -> Prepared:
    """A part's rows, encoded, or checked where they are tokens already.

    Raises:
        ScaleKitError: a row cannot be used, and the job does not skip such rows.
    """
    if encoder is not None:
        made = prepare(part.rows, encoder, part.name, part.name_row, skip=pipeline.job.on_bad_row == "skip")
        check_tokens(made.rows, _known_tokens(pipeline), pipeline.processor, part.name_row)
        return made
    check_tokens(part.rows, _known_tokens(pipeline), pipeline.processor, part.name_row)
    lengths, positions = token_lengths(part.rows), Limit.of(None, pipeline.config).positions
    unfit = (lengths < 1) | (lengths > (positions or np.iinfo(np.int64).max))
    bad = unfit | uncounted(part.rows, pipeline.targets, pipeline.model, pipeline.job.task)
    found = [
        Skipped(
            part.name_row(place),
            f"it has {lengths[place]} tokens, and the model {positions or 'many'} positions"
            if unfit[place]
            else "it has nothing that the loss counts: all labels are masked",
        )
        for place in np.flatnonzero(bad).tolist()
    ]
    if found and pipeline.job.on_bad_row != "skip":
        kind = RowError if unfit[np.flatnonzero(bad)[0]] else NoLabelError
        raise refused(found[0].where, kind(found[0].why))
    if found and bad.all():
        raise EmptyDataError(f"no row of the {part.name} can be used")
    good = np.flatnonzero(~bad)
    return Prepared(part.rows.select(good) if found else part.rows, lengths[good], skipped=tuple(found))


def _known_tokens(pipeline: DataPipeline) -> int | None:
    """The tokens that the model has an embedding for, with those that the job adds."""
    known = embedding_rows(pipeline.model)
    return None if known is None else max(known, pipeline.tokens or 0)
