"""Trains with checkpoints that time decides on, where one rank is slower than the other: auto_checkpoints.py FOLDER STRATEGY"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

import scalekit
from scalekit.callbacks import checkpoints
from scalekit.strategies import global_batch

RANK = int(os.environ.get("RANK", 0))


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05 * (1 + RANK))
        return self.line(x)


class Saves(Callback):
    """Notes after which steps there is a checkpoint."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.steps.append(trainer.strategy.step)


def train(folder: Path, strategy: str) -> list[int]:
    checkpoints.AUTO_SECONDS = 0.25
    saves = Saves()
    rows = [{"x": [float(i), 1.0], "y": [float(i)]} for i in range(16)]
    scalekit.fit(
        Slow, rows, loss=nn.MSELoss(), strategy=strategy, global_batch_size=4, max_steps=14, callbacks=[saves],
        output_dir=str(folder / "run"),
    )  # fmt: skip
    return saves.steps[1:]  # the first one is collected to see that it can be


if __name__ == "__main__":
    if RANK:  # whose clock would have it save at other steps, were it alone
        own = global_batch._milliseconds
        global_batch._milliseconds = lambda since: 5 * own(since)
    folder = Path(sys.argv[1])
    (folder / f"saves-{RANK}.json").write_text(json.dumps(train(folder, sys.argv[2])))
