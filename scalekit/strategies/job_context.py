"""What a strategy has to know of the job that it runs, all of it when the strategy is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalekit.objectives.counts import ItemCount
from scalekit.objectives.metrics import Scores


@dataclass(frozen=True)
class JobContext:
    """A job as its strategy sees it; the defaults are those of a Trainer that is not ScaleKit's.

    Attributes:
        step: global batches that were done when the job was resumed.
        checkpoint: the folder that it resumes from, or None.
        micro_batches_done: of the epoch that it resumes in; None for a new job.
        saved: what `state.json` says of the job beside what the strategy knows.
        saves_in_background: whether a process beside this one writes checkpoints.
        ema_decay: of the moving average of the weights, or None.
        finds_unused: whether ddp looks for parameters that a step has left out, by a walk over the graph.
        scores: of the validation set, of a `ScaleModule`.
        item_count: gives what the loss is a mean over, as far as it is known.
        is_asked_to_stop: whether this rank was asked to.
    """

    step: int = 0
    checkpoint: Path | None = None
    micro_batches_done: int | None = None
    saved: Mapping[str, Any] = field(default_factory=dict)
    saves_in_background: bool = False
    ema_decay: float | None = None
    finds_unused: bool = False
    scores: Scores | None = None
    item_count: Callable[[], ItemCount] | None = None
    is_asked_to_stop: Callable[[], bool] = lambda: False
