"""Seconds from `scalekit launch --nproc 2` to a tiny model's first step, and from the death of a rank to the next step.

    python tests/benchmarks/startup.py [--rounds 5]

Beside it, in the same rounds, what one process takes to import what such a job imports: no start can be faster than that.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

ROOT = Path(__file__).parents[2]
STEPS, KILLED_AT = 60, 20


class Notes(Callback):
    """Notes when each step ended, and which process each rank is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        (self.folder / f"rank-{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.is_global_zero:
            with (self.folder / "steps").open("a") as file:
                file.write(json.dumps([trainer.global_step, time.time()]) + "\n")
        time.sleep(0.02)


def job(folder: Path) -> None:
    from torch import nn

    import scalekit

    scalekit.fit(
        nn.Linear(1, 1),
        [{"x": [float(i)], "y": [2.0 * i]} for i in range(64)],
        loss=nn.MSELoss(),
        strategy="ddp",
        precision="32-true",
        global_batch_size=8,
        micro_batch_size=4,
        max_steps=STEPS,
        checkpoint_every=5,
        callbacks=[Notes(folder)],
        output_dir=str(folder / "run"),
    )


def imports() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import scalekit.training.fit"], check=True)
    return time.perf_counter() - began


def steps(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "steps").read_text().splitlines() if (folder / "steps").exists() else []
    return [tuple(json.loads(line)) for line in lines]


def wait(process: subprocess.Popen[bytes], found: Any) -> Any:
    while (value := found()) is None:
        if process.poll() is not None:
            raise SystemExit(f"the job ended with {process.returncode}")
        time.sleep(0.01)
    return value


def round_() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = imports()
        began = time.time()
        command = ["-m", "scalekit", "launch", "--nproc", "2", "--max-restarts", "1", "--", __file__, "--job", name]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=log)
        first = wait(process, lambda: next((at for _, at in steps(folder)), None))
        wait(process, lambda: next((at for step, at in steps(folder) if step >= KILLED_AT), None))
        killed = time.time()
        os.kill(int((folder / "rank-1").read_text()), signal.SIGKILL)
        again = wait(process, lambda: next((at for at in restarted(folder)), None))
        process.wait()
        if process.returncode:
            raise SystemExit((folder / "log").read_text())
        return {"imports": alone, "first step": first - began, "after a death": again - killed}


def restarted(folder: Path) -> list[float]:
    """When steps ended that came again: those after a step whose successor has a smaller number."""
    found = steps(folder)
    return [now[1] for before, now in itertools.pairwise(found) if now[0] <= before[0]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job", type=Path)
    given = parser.parse_args()
    if given.job:
        job(given.job)
        return
    rounds = [round_() for _ in range(given.rounds)]
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        print(f"{name:14} {statistics.median(values):6.2f} s  ({min(values):.2f} to {max(values):.2f})")
    ratios = [each["first step"] / each["imports"] for each in rounds]
    print(f"first step / imports  {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
