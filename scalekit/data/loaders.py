"""A job's loaders: the one for training, of rows that have places or of a stream, and the one for the validation set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from scalekit.data.loading.map_loader import Loader
from scalekit.data.loading.stream_loader import StreamLoader
from scalekit.data.loading.stream_shards import shards
from scalekit.data.pipeline import DataPipeline
from scalekit.data.prepared import Rows
from scalekit.data.sampling.batch_order import BatchOrder
from scalekit.data.sampling.stream_order import StreamOrder
from scalekit.data.sources.weighted import Weighted
from scalekit.distributed.world import World, all_reduce_sum
from scalekit.errors import ConfigError

Count = Callable[[Any, int], float]


def order_of(rows: Rows, micro_batch_size: int, world: World) -> BatchOrder | StreamOrder:
    """Which rows make which global batch, and which rank runs them.

    Raises:
        BatchSizeError: the global batch cannot be split.
    """
    job = rows.pipeline.job
    shared = {
        "global_batch_size": job.batch,
        "micro_batch_size": micro_batch_size,
        "world_size": world.size,
        "seed": job.seed,
    }
    shuffle = rows.pipeline.source.shuffle and job.overfit_batches is None
    limit = job.overfit_batches or job.limit_train_batches
    if rows.is_stream:
        if limit is not None:
            raise ConfigError("a stream has no epochs whose batches could be limited: give max_steps alone")
        return StreamOrder(shards(rows.train).count, **shared, shuffle=shuffle, shuffle_rows=job.shuffle_buffer_size)
    if job.overfit_batches is not None and any(
        part.weight is not None or isinstance(part.rows, Weighted) for part in rows.pipeline.source.parts
    ):
        raise ConfigError(
            "overfit_batches runs the same rows again and again, and rows that have weights are drawn again: leave out one"
        )
    whole = BatchOrder(len(rows.train), **shared, shuffle=shuffle)
    return replace(whole, limit=_limited("train", limit, whole.steps_per_epoch))


def training_loader(
    rows: Rows, order: BatchOrder | StreamOrder, world: World, count: Count, pin_memory: bool, state: Mapping[str, Any]
) -> Loader | StreamLoader:
    """The loader for training.

    Args:
        rows: a job's.
        order: of them.
        world: the job's processes.
        count: the items of a batch of so many rows.
        pin_memory: whether batches are put where a GPU copies from without waiting.
        state: what ScaleKit kept in the checkpoint that the job resumes from; empty for a new job.
    """
    pipeline = rows.pipeline
    if isinstance(order, BatchOrder):
        position = int(state.get("position", 0))
        return Loader(
            rows.train,
            rows.collate,
            order,
            world.rank,
            count,
            pipeline.workers,
            pin_memory,
            position,
            draws=pipeline.collate_draws,
        )
    return StreamLoader(
        rows.train,
        rows.encode or list,
        rows.collate,
        order,
        world.rank,
        count,
        pipeline.workers,
        pin_memory,
        state=state.get("stream"),
        on_bad_row=pipeline.job.on_bad_row,
        draw=rows.draw,
        capacity=pipeline.job.sequence_length if rows.packed else None,
        sum_over_ranks=lambda tensor: all_reduce_sum(tensor, world),
    )


def validation_loader(
    rows: Rows, order: BatchOrder | StreamOrder, world: World, count: Count, pin_memory: bool
) -> Loader | None:
    """The loader for the validation set: each row once, in its own order; None where there is none."""
    samples = validation_samples(rows)
    if samples is None:
        return None
    batches = (order.micro_batch_size, order.accumulation)
    return loader_once(rows.validation, rows.pipeline, *batches, world, count, pin_memory, samples)


def validation_samples(rows: Rows) -> int | None:
    """How many rows of the validation set an evaluation runs; None where there is none."""
    if rows.validation is None:
        return None
    job, length = rows.pipeline.job, len(rows.validation)
    limit = _limited("validate", job.overfit_batches or job.limit_val_batches, -(-length // job.batch))
    return length if limit is None else min(length, limit * job.batch)


def _limited(what: str, limit: int | float | None, batches: int) -> int | None:
    """As many global batches as a setting says.

    Raises:
        ConfigError: these are none.
    """
    if limit is None or isinstance(limit, int):
        return limit
    if limit * batches < 1:
        raise ConfigError(f"a share of {limit} of {batches} global batches to {what} is none: give a number of batches")
    return int(limit * batches)


def loader_once(
    rows: Any,
    pipeline: DataPipeline,
    micro_batch_size: int,
    accumulation: int,
    world: World,
    count: Count,
    pin_memory: bool,
    samples: int | None = None,
) -> Loader:
    """The loader of rows that are made ready: each once, in their own order.

    Args:
        rows: map-style.
        pipeline: by which they were made ready.
        micro_batch_size: rows that a rank runs at once.
        accumulation: how many times it does for a global batch.
        world: the job's processes.
        count: the items of a batch of so many rows.
        pin_memory: whether batches are put where a GPU copies from without waiting.
        samples: how many of them, from the first on; all by default.
    """
    global_batch_size = micro_batch_size * accumulation * world.size
    return Loader(
        rows,
        pipeline.collate,
        BatchOrder(
            samples or len(rows), global_batch_size, micro_batch_size, world.size, pipeline.job.seed, shuffle=False
        ),
        world.rank,
        count,
        pipeline.workers,
        pin_memory,
        advances=False,
        draws=pipeline.collate_draws,
    )


def job_steps(rows: Rows, order: BatchOrder | StreamOrder) -> int:
    """Optimizer steps of the whole job.

    Raises:
        ConfigError: none, or epochs of a stream, whose length is not known.
    """
    job = rows.pipeline.job
    if job.max_steps is not None:
        return job.max_steps
    if isinstance(order, StreamOrder):
        raise ConfigError("a stream's length is not known, and so not how many steps an epoch has: give max_steps")
    steps = -int(-(job.max_epochs or 0) * order.steps_per_epoch // 1)
    if steps < 1:
        raise ConfigError("the job has no steps: max_epochs must be above 0")
    return steps
