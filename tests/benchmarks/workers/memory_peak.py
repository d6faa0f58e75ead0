"""Trains a list of cases for a few steps each and writes down the most memory that each needed: one process of several.

`allocations.c`, loaded before libc, counts what torch's allocator holds: every buffer counts, whoever asked for it and on
whatever thread, DeepSpeed's flat ones and those inside of an operation too. Nothing of the predictor is in it.
"""

import ctypes
import gc
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

import scalekit
from tests.benchmarks.architectures import ARCHITECTURES
from tests.support.nodes import as_nodes

STEPS = 6
COUNTER = ctypes.CDLL(os.environ["LD_PRELOAD"])
COUNTER.allocations_count.argtypes = (ctypes.c_ulong, ctypes.c_ulong)
for function in (COUNTER.allocations_now, COUNTER.allocations_most):
    function.restype = ctypes.c_long


class Peaks(pl.Callback):
    """Notes the most memory that each optimizer step needs, its evaluation and its saves left out."""

    def __init__(self, accumulation: int) -> None:
        self._accumulation = accumulation
        self.bytes: list[int] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % self._accumulation == 0:
            COUNTER.allocations_restart()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self._accumulation == 0:
            self.bytes.append(COUNTER.allocations_most())


def peak_bytes(case: dict[str, Any], folder: Path) -> int:
    """The least over all steps but the first, which makes the optimizer's state in its update only.

    Every step does the same. What is above the least is a buffer that gloo's threads let go of a moment late.
    """
    gc.collect()  # nothing of the case before may be freed while this one is watched
    before = COUNTER.allocations_now()
    architecture = ARCHITECTURES[case["architecture"]]
    samples = case["micro_batch_size"] * case["accumulation"] * case["world_size"]
    peaks = Peaks(case["accumulation"])
    scalekit.fit(
        architecture.build,
        architecture.rows(samples * STEPS, case["length"]),
        strategy=case["strategy"],
        precision=case["precision"],
        activation_checkpointing=case["recompute"],
        global_batch_size=samples,
        micro_batch_size=case["micro_batch_size"],
        max_steps=STEPS,
        output_dir=str(folder),
        callbacks=[peaks],
    )
    return min(peaks.bytes[1:]) - before


def count_tensors() -> None:
    """Tells the counter where torch's allocator is, so that it counts what is taken from there."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("/libc10.so")]
    edges = [int(edge, 16) for line in lines for edge in line.split()[0].split("-")]
    COUNTER.allocations_count(min(edges), max(edges))


def main() -> None:
    count_tensors()
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    parent = Path(tempfile.gettempdir()) / f"peaks-{os.environ['MASTER_PORT']}"
    for number, case in enumerate(json.loads(cases.read_text())):
        folder = parent / str(number)
        as_nodes(case["strategy"])
        every = [peak_bytes(case, folder)]
        if world_size > 1:
            every *= world_size
            torch.distributed.all_gather_object(every, every[rank])
        if rank == 0:
            with results.open("a") as file:
                file.write(json.dumps({**case, "measured_bytes": max(every)}) + "\n")
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
