"""Loss and scores of an evaluation, each row counted once over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from scalekit.distributed.collectives import Collectives
from scalekit.objectives.metrics import Scores
from scalekit.objectives.normalization import MicroBatch


@final
class EvaluationTotals:
    """Adds up what validation and test steps return.

    Args:
        collectives: of the job's ranks.
        scores: of a `ScaleModule`; None for a module with steps of its own.
    """

    def __init__(self, collectives: Collectives, scores: Scores | None) -> None:
        self._collectives, self._scores = collectives, scores
        self._sums = torch.zeros(2, dtype=torch.float64, device=collectives.device)

    def count(self, output: Any, micro: MicroBatch | None) -> Any:
        """Counts a step's loss and scores where it gives some, and gives what Lightning keeps of them.

        Args:
            output: what the step returned.
            micro: what is known of its rows, which count nothing where they stand in for none.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if micro is not None and isinstance(loss, Tensor):
            if micro.items:
                self._sums[0] += loss.detach().double() * micro.items
                self._sums[1] += micro.items
            if self._scores is not None:
                self._scores.update(output, micro.items > 0)
        # Lightning would keep logits through the next micro-batch; what a user's own module returns is the user's.
        return output if self._scores is None else loss

    def close(self, adds_up: bool) -> dict[str, Any] | None:
        """Loss, items and scores over the whole validation set; None where its steps return no loss.

        Args:
            adds_up: whether losses are sums, not means.
        """
        total, items = self._collectives.sum(self._sums).tolist()
        self._sums.zero_()
        if not items:
            return None
        loss = total if adds_up else total / items
        found = {"loss": loss, "items": int(items) if items == int(items) else items}
        return {**found, **(self._scores.close(loss) if self._scores is not None else {})}
