"""The process of a trial run: it trains a shortened job, and writes down what that took."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from scalekit import hardware
from scalekit.config.settings import Job
from scalekit.distributed.process import exit_with_parent
from scalekit.planning.plan import readable
from scalekit.utils.files import atomic_write_text

STEPS = 2
"""The first makes the optimizer's state, the second has all of it beside its activations."""


@dataclass(frozen=True)
class TrialResult:
    """What became of the probe, over all ranks.

    Attributes:
        peak_bytes: the most that a rank took; None where one did not get so far.
        context_bytes: of a GPU, what was taken beside tensors; None on a CPU.
        lacking: the rank that ran out of memory, and how; None where none did.
        problem: why nothing can be said.
    """

    peak_bytes: int | None = None
    context_bytes: int | None = None
    lacking: str | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"the probe says nothing: {self.problem}"
        if self.lacking is not None:
            return f"the probe ran out of memory: {self.lacking}"
        return f"the probe of {STEPS} steps took {readable(self.peak_bytes or 0)} a rank at most"


class _Measure(Callback):
    """Writes down what the last step has taken, and ends the process: there is nothing to save."""

    def __init__(self, result: Path, used_bytes: int) -> None:
        self._result, self._used_bytes = result, used_bytes

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        strategy: Any = trainer.strategy
        if strategy.step >= STEPS:
            peak, context = hardware.taken_bytes(trainer.strategy.root_device, self._used_bytes)
            _say(self._result, TrialResult(peak, context))
            trainer.strategy.barrier()  # a rank that ends early would look to the others like one that failed
            os._exit(0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Lightning's own end would move the model to the host first, and wait for the others."""
        _fail(exception, self._result)


def _say(result: Path, outcome: TrialResult) -> None:
    atomic_write_text(result, json.dumps(asdict(outcome)))


def _fail(error: BaseException, result: Path) -> None:
    """Ends the process at once: an interpreter's proper end would wait for the others."""
    traceback.print_exception(error)
    if _is_memory(error):
        _say(result, TrialResult(lacking=str(error).partition("\n")[0] or type(error).__name__))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def main() -> None:
    """Runs a shortened job: ``python -m scalekit.training.trial_process JOB RESULT PARENT USED_BYTES``."""
    import dill

    from scalekit.training.fit import run

    path, result, parent, used_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    exit_with_parent(parent)
    try:
        with path.open("rb") as file:
            job: Job = dill.load(file)  # written by our own parent, a moment ago
        run(replace(job, callbacks=[_Measure(result, used_bytes)]))
    except BaseException as error:
        _fail(error, result)


_MEMORY_WORDS = ("can't allocate memory", "out of memory", "Cannot allocate memory", "ALLOC_FAILED")


def _is_memory(error: BaseException) -> bool:
    """Python and CUDA's allocator have types for it; torch's allocator on CPUs, cuBLAS, NCCL and the system only words."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(w in str(error) for w in _MEMORY_WORDS)


if __name__ == "__main__":
    main()
