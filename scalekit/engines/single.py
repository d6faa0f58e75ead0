"""One process, one device."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from scalekit import weights
from scalekit.engines.engine import Engine
from scalekit.strategies import Strategy


class SingleEngine(Engine, SingleDeviceStrategy):
    """Carries out `single`."""

    def __init__(self, spec: Strategy, precision: str, device: str) -> None:
        target = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
        super().__init__(spec, precision, device, device=target)

    def setup(self, trainer: Any) -> None:
        self.precision_plugin.convert_module(self._module)
        weights.materialise(self._module, self.root_device)
        self.restore_weights()
        super().setup(trainer)
