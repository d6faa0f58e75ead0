"""Trains a list of cases for a few steps each and writes down the median time of a step: one process of several."""

import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import scalekit
from tests.benchmarks.architectures import ARCHITECTURES

STEPS = 8


def main() -> None:
    cases, results = Path(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    parent = Path(tempfile.gettempdir()) / f"seconds-{os.environ['MASTER_PORT']}"
    for number, case in enumerate(json.loads(cases.read_text())):
        architecture = ARCHITECTURES[case["architecture"]]
        folder = parent / str(number)
        run = scalekit.fit(
            architecture.build,
            architecture.rows(case["global_batch_size"] * STEPS, case["length"]),
            strategy=case["strategy"],
            precision="32-true",
            activation_checkpointing=case["recompute"],
            global_batch_size=case["global_batch_size"],
            micro_batch_size=case["micro_batch_size"],
            max_steps=STEPS,
            output_dir=str(folder),
        )
        seconds = statistics.median(record["step_seconds"] for record in run.history[2:])
        if os.environ["RANK"] == "0":
            with results.open("a") as file:
                file.write(json.dumps({**case, "step_seconds": seconds}) + "\n")
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
