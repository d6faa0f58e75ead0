"""Predicted against measured peak memory of real steps, on CPU processes: median and worst error.

Every case is trained by `scalekit.fit` on real tensors; a counter at torch's allocator measures it (workers/memory_peak.py).
Run it on an idle machine: python tests/benchmarks/plan_accuracy.py [--ranks 1 2 4] [--long]
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from scalekit.config.names import CHECKPOINTINGS
from scalekit.config.precision import dtypes_for
from scalekit.config.strategy import StrategyConfig
from scalekit.models.initialization import build_module
from scalekit.objectives.model_loss import ModelLoss
from scalekit.planning.memory.estimate import predict
from scalekit.planning.profiling.profile import Profile, ProfiledModel, profile, resize
from scalekit.planning.profiling.step_config import StepConfig
from tests.benchmarks.architectures import ARCHITECTURES
from tests.support.nodes import NODE_SIZES

WORKERS = Path(__file__).parent / "workers"
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
Case = dict[str, Any]


def cases(ranks: Iterable[int], everything: bool) -> list[Case]:
    """Every architecture x strategy x recomputation; micro-batch, length, precision and accumulation vary over them."""
    found = []
    varied = list(itertools.product((2, 3, 4, 6), (0, 1), ("32-true", "bf16-mixed"), (1, 2, 3)))
    draw = random.Random(0)
    for world_size, name, strategy, recompute in itertools.product(ranks, ARCHITECTURES, STRATEGIES, CHECKPOINTINGS):
        lengths = ARCHITECTURES[name].lengths
        for size, length, precision, accumulation in draw.sample(varied, 4 if everything else 1):
            found.append(
                {
                    "architecture": name,
                    "strategy": strategy,
                    "recompute": recompute,
                    "world_size": world_size,
                    "micro_batch_size": size,
                    "length": lengths[min(length, len(lengths) - 1)],
                    "precision": precision,
                    "accumulation": accumulation,
                }
            )
    return found


def measure(group: list[Case], timeout_seconds: float = 3600) -> list[Case]:
    """Trains cases of one world size, one after another in the same processes."""
    with tempfile.TemporaryDirectory() as folder:
        counter, given, results = (Path(folder) / name for name in ("allocations.so", "cases.json", "results.jsonl"))
        source = WORKERS / "allocations.c"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", counter, source, "-ldl", "-lpthread"], check=True)
        given.write_text(json.dumps(group))
        results.touch()
        environment = {**os.environ, "LD_PRELOAD": str(counter), "OMP_NUM_THREADS": "1", "TMPDIR": folder}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        ranks = f"--nproc-per-node={group[0]['world_size']}"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            ranks,
            str(WORKERS / "memory_peak.py"),
        ]
        log = Path(folder) / "log"
        with log.open("w") as output:
            subprocess.run(
                [*command, given, results],
                env=environment,
                stdout=output,
                stderr=output,
                timeout=timeout_seconds,
                check=False,
            )
        measured = [json.loads(line) for line in results.read_text().splitlines()]
        if len(measured) < len(group):
            raise RuntimeError(f"measured {len(measured)} of {len(group)} cases:\n{log.read_text()[-3000:]}")
    return measured


@cache
def profiled(name: str, length: int, precision: str) -> Profile:
    architecture = ARCHITECTURES[name]
    loss = ModelLoss.of(build_module(architecture.build, here=False), in_parts=True).mean_loss
    subject = ProfiledModel(name, architecture.build, loss, resize(architecture.batch(3, length), 3), max(length, 1))
    return profile(subject, dtypes_for(precision), like_a_gpu=False)


def predicted(case: Case) -> int:
    setting = StepConfig(
        strategy=StrategyConfig.load(case["strategy"]),
        dtypes=dtypes_for(case["precision"]),
        world_size=case["world_size"],
        node_size=NODE_SIZES[case["world_size"]] if case["strategy"] == "hsdp" else case["world_size"],
        micro_batch_size=case["micro_batch_size"],
        accumulation=case["accumulation"],
        recompute=case["recompute"],
        kind="cpu",
    )
    return predict(profiled(case["architecture"], case["length"], case["precision"]), setting).peak_bytes


def error(case: Case) -> float:
    return predicted(case) / case["measured_bytes"] - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--long", action="store_true", help="four draws of each instead of one")
    arguments = parser.parse_args()
    errors: list[float] = []
    for world_size in arguments.ranks:
        for case in measure(cases([world_size], arguments.long)):
            errors.append(error(case))
            size = case["measured_bytes"] / 2**20
            print(
                f"{case['architecture']:8} {case['strategy']:6} {world_size} ranks  {case['precision']:10} "
                f"{case['micro_batch_size']} x {case['accumulation']}, length {case['length']:3}"
                f"{case['recompute']:12}  {size:8.2f} MiB  {errors[-1]:+.2%}",
                flush=True,
            )
    sizes = [abs(e) for e in errors]
    print(f"{len(sizes)} cases: median error {statistics.median(sizes):.2%}, worst {max(sizes):.2%}")


if __name__ == "__main__":
    main()
