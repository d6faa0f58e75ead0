"""A user's LightningDataModule beside ScaleKit's loaders: its hooks for batches, its state and its teardown."""

from __future__ import annotations

from typing import final

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer


@final
class AttachedData(Callback):
    """Attaches a data module to its trainer, which has loaders already. Comes before all other callbacks.

    The module has been set up when its rows were read, and is not set up again.

    Args:
        module: the user's.
    """

    def __init__(self, module: LightningDataModule) -> None:
        self._module = module

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        fit, others = trainer.fit_loop, (trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        sources = [loop._data_source for loop in (fit, fit.epoch_loop.val_loop, *others)]
        loaders = [each.instance for each in sources]
        trainer._data_connector.attach_datamodule(pl_module, self._module)
        for source, loader in zip(sources, loaders, strict=True):
            source.instance = loader
