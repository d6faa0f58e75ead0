"""Trains every case under one strategy: parity.py STRATEGY FOLDER NAME:ACCUMULATION:PRECISION ..."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from safetensors.torch import save_file
from torch import nn

import scalekit
from tests.support import parity_cases as parity
from tests.support.nodes import as_nodes

CHECKPOINTING = dict.fromkeys(parity.CASES, "full") | dict.fromkeys(("llama-tied", "gpt2", "t5"), "selective")


class Capture(Callback):
    """Saves before the first step and after the last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer, "initial")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._write(trainer, "final")

    def _write(self, trainer: Any, name: str) -> None:
        trainer.save_checkpoint(self.folder / name)
        trainer.strategy.finish_saving()


class Logits(Callback):
    """Notes what the trained model makes of some rows, where it is one of transformers'."""

    def __init__(self, folder: Path, rows: parity.Rows) -> None:
        self.folder, self.rows = folder, rows

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        model = pl_module.model
        if hasattr(model, "save_pretrained"):
            model.eval()
            logits = trainer.strategy.run(lambda: model(**parity.collate(self.rows)).logits)
            if trainer.is_global_zero:
                save_file({"logits": logits.contiguous()}, self.folder / "logits.safetensors")


class OwnModule(LightningModule):
    """A user's LightningModule: its own step, optimizer and schedule."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(parity.SEED)
        self.model = parity.mlp()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(batch["x"]), batch["y"])

    def configure_optimizers(self) -> Any:
        optimizer = parity.optimizer_of(self.model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, parity.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(strategy: str, name: str, accumulation: int, precision: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    case = parity.CASES[name]
    settings = {
        "loss": nn.MSELoss() if name in ("mlp", "attention") else None,
        "learning_rate": parity.LEARNING_RATE,
        "optimizer_options": {"eps": parity.EPS},
        "lr_schedule": parity.factor,
        "weight_decay": parity.WEIGHT_DECAY,
    }
    run = scalekit.fit(
        OwnModule() if case.is_lightning else case.build,
        torch.utils.data.DataLoader(case.rows(), collate_fn=parity.collate, shuffle=True),
        strategy=strategy,
        precision=precision,
        global_batch_size=parity.GLOBAL_BATCH,
        micro_batch_size=parity.GLOBAL_BATCH // int(os.environ["WORLD_SIZE"]) // accumulation,
        activation_checkpointing=CHECKPOINTING[name] if accumulation > 1 else "none",  # neither may change a number
        max_steps=parity.STEPS,
        **({} if case.is_lightning else settings),
        gradient_clip=parity.CLIP,
        seed=parity.SEED,
        callbacks=[Capture(folder), Logits(folder, case.rows()[:8])],
        output_dir=str(folder / "run"),
    )
    if os.environ["RANK"] == "0":
        (folder / "history.json").write_text(json.dumps(run.history))


if __name__ == "__main__":
    strategy, folder, *cells = sys.argv[1:]
    as_nodes(strategy)
    for cell in cells:
        name, accumulation, precision = cell.split(":")
        train(strategy, name, int(accumulation), precision, Path(folder) / cell.replace(":", "-"))
