"""A job whose steps are long, that is asked to stop in the middle of one: by a signal, from a thread, as from elsewhere."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from lightning.pytorch import Callback
from torch import nn

import scalekit
from scalekit.errors import PreemptedError
from tests.support import parity_cases as parity
from tests.support.legs import NotesRows

STEPS, STEPS_PER_EPOCH = 8, 4
GLOBAL_BATCH = 16
"""Of 50 rows: an epoch's last global batch has 2 of them, which are one micro-batch on each of 2 ranks."""

MICRO_BATCH_SECONDS = 0.3


class Slow(nn.Module):
    """GPT-2 that takes its time, and counts what it has seen."""

    seconds = 0.0
    changes_frozen = False

    def __init__(self) -> None:
        super().__init__()
        self.inner = parity.gpt2_with_dropout()
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, **batch: torch.Tensor) -> Any:
        if self.training and type(batch["input_ids"]) is torch.Tensor:
            self.seen += 1
            if Slow.changes_frozen:
                self.frozen.add_(1)
            time.sleep(Slow.seconds)
        return self.inner(**batch).loss


class AsksToStop(Callback):
    """Makes the last micro-batches before a stop slow, and sends the signal in the middle of one of them.

    Args:
        step: in which the job is asked.
        rank: that is asked.
        micro_batch: of the step, from 1, in whose middle.
    """

    def __init__(self, step: int, rank: int, micro_batch: int = 3) -> None:
        self.step, self.micro_batch = step, micro_batch
        self.is_asked = rank == int(os.environ.get("RANK", 0))
        self.done_before: int | None = None
        self.done = 0

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        step = trainer.global_step + 1
        if step in (self.step - 1, self.step):
            # A stream's last global batch has as many micro-batches as any.
            short = step % STEPS_PER_EPOCH == 0 and trainer.num_training_batches != float("inf")
            Slow.seconds = 2.2 if short else MICRO_BATCH_SECONDS
        if step == self.step and self.done + 1 == self.micro_batch and self.is_asked:
            threading.Timer(Slow.seconds / 2, self._ask).start()

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step + 1 == self.step and not trainer.strategy.rows.micro.last:
            self.done += 1

    def _ask(self) -> None:
        self.asked_at = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)


class Counts(Callback):
    """A callback of the user's with a state of its own."""

    count = 0

    def on_train_batch_end(self, *rest: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def rows() -> Any:
    return torch.utils.data.DataLoader(parity.causal_rows(), collate_fn=parity.collate, shuffle=True)


def stream() -> Any:
    """The same as a stream of several shards."""
    columns = {name: [row[name] for row in parity.causal_rows()] for name in ("input_ids", "labels")}
    return datasets.Dataset.from_dict(columns).to_iterable_dataset(num_shards=4).with_format("torch")


def train(
    folder: Path, strategy: str, ask: AsksToStop | None = None, data: Callable[[], Any] = rows, **settings: Any
) -> dict[str, Any]:
    """Runs the job, from where it is; to its end, or until it is asked.

    Returns:
        How it ended: its exit code, the micro-batches of the step that it left and the seconds since it was asked.
    """
    Slow.seconds = 0.0
    counts = Counts()
    try:
        scalekit.fit(
            Slow,
            data(),
            strategy=strategy,
            precision="32-true",
            global_batch_size=GLOBAL_BATCH,
            micro_batch_size=1,
            max_steps=STEPS,
            learning_rate=1e-3,
            optimizer_options={"eps": parity.EPS},
            ema_decay=0.9,
            seed=parity.SEED,
            callbacks=[NotesRows(folder), counts, *([ask] if ask is not None else [])],
            output_dir=str(folder),
            **{"checkpoint_every": None, **settings},
        )
    except PreemptedError as error:
        seconds = time.monotonic() - ask.asked_at if ask is not None and ask.is_asked else None
        return {"code": error.code, "said": str(error), "done": ask and ask.done, "seconds": seconds}
    return {"code": 0, "count": counts.count}
