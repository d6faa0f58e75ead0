"""The job that faults are done to: job.py FOLDER STRATEGY"""

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
from tests.distributed import parity_cases as parity
from tests.faults import STEPS

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class Seen(Callback):
    """Notes which rows each step used, and where the job is; slowly enough for something to be done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        micro = trainer.strategy._micro
        self.rows += micro.rows if micro.items else ()
        if not micro.last:
            return
        with (self.folder / f"rows-{RANK}.jsonl").open("a") as file:
            file.write(json.dumps({"step": micro.step, "ranks": WORLD_SIZE, "rows": self.rows}) + "\n")
        self.rows = []
        if RANK == 0:
            (self.folder / "now").write_text(str(micro.step))
        time.sleep(0.05)


def model() -> nn.Module:
    built = parity.gpt2()
    for module in built.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return built


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    scalekit.fit(
        model,
        torch.utils.data.DataLoader(parity.causal_rows()[:50], collate_fn=parity.collate, shuffle=True),
        strategy=sys.argv[2],
        precision="32-true",
        global_batch_size=12,
        micro_batch_size=1,
        max_steps=STEPS,
        learning_rate=1e-3,
        optimizer_options={"eps": parity.EPS},
        checkpoint_every=3,
        keep_last=2,
        seed=parity.SEED,
        callbacks=[Seen(folder)],
        watchdog_seconds=4,
        output_dir=str(folder / "run"),
    )
