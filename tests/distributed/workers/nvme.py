"""Trains a model that is large enough to be swapped: nvme.py FOLDER:STRATEGY:PRECISION:UNTIL ..."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

import scalekit
from tests.support import parity_cases as parity
from tests.support.legs import EndedError, Ends

WIDTH, STEPS = 1024, 4
"""DeepSpeed swaps what has a mebibyte or more on a rank."""


def wide() -> nn.Module:
    """The layer in the middle is frozen: DeepSpeed leaves it on the drive, and takes the others to where there is room."""
    middle = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    return nn.Sequential(
        *(nn.Linear(6, WIDTH), nn.Tanh(), middle, nn.Tanh()),
        *(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2)),
    )


class NotesFiles(Callback):
    """Which kinds of files are on the drive, and which parameters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        place = trainer.strategy.spec.offload.get("nvme_path")
        if trainer.is_global_zero and place:
            kinds = sorted({path.parent.parent.name for path in Path(place).rglob("*.swp")})
            away = [name for name, p in pl_module.named_parameters() if p.ds_tensor.numel() < p.ds_tensor.ds_numel]
            (self.folder / "on-drive.json").write_text(json.dumps({"kinds": kinds, "away": away}))


def train(folder: Path, strategy: str, precision: str, until: int) -> None:
    with suppress(EndedError):
        scalekit.fit(
            wide,
            parity.number_rows(),
            loss=nn.MSELoss(),
            strategy=strategy,
            precision=precision,
            global_batch_size=8,
            micro_batch_size=2,
            activation_checkpointing=False,
            max_steps=STEPS,
            optimizer_options={"eps": parity.EPS},
            ema_decay=0.9,
            checkpoint_every=2,
            seed=parity.SEED,
            callbacks=[Ends(until), NotesFiles(folder)],
            output_dir=str(folder),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for leg in sys.argv[1:]:
        folder, strategy, precision, until = leg.split(":")
        train(Path(folder), strategy, precision, int(until))
