"""One process, one device."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from scalekit.config.strategy import StrategyConfig
from scalekit.models.initialization import materialize
from scalekit.strategies.base import BaseStrategy
from scalekit.strategies.job_context import JobContext


class SingleProcessStrategy(BaseStrategy, SingleDeviceStrategy):
    """`single`."""

    def __init__(self, spec: StrategyConfig, precision: str, device: str, job: JobContext) -> None:
        target = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
        super().__init__(spec, precision, device, job, device=target)

    def setup(self, trainer: Any) -> None:
        self.precision_plugin.convert_module(self._module)
        materialize(self._module, self.root_device)
        self.restore_weights()
        super().setup(trainer)
