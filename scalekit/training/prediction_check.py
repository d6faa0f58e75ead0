"""What a run was predicted to cost beside what it did cost: in the log, in plan.json, and with the loggers."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from scalekit.callbacks.metrics import Record
from scalekit.hardware import taken_bytes
from scalekit.loggers.factory import tell
from scalekit.planning.plan import Plan, readable
from scalekit.training.run_directory import write_plan
from scalekit.utils.byproducts import attempt
from scalekit.utils.log_handlers import line

_SETTLED = 1  # steps left out at the start, where buffers are made and kernels are chosen


def compare(plan: Plan, history: list[Record], trainer: Trainer, folder: Path) -> str | None:
    """Writes the comparison on rank 0 and gives it in words; every rank calls it.

    A GPU's peak is what its allocator reserved and its context takes, as the prediction is; a CPU process's memory holds
    libraries and data as well, so that only time is compared there.

    Returns:
        None where nothing was predicted or too few steps were run.
    """
    peak = _peak_bytes(trainer)
    seconds = [record["step_seconds"] for record in history[_SETTLED:]]
    if not plan.predicted or not seconds:
        return None
    measured: dict[str, Any] = {"step_seconds": statistics.median(seconds), "peak_bytes": peak}
    if trainer.is_global_zero:
        with attempt("writing plan.json", "It lacks what was measured"):
            write_plan(folder, {**plan.as_dict(), "measured": measured})
        numbers = {f"measured/{name}": value for name, value in measured.items() if value is not None}
        numbers |= {f"predicted/{name}": plan.predicted[name] for name in measured}
        engine: Any = trainer.strategy
        tell(trainer, "log_metrics", numbers, step=engine.step)
    expected = plan.predicted["step_seconds"], plan.predicted["peak_bytes"]
    parts = [f"{measured['step_seconds']:.3g} s a step, predicted {expected[0]:.3g}"]
    if peak is not None:
        off = expected[1] / peak - 1
        parts.insert(0, f"{readable(peak)} a rank, predicted {readable(expected[1])} ({off:+.1%})")
    return line("measured", "; ".join(parts))


def _peak_bytes(trainer: Trainer) -> int | None:
    """The most that any rank's GPU gave; None on CPUs."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    peak = torch.tensor(float(taken_bytes(device)[0]), device=device)
    return int(trainer.strategy.reduce(peak, reduce_op="max"))
