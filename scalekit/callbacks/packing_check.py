"""Packed documents must not see each other: the user's own model shows it, as it is placed, before its first step."""

from __future__ import annotations

from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scalekit.data.packing.isolation import check_isolation


@final
class PackingCheck(Callback):
    """Runs `check_isolation` on every rank, under the job's own strategy, precision and attention.

    Args:
        flat: whether packed rows are laid one after another.
    """

    def __init__(self, flat: bool) -> None:
        self._flat = flat

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        model: Any = pl_module.model

        def forward(batch: dict[str, Any]) -> Tensor:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits: Tensor = strategy.run(lambda: model(**strategy.to_device(inputs)).logits)
            return logits.float()

        training = [part for part in model.modules() if part.training]
        model.eval()  # dropout would make all documents differ
        try:
            vocabulary = model.config.get_text_config().vocab_size
            check_isolation(forward, vocabulary, strategy.root_device, strategy.precision == "32-true", self._flat)
        finally:
            for part in training:
                part.training = True
