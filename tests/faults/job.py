"""The job that faults are done to: job.py FOLDER STRATEGY"""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

import scalekit
from tests.faults import STEPS
from tests.support import parity_cases as parity
from tests.support.language_model import make_tokenizer
from tests.support.legs import NotesRows


class IsSeen(Callback):
    """Says where the job is, and is slow enough for something to be done to it."""

    def __init__(self, now: Path) -> None:
        self.now = now

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.strategy.rows.micro.last:
            if trainer.is_global_zero:
                self.now.write_text(str(trainer.strategy.rows.micro.step))
            time.sleep(0.05)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    scalekit.fit(
        parity.gpt2_with_dropout,
        str(folder / "rows.jsonl"),
        processor=make_tokenizer(),
        packing=False,
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
        callbacks=[NotesRows(folder), IsSeen(folder / "now")],
        watchdog_seconds=4,
        output_dir=str(folder / "run"),
    )
