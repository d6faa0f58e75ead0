"""Trains a job, or as much of it as a leg says: oracle.py FOLDER:STRATEGY:UNTIL ...

A leg ends two steps after its checkpoint, as if it were killed: what came after the checkpoint has to come again.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

import scalekit
from tests.distributed import oracle_case as oracle
from tests.distributed import parity_cases as parity

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class EndedError(Exception):
    pass


class Leg(Callback):
    """Notes which rows every step used, over all ranks, and ends the job after a step."""

    def __init__(self, folder: Path, until: int) -> None:
        self.folder, self.until, self.rows = folder, until, []
        self.folder.mkdir(parents=True, exist_ok=True)

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        micro = trainer.strategy._micro
        self.rows += micro.rows if micro.items else ()
        if not micro.last:
            return
        parts: list[Any] = [self.rows]
        if WORLD_SIZE > 1:
            parts = [None] * WORLD_SIZE
            torch.distributed.all_gather_object(parts, self.rows)
        self.rows = []
        if RANK == 0:
            with (self.folder / "rows.jsonl").open("a") as file:
                file.write(
                    json.dumps({"step": micro.step, "rows": sorted(row for part in parts for row in part)}) + "\n"
                )
        if micro.step == self.until + 2:
            trainer.strategy.finish_saving()
            raise EndedError


def tiny_gpt2_with_dropout() -> nn.Module:
    model = parity.gpt2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return model


def train(folder: Path, strategy: str, until: int) -> None:
    with suppress(EndedError):
        scalekit.fit(
            tiny_gpt2_with_dropout,
            torch.utils.data.DataLoader(oracle.rows(), collate_fn=parity.collate, shuffle=True),
            strategy=strategy,
            precision="32-true",
            global_batch_size=oracle.GLOBAL_BATCH,
            micro_batch_size=1,
            max_steps=oracle.STEPS,
            learning_rate=1e-3,
            optimizer_options={"eps": parity.EPS},
            warmup_steps=5,
            weight_decay=0.1,
            gradient_clip=1.0,
            average_decay=0.9,
            checkpoint_every=until,
            seed=parity.SEED,
            callbacks=[Leg(folder, until)],
            output_dir=str(folder),
        )


if __name__ == "__main__":
    for leg in sys.argv[1:]:
        folder, strategy, until = leg.split(":")
        train(Path(folder), strategy, int(until))
