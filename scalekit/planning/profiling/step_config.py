"""What a prediction is asked for: one way to run a step."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from scalekit.config.names import Checkpointing
from scalekit.config.precision import Dtypes
from scalekit.config.strategy import StrategyConfig


class AccumulationPhase(Enum):
    """A micro-batch's place in its optimizer step, for a strategy: whether gradients are there already, and come to rest."""

    FIRST = "first"
    MIDDLE = "middle"
    LAST = "last"


@dataclass(frozen=True)
class StepConfig:
    """What a step's memory is asked for.

    Attributes:
        strategy: the file.
        dtypes: of everything a step touches.
        world_size: ranks.
        node_size: ranks of a node.
        micro_batch_size: samples.
        accumulation: micro-batches an optimizer step and rank.
        recompute: what of blocks is computed again in the backward pass.
        moments: the optimizer's numbers for each trained one: 2 for Adam, 0 for plain SGD.
        kind: of device: ``"cuda"`` or ``"cpu"``.
        context_bytes: what a process takes of a device beside tensors, where that was measured.
    """

    strategy: StrategyConfig
    dtypes: Dtypes
    world_size: int
    node_size: int
    micro_batch_size: int
    accumulation: int
    recompute: Checkpointing
    moments: int = 2
    kind: str = "cuda"
    context_bytes: int | None = None

    @property
    def phases(self) -> list[AccumulationPhase]:
        """The kinds of micro-batches that a step has."""
        return [
            AccumulationPhase.FIRST,
            *([AccumulationPhase.MIDDLE] * (self.accumulation > 2)),
            *([AccumulationPhase.LAST] * (self.accumulation > 1)),
        ]
