"""The way of a job's rows to its model: the task that they are for, what encodes them, what batches them, and whether they are
packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import default_collate

from scalekit.config.settings import Job
from scalekit.data import encoders
from scalekit.data.encoders import tasks
from scalekit.data.encoders.base import Encoder, undecoded
from scalekit.data.encoders.labelled import Head
from scalekit.data.encoders.padding import Pad, pad_id
from scalekit.data.encoders.pretokenized import Targets, main_input, predicts_next
from scalekit.data.lengths import padding_share
from scalekit.data.packing.bins import fill
from scalekit.data.packing.isolation import can_pack
from scalekit.data.packing.packing import Pack
from scalekit.data.preprocessing import cores
from scalekit.data.processors import processor_for
from scalekit.data.sources.read import Source, with_column
from scalekit.distributed.world import World
from scalekit.errors import ConfigError
from scalekit.models.initialization import build_module
from scalekit.models.labels import Labels
from scalekit.models.resolve import resolve_model
from scalekit.models.tasks import TASKS
from scalekit.models.vocabulary import tokenizer_of, with_tokens
from scalekit.objectives.function_loss import is_torch_loss

Collate = Callable[[list[Any]], Any]

_LEAST_SAVED = 0.1
"""Of a batch, from which share of padding saved on packing pays."""

_MOST_READERS = 4


@dataclass(frozen=True)
class DataPipeline:
    """What is decided for rows, by what they look like, their model and their job.

    Args:
        job: its settings.
        source: the rows as they come.
        model: the model that will be trained, or one without weights; a Hugging Face configuration; or None.
        longest: the longest row in tokens, where it is known.
    """

    job: Job
    source: Source
    model: Any
    longest: int | None = None

    @cached_property
    def config(self) -> Any:
        """The Hugging Face model's; None for other models."""
        return getattr(self.model, "config", None) if isinstance(self.model, nn.Module) else self.model

    @cached_property
    def columns(self) -> list[str]:
        """Of the training rows; none where rows are no mappings."""
        known = getattr(self.source.parts[0].rows, "column_names", None)
        return list(known or self._first)

    @cached_property
    def _first(self) -> Mapping[str, Any]:
        """The first training row, without what is decoded in it; nothing where rows are no mappings."""
        part = self.source.parts[0]
        if not part.is_stream and getattr(part.rows, "column_names", None) is None:
            return {}
        found = next((row for row in islice(iter(undecoded(part.rows)), 1)), None)
        return found if isinstance(found, dict) else {}

    @cached_property
    def task(self) -> str | None:
        """Which the rows are for; None where they are taken as they are, or are tokens already.

        Raises:
            ColumnError: they have not what the task needs.
        """
        if self._is_own or not self.columns or main_input(self.model, self.job.task) in self.columns:
            return None
        # Of a LightningModule nothing is known: it takes its rows as they are.
        row = self._first if tasks.CONVERSATIONS & set(self.columns) else dict.fromkeys(self.columns)
        task = self.job.task or (None if self.model is None else tasks.look(row, self.config))
        if task is None and self.config is not None:
            task = "causal-lm"  # what is missing for it is then said
        if task is not None:
            for part in (*self.source.parts, *self.source.validation):
                tasks.check_columns(
                    list(getattr(part.rows, "column_names", None) or self.columns), task, part.name, self.columns
                )
        return task

    @cached_property
    def is_ready(self) -> bool:
        """Whether the rows are tokens already, for a Hugging Face model."""
        return self.config is not None and not self._is_own and "input_ids" in self.columns

    @property
    def _is_own(self) -> bool:
        """Whether the user batches or formats the rows."""
        return self.source.collate is not None or bool(getattr(self.source.parts[0].rows, "_format_type", None))

    # -- encoding ---------------------------------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> Encoder | None:
        """Of training rows; None where they are taken as they are."""
        return self._encoder()

    @cached_property
    def validation_encoder(self) -> Encoder | None:
        """Of the validation set: the same, but for the transform of what they show."""
        encoder: Any = self.encoder
        if hasattr(encoder, "transform"):
            encoder = replace(encoder, transform=self.job.validation_transform)
        found: Encoder | None = encoder
        return found

    @property
    def labels(self) -> Labels | None:
        """What the labels are, where the task has some."""
        return getattr(self.encoder, "labels", None)

    def labelled(self, source: Source) -> Source:
        """A source whose rows have some label, where they have none and the task is told by one."""
        if self.task is None or not TASKS[self.task].has_label:
            return source
        encoder: Any = self.encoder
        return with_column(source, [encoder.column], encoder.labels.example())

    def _encoder(self) -> Encoder | None:
        if self.task is None:
            return None
        wanted = encoders.EncoderSettings(
            self.task,
            processor=lambda: self._named_processor,
            config=self.config,
            loss_on=self.job.loss_on,
            sequence_length=self.job.sequence_length,
            transform=self.job.transform,
            sampling_rate=self.job.sampling_rate,
            head=Head(
                _saved_classes(self.config),
                not isinstance(self.job.model, str),
                getattr(self.config, "problem_type", None),
            ),
            columns=self.columns,
            run_together=World.from_environment().size > 1 and self.job.strategy != "ddp",
            has_loss=self.job.loss is not None,
            longest=self.longest,
        )
        return encoders.encoder(wanted, [part.rows for part in (*self.source.parts, *self.source.validation)])

    @property
    def processor(self) -> Any:
        """To save beside the model; None where there is none."""
        if self.task is not None or self.job.new_tokens:
            return self._named_processor
        return None if isinstance(self.job.processor, str) else self.job.processor

    @cached_property
    def _named_processor(self) -> Any:
        found = processor_for(self.task or "causal-lm", self.job.processor, self.job.model)
        return with_tokens(found, self.job.new_tokens) if self.job.new_tokens else found

    @property
    def tokens(self) -> int | None:
        """How many tokens the model must know, where the job adds some."""
        return len(tokenizer_of(self.processor)) if self.job.new_tokens else None

    @cached_property
    def targets(self) -> Targets:
        """Of rows that are tokens already.

        Raises:
            ColumnError: the model learns from labels, and there are none.
        """
        has_own = self.job.loss is not None and not is_torch_loss(self.job.loss)
        return Targets.of(self.columns, self.model, self.job.task, has_own)

    @property
    def is_shifted(self) -> bool:
        """Whether labels are tokens, each of which the model predicts one position before its own."""
        if self.is_ready:
            return predicts_next(self.model, self.job.task)
        return self.task is not None and TASKS[self.task].is_shifted

    # -- batching ---------------------------------------------------------------------------------------------------

    @cached_property
    def collate(self) -> Collate:
        """What makes a batch of rows that are not packed."""
        if self.source.collate is not None:
            return self.source.collate
        if self.encoder is not None:
            return self.encoder.collate
        if self.is_ready:
            return Pad(pad_id(self.processor, self.config), self.targets)
        return default_collate

    @property
    def collate_draws(self) -> bool:
        """Whether what makes a batch may draw random numbers: only one of the user's."""
        return self.source.collate not in (None, default_collate)

    def set_pad_token_id(self, config: Any) -> None:
        """Tells a model's configuration the padding token, if it has none: decoders classify by the last token before it."""
        if self.task == "sequence-classification" and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = pad_id(self.processor, config)

    @property
    def packed_collate(self) -> Collate:
        """What makes a batch of packed rows."""
        return Pack(pad_id(self.processor, self.config), flat=self.is_flat)

    @property
    def is_flat(self) -> bool:
        """Whether packed rows are laid one after another, as flash attention wants them."""
        return str(getattr(self.config, "_attn_implementation", "") or "").startswith("flash")

    @property
    def workers(self) -> int:
        """Processes that read rows, for each rank."""
        if self.job.num_workers != "auto":
            return int(self.job.num_workers)
        if self.source.workers is not None:
            return self.source.workers
        # Tokens take no time to read; what is decoded does, beside the steps where cores are left for it.
        if self.encoder is None or (self.encoder.replaces and not self.source.parts[0].is_stream):
            return 0
        return max(min(_MOST_READERS, cores() // World.from_environment().local_size - 1), 0)

    def packs(self, lengths: NDArray[np.int64]) -> bool:
        """Whether documents share rows.

        Args:
            lengths: of the documents in tokens, or of some of them, shape [documents].

        Raises:
            ConfigError: the job says so, and it cannot be.
        """
        reason = self._why_not_packed(lengths)
        if reason is not None and self.job.packing is True:
            raise ConfigError(f"packing=True cannot be: {reason}")
        return reason is None

    def _why_not_packed(self, lengths: NDArray[np.int64]) -> str | None:
        if self.job.packing is False:
            return "the job says so"
        if not (self.task == "causal-lm" or (self.is_ready and self.job.packing is True)):
            return "documents are packed for causal language models alone"
        if self.job.sequence_length is None:
            return "sequence_length, the length of a packed row, is not given"
        if self.job.packing == "auto":
            left = 1 - fill(lengths, self.job.sequence_length)
            if padding_share(lengths, self.job.seed) - left < _LEAST_SAVED:
                return "it would save next to nothing"
        if isinstance(self.model, nn.Module):
            return can_pack(self.model)
        resolved = resolve_model(self.job.model, self.task, self.job.trust_remote_code)
        return can_pack(build_module(resolved.source, here=False))


def _saved_classes(config: Any) -> tuple[str, ...]:
    """A model's names for its classes, by their numbers, which JSON may have put in another order."""
    named = getattr(config, "id2label", None) or {}
    return tuple(str(named[number]) for number in sorted(named, key=int))
