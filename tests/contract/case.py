"""A case of the contract with Lightning: a job that its own Trainer runs on one process, and ScaleKit under every strategy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset

import scalekit
from scalekit.errors import ScaleKitError

STRATEGIES = ("single", "ddp", "fsdp2", "zero2")
"""The first on one process, the others on two."""

GLOBAL_BATCH = 8
ROWS = 17
"""The last batch of an epoch has one row, so that one of two ranks has none."""

HELD_OUT = 9
EPOCHS = 3


class Numbers(Dataset[Any]):
    """Rows of four numbers and what is learned of them."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(rows, 4, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True) + 0.1 * torch.randn(rows, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[place], self.y[place]


def loader(rows: int, seed: int) -> DataLoader[Any]:
    return DataLoader(Numbers(rows, seed), batch_size=GLOBAL_BATCH)


@dataclass(frozen=True)
class Case:
    """One thing that a LightningModule, a callback or a data module can ask for.

    Attributes:
        asks: what, in words, for the table.
        module: makes the module; called again for each run.
        callbacks: made for each run.
        datamodule: made for each run; None for two loaders.
        has_loaders: whether the module makes its own, and no data is given.
        refused: by the strategy's name, what the refusal says; the same numbers are expected elsewhere.
        trainer: arguments of Lightning's own Trainer that ScaleKit has as settings, or as the module's own.
        settings: of ScaleKit's job.
        epochs: of the job.
        logs: whether it has a logger.
        reads: what is compared beside weights and logged values: a function of the module and its callbacks.
    """

    asks: str
    module: Callable[[], pl.LightningModule]
    callbacks: Callable[[], list[pl.Callback]] = list
    datamodule: Callable[[], pl.LightningDataModule] | None = None
    has_loaders: bool = False
    refused: dict[str, str] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS
    logs: bool = False
    reads: Callable[[pl.LightningModule], Any] = lambda module: None


class Observer(pl.Callback):
    """Notes what is logged: at each step, after each evaluation, and after each epoch."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self.epochs: list[dict[str, float]] = []
        self.rates: list[list[float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.evaluations.append(numbers(trainer.callback_metrics))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append(numbers(trainer.callback_metrics))
        self.rates.append([group["lr"] for each in trainer.optimizers for group in each.param_groups])


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(metrics.items())}


def by_lightning(case: Case, folder: Path) -> dict[str, Any]:
    """What Lightning's own Trainer makes of it on one process."""
    module, observer = case.module(), Observer()
    callbacks = case.callbacks()
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=case.epochs,
        logger=CSVLogger(folder) if case.logs else False,
        callbacks=[*callbacks, observer],
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        enable_progress_bar=any(isinstance(each, ProgressBar) for each in callbacks),
        enable_model_summary=any(isinstance(each, ModelSummary) for each in callbacks),
        default_root_dir=folder,
        **{"num_sanity_val_steps": -1, **case.trainer},
    )
    if case.has_loaders:
        trainer.fit(module)
    elif case.datamodule is None:
        trainer.fit(module, loader(ROWS, 1), loader(HELD_OUT, 2))
    else:
        trainer.fit(module, datamodule=case.datamodule())
    state = {name: tensor.detach().flatten().tolist() for name, tensor in module.state_dict().items()}
    return {**_observed(observer), "weights": state, "read": case.reads(module)}


def by_scalekit(case: Case, folder: Path, strategy: str) -> dict[str, Any]:
    """What ScaleKit makes of it on the processes that there are; or how it is refused."""
    module, observer = case.module(), Observer()
    data: Any = None
    validation = None
    if case.datamodule is not None:
        data = case.datamodule()
    elif not case.has_loaders:
        data, validation = loader(ROWS, 1), loader(HELD_OUT, 2)
    settings = {"global_batch_size": GLOBAL_BATCH, "max_epochs": case.epochs, **case.settings}
    if "max_steps" in settings:
        del settings["max_epochs"]
    try:
        run = scalekit.fit(
            module,
            data,
            validation=validation,
            strategy=strategy,
            precision=settings.pop("precision", "32-true"),
            num_workers=0,
            logger=CSVLogger(folder) if case.logs else None,
            callbacks=[*case.callbacks(), observer],
            output_dir=str(folder),
            **settings,
        )
    except ScaleKitError as error:
        return {"refused": str(error)}
    if run.checkpoint is None:
        raise AssertionError("no checkpoint")
    state: dict[str, Any] = {}
    for path in (run.checkpoint / "model").glob("*.safetensors"):
        state |= {name: tensor.flatten().tolist() for name, tensor in load_file(path).items()}
    return {**_observed(observer), "weights": state, "read": case.reads(module)}


def _observed(observer: Observer) -> dict[str, Any]:
    return {"evaluations": observer.evaluations, "epochs": observer.epochs, "rates": observer.rates}


def differences(expected: Any, found: Any, place: str = "") -> list[str]:
    """Where two results differ by more than 1e-5 of what is expected."""
    if isinstance(expected, dict) and isinstance(found, dict):
        names = sorted({*expected, *found})
        return _several(
            differences(expected.get(name), found.get(name), f"{place}.{name}" if place else name) for name in names
        )
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return _several(differences(*pair, f"{place}[{i}]") for i, pair in enumerate(zip(expected, found, strict=True)))
    if isinstance(expected, (int, float)) and isinstance(found, (int, float)):
        same = math.isclose(expected, found, rel_tol=1e-5, abs_tol=1e-6) or (math.isnan(expected) and math.isnan(found))
        return [] if same else [f"{place}: {found} for {expected}"]
    return [] if expected == found else [f"{place}: {found} for {expected}"]


def _several(parts: Iterable[list[str]]) -> list[str]:
    return [each for part in parts for each in part]
