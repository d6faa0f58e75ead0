"""A progress bar over optimizer steps where there is a terminal, and a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.callbacks.metrics import Metrics, Record
from scalekit.strategies.buffer_sync import batch_norms
from scalekit.utils.log import duration, log, say

_FIRST_LINES_SECONDS = 15.0
_LINES_SECONDS = 60.0
"""Between two lines: few at first, so that somebody who has just started a job sees it go; then once a minute."""
_GROWTH = 1.25


@final
class Progress(Callback):
    """Shows loss, rate and time left, on rank 0.

    Args:
        metrics: whose history is shown.
        total_steps: of the whole job.
        resumed_step: the step that the job resumes from.
        items: what the loss is a mean over, in words.
    """

    def __init__(self, metrics: Metrics, total_steps: int, resumed_step: int = 0, items: str = "samples") -> None:
        self._metrics, self._total = metrics, total_steps
        self._first = self._seen = resumed_step
        self._unit = _unit(items)
        self._bar: Any = None
        self._shown = time.monotonic()
        self._pause_seconds = _FIRST_LINES_SECONDS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            from tqdm import tqdm

            options: dict[str, Any] = {"desc": "training", "unit": "step", "dynamic_ncols": True}
            self._bar = tqdm(total=self._total, initial=self._first, **options)
        if any(norm.training for norm in batch_norms(pl_module)):
            log(
                "norms",
                "batch norms see one micro-batch at a time: this model's numbers depend on `micro_batch_size`",
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        history = self._metrics.history
        if not trainer.is_global_zero or not history or history[-1]["step"] == self._seen:
            return
        record = history[-1]
        if self._bar is not None:
            self._bar.update(record["step"] - self._seen)
            self._bar.set_postfix({"loss": _number(record["loss"]), self._unit: _number(record["items_per_second"])})
        elif record["step"] in (self._first + 1, self._total) or self._is_time():
            self._shown = time.monotonic()
            say(self._line(record))
        self._seen = record["step"]

    def _is_time(self) -> bool:
        if time.monotonic() - self._shown < self._pause_seconds:
            return False
        self._pause_seconds = min(_GROWTH * self._pause_seconds, _LINES_SECONDS)
        return True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self._metrics.evaluations:
            record = self._metrics.evaluations[-1]
            say(f"{self._at(record['step'])}  {found(record)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    def _at(self, step: int) -> str:
        return f"step {step:{len(str(self._total))}}/{self._total}"

    def _line(self, record: Record) -> str:
        recent = [each for each in self._metrics.history[-20:] if each["step"] > self._first]
        seconds = sum(each["step_seconds"] for each in recent) or 1e-9
        rate = f"{_number(sum(each['items'] for each in recent) / seconds)} {self._unit}"
        text = f"{self._at(record['step'])}  loss {_number(record['loss'])}  {rate}"
        steps = self._total - record["step"]
        return text + (f"  {duration(steps * seconds / len(recent))} left" if steps else "")


def found(record: Record) -> str:
    """An evaluation in words: the loss on the validation set, its scores, and what the module logs of it."""
    others = sorted((name for name in record if name not in ("step", "items")), key=lambda name: name != "loss")
    return "validation " + "  ".join(f"{name.replace('_', ' ')} {_number(record[name])}" for name in others)


def _unit(items: str) -> str:
    """The rate's: a language model's loss is a mean over label tokens, other models' mostly over samples."""
    return next((f"{name}/s" for name in ("label tokens", "labels", "samples") if name in items), "items/s")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
