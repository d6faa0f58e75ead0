"""Whether the plan's first choice is among the fastest: every candidate is timed on this machine, on two processes.

Rounds are taken in turns, and a case's time is the median over them: python tests/benchmarks/plan_ranking.py [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scalekit.config.precision import dtypes_for
from scalekit.hardware import detect
from scalekit.objectives.model_loss import ModelLoss
from scalekit.planning.candidate import PlanRequest, called
from scalekit.planning.profiling.profile import ProfiledModel, profile, resize
from scalekit.planning.request import candidates
from scalekit.planning.search import choose
from tests.benchmarks.architectures import ARCHITECTURES

RANKS, GLOBAL_BATCH = 2, 16
WORKER = Path(__file__).parent / "workers" / "step_seconds.py"
Case = dict[str, Any]


def forecast(name: str) -> Any:
    architecture = ARCHITECTURES[name]
    length = architecture.lengths[-1]
    loss = ModelLoss().mean_loss
    subject = ProfiledModel(name, architecture.build, loss, resize(architecture.batch(3, length), 3), max(length, 1))
    types = dtypes_for("32-true")
    known = profile(subject, types, like_a_gpu=False)
    return choose(PlanRequest(known, types, detect(RANKS), GLOBAL_BATCH, candidates("auto", "32-true")))


def cases(name: str, plan: Any) -> list[Case]:
    """Each strategy, with and without recomputation, with the plan's own micro-batch; the choice with others too."""
    found = []
    for candidate in plan.candidates:
        others = {2, GLOBAL_BATCH // RANKS} if candidate is plan.chosen else set()
        for size in sorted({candidate.setting.micro_batch_size, *others}):
            found.append(
                {
                    "architecture": name,
                    "strategy": candidate.setting.strategy.name,
                    "recompute": candidate.setting.recompute,
                    "micro_batch_size": size,
                    "global_batch_size": GLOBAL_BATCH,
                    "length": ARCHITECTURES[name].lengths[-1],
                }
            )
    return found


def measure(group: list[Case]) -> list[Case]:
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "cases.json", Path(folder) / "results.jsonl"
        given.write_text(json.dumps(group))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder}
        environment["PYTHONPATH"] = str(Path(__file__).parents[2])
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", WORKER]
        with (Path(folder) / "log").open("w") as log:
            subprocess.run([*command, given, results], env=environment, stdout=log, stderr=log, check=True)
        return [json.loads(line) for line in results.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--architectures", nargs="+", default=["llama", "bert", "resnet"])
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in arguments.architectures:
        plan = forecast(name)
        rounds = [measure(cases(name, plan)) for _ in range(arguments.rounds)]
        times = [statistics.median(each["step_seconds"] for each in timed) for timed in zip(*rounds, strict=True)]
        ranked = sorted(zip(times, rounds[0], strict=True), key=lambda pair: pair[0])
        chosen = plan.chosen.setting
        for seconds, case in ranked:
            ours = _way(case) == (chosen.strategy.name, chosen.recompute, chosen.micro_batch_size)
            print(f"{name:8} {_describe(case):40} {seconds * 1e3:8.1f} ms{' <- the plan' if ours else ''}")
            if ours:
                print(
                    f"{name}: the plan's choice takes {seconds / ranked[0][0]:.3f} times the fastest's time", flush=True
                )


def _way(case: Case) -> tuple[str, bool, int]:
    return case["strategy"], case["recompute"], case["micro_batch_size"]


def _describe(case: Case) -> str:
    return f"{called(case['strategy'], case['recompute'])}, micro-batch {case['micro_batch_size']}"


if __name__ == "__main__":
    main()
