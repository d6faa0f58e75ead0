"""metrics.jsonl: one line an optimizer step, flushed as it is written; the same numbers go to the loggers."""

from __future__ import annotations

import json
import time
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit.hardware import most_resident_bytes
from scalekit.loggers.factory import tell
from scalekit.utils.files import atomic_write_text
from scalekit.utils.log import warn
from scalekit.utils.log_handlers import line

Record = dict[str, Any]

LONGEST_DATA_SHARE = 0.05
"""Of a step, in which it may wait for its rows without a word."""


class Metrics(Callback):
    """Keeps a run's history on every rank, and writes it on rank 0.

    Args:
        folder: the run's folder.
        resumed_step: the step that the job resumes from; lines after it are cut off first.
        flops_share: the share of the devices' peak that a step of a whole global batch would use if it took one second.
        global_batch_size: samples of a whole global batch.
    """

    def __init__(
        self, folder: Path, resumed_step: int = 0, flops_share: float | None = None, global_batch_size: int = 1
    ) -> None:
        self._flops_share, self._global_batch_size = flops_share, global_batch_size
        self._steps = folder / "metrics.jsonl"
        self._evaluations = folder / "evaluations.jsonl"
        self._started = time.perf_counter()
        self._position = 0
        self._waited = 0.0
        self._written_step = resumed_step
        self._behind: set[Path] = set()
        self.history = read_records(self._steps, resumed_step)
        self.evaluations = read_records(self._evaluations, resumed_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._position = getattr(trainer.strategy, "position", 0)
        if trainer.is_global_zero:
            self._append(self._steps, None)
            self._append(self._evaluations, None)
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        strategy: Any = trainer.strategy
        step = strategy.step
        if step == self._written_step:
            return
        self._written_step = step
        record = self._record(trainer, step)
        self.history.append(record)
        self._publish(trainer, self._steps, record, {name: value for name, value in record.items() if name != "step"})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        result, logged = strategy.close_evaluation() or {}, self._logged(trainer)
        if result or logged:
            record = {"step": strategy.step, **logged, **result}
            self.evaluations.append(record)
            # What a module logs, Lightning tells the loggers by itself.
            self._publish(trainer, self._evaluations, record, {f"evaluation/{name}": result[name] for name in result})
        self._started = time.perf_counter()

    @staticmethod
    def _logged(trainer: Trainer) -> dict[str, float]:
        """What the module has logged of the validation set."""
        results = trainer.fit_loop.epoch_loop.val_loop._results
        return {name: float(value) for name, value in results.metrics(on_step=False)["callback"].items()}

    def usual_step_seconds(self) -> float | None:
        """The median of the latest steps; None before the second of them, since the first takes longer."""
        latest = [record["step_seconds"] for record in self.history[max(1, len(self.history) - 20) :]]
        return median(latest) if latest else None

    def restart_clock(self) -> None:
        """Leaves out of the next step's time what has passed since the last one, such as a save."""
        self._started = time.perf_counter()

    def _record(self, trainer: Trainer, step: int) -> Record:
        strategy: Any = trainer.strategy
        now = time.perf_counter()
        seconds, self._started = now - self._started, now
        waited = float(getattr(trainer.train_dataloader, "waited_seconds", 0.0))
        waited, self._waited = waited - self._waited, waited
        last = strategy.last_step
        return {
            "step": step,
            "loss": last.loss,
            "items": last.items,
            "samples": strategy.position,
            "learning_rate": last.learning_rate,
            "grad_norm": None if last.gradient_norm is None or not isfinite(last.gradient_norm) else last.gradient_norm,
            "step_seconds": seconds,
            "data_seconds": waited,
            "items_per_second": last.items / seconds,
            "mfu": self._mfu(strategy.position, seconds),
            "peak_memory_bytes": peak_memory_bytes(strategy.root_device),
        }

    def _mfu(self, position: int, seconds: float) -> float | None:
        """Model FLOPs utilisation: without recomputation (arXiv 2204.02311, appendix B); None where the peak is unknown."""
        samples, self._position = position - self._position, position
        if self._flops_share is None or samples <= 0:
            return None
        return self._flops_share * samples / self._global_batch_size / seconds

    def _publish(self, trainer: Trainer, path: Path, record: Record, numbers: Record) -> None:
        if trainer.is_global_zero:
            self._append(path, record)
            known = {name: value for name, value in numbers.items() if value is not None}
            tell(trainer, "log_metrics", known, step=record["step"])

    def _append(self, path: Path, record: Record | None) -> None:
        """A line more, or the file as a whole: so what could not be written, as on a full disk, is as soon as it can be."""
        try:
            if record is None or path in self._behind:
                write_records(path, self.history if path == self._steps else self.evaluations)
                self._behind.discard(path)
            else:
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
        except OSError as error:
            if path not in self._behind:
                warn(f"{path} cannot be written: {error.strerror}. It is tried again with every line")
            self._behind.add(path)


def data_warning(history: list[Record], spare_cores: int) -> str | None:
    """What to say where steps wait for their rows; None where they hardly do.

    Args:
        history: of the run; its first step starts the readers.
        spare_cores: that no rank and no reader has yet.
    """
    seconds = sum(record["step_seconds"] for record in history[1:])
    share = sum(record.get("data_seconds", 0.0) for record in history[1:]) / seconds if seconds else 0.0
    if share <= LONGEST_DATA_SHARE:
        return None
    fix = (
        "more `num_workers` would read them beside the steps"
        if spare_cores > 0
        else "every core has a rank or a reader, so only cheaper transforms or more cores would help"
    )
    return line("data", f"{share:.0%} of the time went by waiting for rows: {fix}")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held on a GPU; on a CPU, the most memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return most_resident_bytes()


def read_records(path: Path, last_step: int) -> list[Record]:
    """The lines of a file up to a step; none for a run that starts again."""
    lines = path.read_text().split("\n") if path.is_file() and last_step else []
    return [record for record in map(_parse, lines) if record is not None and record["step"] <= last_step]


def write_records(path: Path, records: list[Record]) -> None:
    """Writes a file of them, a line each."""
    atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def _parse(line: str) -> Record | None:
    """A line, or None for one that a kill cut short."""
    try:
        record: Record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record
