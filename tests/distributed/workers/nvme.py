"""Trains a model that is large enough to be swapped: nvme.py FOLDER:STRATEGY:UNTIL ..."""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

import scalekit
from tests.distributed import parity_cases as parity
from tests.legs import EndedError, Ends

WIDTH, STEPS = 1024, 4
"""DeepSpeed swaps what has a mebibyte or more on a rank."""


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))


def train(folder: Path, strategy: str, until: int) -> None:
    with suppress(EndedError):
        scalekit.fit(
            wide,
            parity.number_rows(),
            loss=nn.MSELoss(),
            strategy=strategy,
            precision="32-true",
            global_batch_size=8,
            micro_batch_size=2,
            activation_checkpointing=False,
            max_steps=STEPS,
            optimizer_options={"eps": parity.EPS},
            average_decay=0.9,
            checkpoint_every=2,
            seed=parity.SEED,
            callbacks=[Ends(until)],
            output_dir=str(folder),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for leg in sys.argv[1:]:
        folder, strategy, until = leg.split(":")
        train(Path(folder), strategy, int(until))
