"""What a job and its model say of the rows that an encoder is made for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from scalekit.data.encoders.labelled import Head, labels_of
from scalekit.data.encoders.tasks import read
from scalekit.data.encoders.truncation import Limit
from scalekit.models.labels import Labels


@dataclass(frozen=True)
class EncoderSettings:
    """See `scalekit.fit`.

    Attributes:
        task: one of `TASKS`.
        processor: gives it, or fails where there is none.
        config: the Hugging Face model's, or None.
        loss_on, sequence_length, transform, sampling_rate: the job's.
        head: what the model says of its classes.
        columns: of the rows.
        run_together: whether all ranks must run the same parts of a model.
        has_loss: whether the job has a loss of its own.
        longest: the longest row in tokens, where it is known.
    """

    task: str
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

    @property
    def limit(self) -> Limit:
        """How long rows may be."""
        return Limit.of(self.sequence_length, self.config)

    @property
    def column(self) -> str:
        """What is learned."""
        return read(self.columns, self.task)[-1]

    def labels(self, parts: Sequence[Any]) -> Labels:
        """What the labels of some data sets are."""
        return labels_of(list(parts), self.column, self.head)
