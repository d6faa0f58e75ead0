"""The moving average of the weights as checkpoints hold it: beside the model, and as sharded as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import torch

from scalekit.checkpoint import load
from scalekit.checkpoint.format import AVERAGE
from scalekit.checkpoint.model_state import ModelFormat
from scalekit.distributed.shards import TensorShard, owned
from scalekit.optim.ema import Average
from scalekit.strategies.shards import Shards

Parts = Mapping[str, Sequence[TensorShard]]
"""A rank's parts, by the stem of their files' names."""


@final
class AveragedWeights:
    """The average of the weights that are trained; it begins with what they are now.

    Args:
        decay: see `Average`.
        model: how it is saved.
        shards: what this rank holds.
    """

    def __init__(self, decay: float, model: ModelFormat, shards: Shards) -> None:
        families = model.tensors_by_file().values()
        self._tensors = {name: each for family in families for name, each in family.items() if each.requires_grad}
        self._shards = shards
        self._average = Average(decay, self._trained())

    def resume(self, parts: Parts, checkpoint: Path) -> None:
        """Takes the average from a checkpoint, where it holds one.

        Args:
            parts: of the model.
            checkpoint: its folder.
        """
        if (checkpoint / AVERAGE).is_dir():
            load.fill(self.parts(parts), checkpoint)

    def update(self) -> None:
        """Takes the weights in as they are after a step."""
        self._average.update(self._trained())

    def parts(self, model: Parts) -> dict[str, Sequence[TensorShard]]:
        """What a checkpoint holds of the average: as of the model, but for the trained weights.

        Args:
            model: its parts.
        """
        mine = {part.name: part for part in self._average.parts}

        def averaged(part: TensorShard) -> TensorShard:
            elsewhere = replace(part, data=torch.empty(0), everywhere=False)
            return mine.get(part.name, elsewhere) if part.name in self._tensors else part

        return {f"{AVERAGE}/{Path(stem).name}": list(map(averaged, family)) for stem, family in model.items()}

    def _trained(self) -> list[TensorShard]:
        """Of the weights that are averaged, what this rank saves."""
        parts = (self._shards.part(name, tensor) for name, tensor in self._tensors.items())
        return list(owned(parts, self._shards.rank, self._shards.ranks))
