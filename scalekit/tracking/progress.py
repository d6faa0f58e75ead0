"""A progress bar over optimizer steps where somebody looks, and a line now and then where it goes to a file."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from scalekit.engines.buffers import batch_norms
from scalekit.tracking.metrics import Metrics

_LINE_SECONDS = 15.0


class Progress(Callback):
    """Shows loss, items a second and time left, on rank 0.

    Args:
        metrics: whose history is shown.
        total_steps: of the whole job.
        resumed_step: the step that the job resumes from.
    """

    def __init__(self, metrics: Metrics, total_steps: int, resumed_step: int = 0) -> None:
        self._metrics, self._total, self._first = metrics, total_steps, resumed_step
        self._bar: Any = None
        self._shown = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, initial=self._first, desc="Training", unit="step", dynamic_ncols=True)
        if trainer.is_global_zero and any(norm.training for norm in batch_norms(pl_module)):
            self.say(
                "norms      batch norms see one micro-batch at a time: this model's numbers depend on `micro_batch_size`"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        history = self._metrics.history
        if not trainer.is_global_zero or not history or history[-1]["step"] == self._first:
            return
        record = history[-1]
        shown = {"loss": _number(record["loss"]), "items/s": _number(record["items_per_second"])}
        if self._bar is not None:
            self._bar.update(record["step"] - self._first)
            self._bar.set_postfix(shown)
        elif time.monotonic() - self._shown > _LINE_SECONDS or record["step"] in (1, self._total):
            self._shown = time.monotonic()
            self._line(record, shown)
        self._first = record["step"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._metrics.evaluations:
            record = self._metrics.evaluations[-1]
            self.say(f"step {record['step']}/{self._total}  held-out loss {_number(record['loss'])}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def say(self, text: str) -> None:
        """A line beside the bar, where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self, record: dict[str, Any], shown: dict[str, str]) -> None:
        recent = [r["step_seconds"] for r in self._metrics.history[-20:]]
        left = (self._total - record["step"]) * sum(recent) / len(recent)
        numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
        self.say(f"step {record['step']}/{self._total}  {numbers}  {left:.0f} s left")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
