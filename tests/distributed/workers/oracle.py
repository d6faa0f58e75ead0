"""Trains a job, or as much of it as a leg says: oracle.py FOLDER:STRATEGY:UNTIL ...

A leg ends two steps after its checkpoint, as if it were killed: what came after the checkpoint has to come again.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch

import scalekit
from tests.support import oracle_case as oracle
from tests.support import parity_cases as parity
from tests.support.legs import EndedError, Ends, NotesRows
from tests.support.nodes import as_nodes


def train(folder: Path, strategy: str, until: int) -> None:
    with suppress(EndedError):
        scalekit.fit(
            parity.gpt2_with_dropout,
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
            ema_decay=0.9,
            checkpoint_every=until,
            seed=parity.SEED,
            callbacks=[NotesRows(folder), Ends(until + 2)],
            output_dir=str(folder),
        )


if __name__ == "__main__":
    for leg in sys.argv[1:]:
        folder, strategy, until = leg.split(":")
        as_nodes(strategy)
        train(Path(folder), strategy, int(until))
