"""Predicted against measured seconds of a step, of eight jobs that `fit` runs on this machine's CPU, on one and on two ranks.

Each job is a process (or two under `scalekit launch`) of its own, in turns; the median of its settled steps is what it took.
CPU seconds are printed beside: on a machine that others use, they say what its steps would take alone.

    python tests/benchmarks/time_accuracy.py [--rounds 3] [--ranks 1 2] [--jobs line mlp ...]

The model of 135M parameters is there when examples/prepare_finetune.py has been run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scalekit.hardware.measure import processor

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).parent / "workers" / "fit_seconds.py"
MODEL = ROOT / "build" / "finetune" / "model"
JOBS = ("line", "mlp", "resnet", "vit", "causal", "t5", "lora", "causal-135m")
LIMIT = 0.25


def measure(job: str, ranks: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        launched = ["-m", "scalekit", "launch", "--nproc", str(ranks), "--"] if ranks > 1 else []
        command = [sys.executable, *launched, str(WORKER), job, str(result)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
        with (Path(folder) / "log").open("w+") as log:
            code = subprocess.run(command, env=environment, stdout=log, stderr=log, cwd=folder, check=False).returncode
            if code != 0:
                raise SystemExit(f"{job} on {ranks} ranks failed:\n{(Path(folder) / 'log').read_text()[-3000:]}")
        return dict(json.loads(result.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    arguments = parser.parse_args()
    jobs = [job for job in arguments.jobs if job != "causal-135m" or MODEL.is_dir()]
    print(f"{processor()[0]}, {os.cpu_count()} cores, one thread a rank, load {os.getloadavg()[0]:.1f}")
    print(f"{'':12} ranks  predicted   measured    ratio (least to most)   CPU time   ratio")
    off = []
    rounds: dict[tuple[str, int], list[dict[str, float]]] = {(job, n): [] for job in jobs for n in arguments.ranks}
    for _ in range(arguments.rounds):
        for (job, ranks), found in rounds.items():
            found.append(measure(job, ranks))
    for (job, ranks), found in rounds.items():
        ratios = [each["predicted"] / each["measured"] for each in found]
        predicted, measured, cpu = (
            statistics.median(e[name] for e in found) for name in ("predicted", "measured", "cpu")
        )
        ratio = statistics.median(ratios)
        print(
            f"{job:12} {ranks:5} {predicted * 1e3:8.2f} ms {measured * 1e3:8.2f} ms {ratio:8.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) {cpu * 1e3:10.2f} ms {predicted / cpu:6.2f}",
            flush=True,
        )
        if abs(ratio - 1) > LIMIT:
            off.append(f"{job} on {ranks}")
    print(f"more than {LIMIT:.0%} off: {', '.join(off) or 'none'}")


if __name__ == "__main__":
    main()
