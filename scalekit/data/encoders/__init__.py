"""From rows to what a model takes: a task's encoder a file; `encoder` finds the one for a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scalekit.data.encoders.base import Encoder
from scalekit.data.encoders.labelled import Head, classes_of, labels_of
from scalekit.data.encoders.tasks import read
from scalekit.data.encoders.truncation import Limit
from scalekit.errors import ColumnError
from scalekit.models.labels import Classes


@dataclass(frozen=True)
class EncoderSettings:
    """What a job and its model say of their rows; see `scalekit.fit`. `longest` is the longest row, where it is known;
    `run_together` says whether all ranks must run the same parts of a model."""

    processor: Callable[[], Any]
    config: Any
    loss_on: str
    sequence_length: int | None
    transform: Any
    sampling_rate: int | None
    head: Head
    columns: Sequence[str] = ()
    run_together: bool = False
    has_loss: bool = False
    longest: int | None = None


def encoder(task: str, wanted: EncoderSettings, parts: Sequence[Any]) -> Encoder:
    """The encoder of a task.

    Args:
        task: one of `LOOKS`.
        wanted: what the job says.
        parts: the data sets, of which the classes are found.

    Raises:
        ScaleKitError: no tokenizer, or columns without classes.
    """
    from scalekit.data.encoders import (
        audio,
        causal,
        classification,
        image_text,
        images,
        masked,
        question_answering,
        seq2seq,
    )

    limit = Limit.of(wanted.sequence_length, wanted.config)
    if task in ("causal-lm", "masked-lm", "seq2seq-lm", "question-answering"):
        tokenizer = wanted.processor()
        if task == "causal-lm":
            return causal.Causal(tokenizer, wanted.loss_on, limit)
        if task == "masked-lm":
            return masked.Masked(tokenizer, limit)
        if task == "seq2seq-lm":
            return seq2seq.Seq2Seq(tokenizer, limit)
        return question_answering.Spans(tokenizer, limit, wanted.longest or limit.cut_at or 0)
    if task == "image-text-to-text":
        return image_text.ImageTexts(
            wanted.processor(), wanted.config, wanted.transform, limit, wanted.loss_on, wanted.run_together
        )
    column = read(wanted.columns, task)[-1]
    if task == "token-classification":
        return classification.TokenClasses(
            wanted.processor(), classes_of(list(parts), column, wanted.head), limit, column
        )
    labels = labels_of(list(parts), column, wanted.head)
    if task == "sequence-classification":
        pad = getattr(wanted.config, "pad_token_id", None)
        return classification.LabelledTexts(wanted.processor(), labels, limit, pad, column)
    if task == "image-classification":
        return images.Images(wanted.processor(), wanted.transform, labels, column)
    cast_to = ((getattr(part, "features", None) or {}).get("audio") for part in parts)
    rates = (getattr(feature, "sampling_rate", None) for feature in cast_to)
    rate = wanted.sampling_rate or next((each for each in rates if each), None)
    if labels.problem != Classes.problem and wanted.config is not None and not wanted.has_loss:
        raise ColumnError(
            f"the column {column!r} holds labels for {labels.problem}, and models of sounds learn one class a row where there "
            "is no `loss=`: give one, such as nn.MSELoss()"
        )
    return audio.Sounds(wanted.processor(), wanted.transform, rate, labels, column)
