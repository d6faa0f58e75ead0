"""What trained models make of other rows, each once and in order: evaluated.py FOLDER STRATEGY."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MeanMetric

import scalekit
from scalekit.errors import ScaleKitError
from tests.support import parity_cases as parity

RANK = int(os.environ.get("RANK", 0))
ROWS, BATCH = 17, 8
"""The last batch has one row, of which one of two ranks has none."""


class Data(pl.LightningDataModule):
    """Rows by the stage, in batches."""

    def setup(self, stage: str) -> None:
        self.stage = stage

    def _loader(self, seed: int, rows: int = ROWS) -> DataLoader[Any]:
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
        return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=BATCH)

    def train_dataloader(self) -> Any:
        return self._loader(1, rows=2 * BATCH)  # a batch norm cannot train on one row

    def val_dataloader(self) -> Any:
        return self._loader(2)

    def test_dataloader(self) -> Any:
        return self._loader(3)

    def predict_dataloader(self) -> Any:
        return self._loader(4)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * batch[0], batch[1]]


class Regression(pl.LightningModule):
    """With a step for each stage, and a metric of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.error, self.batches = MeanAbsoluteError(), MeanMetric()
        self.kept: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        found = self(batch[0])
        self.error(found, batch[1])
        self.kept.append(len(found))
        self.log("test_loss", nn.functional.mse_loss(found, batch[1]))
        self.log("test_error", self.error)
        self.log("above", (found > 0).float().sum())

    def on_test_epoch_end(self) -> None:
        self.log("rows", float(sum(self.kept)), reduce_fx="sum", sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        found = self(batch[0])
        return {"prediction": found[:, 0], "is_large": [bool(each > 0) for each in found]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Writer(BasePredictionWriter):
    """Notes the places of the rows whose predictions it is given."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.places: list[int] = []

    def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, places: Any, *_: Any) -> None:
        self.places += places


def own_module(folder: Path, strategy: str) -> dict[str, Any]:
    data, writer = Data(), Writer()
    run = scalekit.fit(
        Regression(),
        data,
        strategy=strategy,
        precision="32-true",
        max_epochs=2,
        callbacks=[writer],
        output_dir=str(folder / "own"),
    )
    found = {
        "evaluated": run.evaluations[-1]["val_loss"],
        "validate": run.validate()["val_loss"],
        "validate_data": run.validate(data)["val_loss"],
        "test": run.test(data),
        "stage": data.stage,
        "predict": [
            {"prediction": float(each["prediction"]), "is_large": each["is_large"]} for each in run.predict(data)
        ],
        "again": run.test(data),
    }
    return {**found, "places": writer.places, "checkpoint": str(run.checkpoint)}


def plain_module(folder: Path, strategy: str) -> dict[str, Any]:
    rows = [{"x": row["x"], "y": i % 2} for i, row in enumerate(parity.number_rows())]
    run = scalekit.fit(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)),
        rows[ROWS:],
        validation=rows[:ROWS],
        loss=nn.CrossEntropyLoss(),
        strategy=strategy,
        precision="32-true",
        global_batch_size=BATCH,
        max_steps=3,
        output_dir=str(folder / "plain"),
    )
    predicted = run.predict(rows[:ROWS])
    return {
        "evaluated": run.evaluations[-1],
        "validate": run.validate(),
        "test": run.test(rows[:ROWS]),
        "accuracy": sum(int(each.argmax()) == row["y"] for each, row in zip(predicted, rows, strict=False)) / ROWS,
        "rows": len(predicted),
    }


def language_model(folder: Path, strategy: str) -> dict[str, Any]:
    rows = parity.causal_rows()
    run = scalekit.fit(
        lambda: parity.llama(tied=True),
        DataLoader(rows, collate_fn=parity.collate),
        validation=rows[:5],
        strategy=strategy,
        precision="32-true",
        global_batch_size=4,
        max_steps=2,
        output_dir=str(folder / "language"),
    )
    logits = run.predict(DataLoader(rows[:5], collate_fn=parity.collate, batch_size=2))
    return {
        "evaluated": run.evaluations[-1],
        "validate": run.validate(),
        "shapes": [list(each.shape) for each in logits],
    }


def refused(folder: Path, strategy: str) -> dict[str, str]:
    """What each wrong call says."""
    run = scalekit.fit(
        Regression(), Data().train_dataloader(), strategy=strategy, max_epochs=1, output_dir=str(folder / "refused")
    )

    class Untested(Regression):
        test_step = pl.LightningModule.test_step

    untested = scalekit.fit(
        Untested(), Data().train_dataloader(), strategy=strategy, max_epochs=1, output_dir=str(folder / "untested")
    )

    class Vague(Regression):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch[0]).mean()

    vague = scalekit.fit(
        Vague(), Data().train_dataloader(), strategy=strategy, max_epochs=1, output_dir=str(folder / "vague")
    )
    calls = {
        "nothing held out": run.validate,
        "no step": lambda: untested.test(Data().test_dataloader()),
        "no rows": lambda: vague.predict(Data().predict_dataloader()),
        "no loader": lambda: run.test(_OnlyTrains()),
    }
    said = {}
    for name, call in calls.items():
        try:
            said[name] = f"not refused: {call()}"
        except ScaleKitError as error:
            said[name] = str(error)
    return said


class _OnlyTrains(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return Data().train_dataloader()


def run(folder: Path, strategy: str) -> dict[str, Any]:
    """All of it."""
    found = {
        "own": own_module(folder, strategy),
        "plain": plain_module(folder, strategy),
        "language": language_model(folder, strategy),
    }
    return {**found, "refused": refused(folder, strategy)} if strategy == "single" else found


if __name__ == "__main__":
    folder, strategy = Path(sys.argv[1]), sys.argv[2]
    found = run(folder, strategy)
    if RANK == 0:
        (folder / "found.json").write_text(json.dumps(found))
