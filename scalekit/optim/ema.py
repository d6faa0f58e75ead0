"""An exponential moving average of the weights, sharded over the ranks: each keeps it of the part that it would save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from scalekit.distributed.shards import TensorShard


@final
class Average:
    """The average after step t is ``decay * average + (1 - decay) * weights`` (arXiv 1703.01780, section 2), in float32.

    Args:
        decay: how much of the average a step leaves, between 0 and 1.
        parts: of the weights as they are before the first step, with which it begins.
    """

    def __init__(self, decay: float, parts: Sequence[TensorShard]) -> None:
        self._decay = decay
        self.parts = [replace(part, data=part.data.to(torch.float32, copy=True)) for part in parts]

    @torch.no_grad()
    def update(self, parts: Sequence[TensorShard]) -> None:
        """Takes the weights in as they are after a step.

        Args:
            parts: the same as the first ones, with the values of now.
        """
        mine = [part.data for part in self.parts]
        if not mine:  # of a rank that saves nothing, since others hold the same
            return
        torch._foreach_lerp_(mine, [part.data.float() for part in parts], 1 - self._decay)
