"""PyTorch's DistributedDataParallel: every rank keeps all, gradients are averaged."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy

from scalekit import weights
from scalekit.engines.engine import Engine
from scalekit.strategies import Strategy


class DDPEngine(Engine, DDPStrategy):
    """Carries out `ddp`."""

    def __init__(self, spec: Strategy, precision: str, device: str) -> None:
        # Initial weights are sent by `setup`, buffers that no state dict names among them; `Buffers` keeps the latter the same.
        super().__init__(
            spec, precision, device, init_sync=False, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def setup(self, trainer: Any) -> None:
        self.precision_plugin.convert_module(self._module)
        weights.materialise(self._module, self.root_device)
        if self._rank == 0:
            self.restore_weights()
        self.model_to_device()
        weights.broadcast(self._module, self.root_device)
        self._ddp_kwargs["find_unused_parameters"] = self.finds_unused
        super().setup(trainer)
