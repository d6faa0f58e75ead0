"""Trains a LightningModule that counts with a metric of its own, under some strategies: own_module.py FOLDER STRATEGY ..."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torchmetrics import MeanMetric, SumMetric

import scalekit


def rows() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [{"x": torch.randn(4, generator=generator).tolist(), "y": [float(i % 3)]} for i in range(16)]


class Counting(pl.LightningModule):
    """As Lightning teaches it: metrics are attributes, and a schedule steps every second optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 1)
        self.rows, self.mean = SumMetric(), MeanMetric()
        self.started = 0.0

    def on_train_start(self) -> None:
        self.started = float(self.rows.sum_value) + float(self.mean.weight)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.layer(batch["x"]), batch["y"])
        self.rows.update(len(batch["x"]))
        self.mean.update(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 2}}


def train(folder: Path, strategy: str, micro_batch_size: int) -> dict[str, Any]:
    module = Counting()
    run = scalekit.fit(
        module,
        rows(),
        strategy=strategy,
        precision="32-true",
        global_batch_size=4,
        micro_batch_size=micro_batch_size,
        max_steps=8,
        output_dir=str(folder / f"{strategy}-{micro_batch_size}"),
    )
    return {
        "started": module.started,
        "rows": float(module.rows.compute()),
        "mean": float(module.mean.compute()),
        "rates": [record["learning_rate"] for record in run.history],
        "losses": [record["loss"] for record in run.history],
    }


if __name__ == "__main__":
    folder, *strategies = sys.argv[1:]
    found = {strategy: train(Path(folder), strategy, 1) for strategy in strategies}
    if os.environ["RANK"] == "0":
        (Path(folder) / "found.json").write_text(json.dumps(found))
