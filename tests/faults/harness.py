"""Starts a job, does something to it, starts it again by the same command, and compares it with one left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scalekit.checkpoint.layout import published
from scalekit.checkpoint.load import check
from tests.distributed.processes import ROOT
from tests.faults import STEPS

HERE = Path(__file__).parent
PATIENCE_SECONDS = 240
STARTS_AGAIN = 75
METRICS = ("step", "loss", "grad_norm", "learning_rate", "samples", "items")


@dataclass
class FaultyJob:
    """A job in a folder of its own.

    Attributes:
        folder: where it works.
        strategy: under which.
        ranks: how many processes, as `scalekit launch` takes it.
        options: more of `scalekit launch`.
        environment: of its processes.
        outputs: what each start has printed so far.
    """

    folder: Path
    strategy: str = "ddp"
    ranks: str = "2"
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = (self.folder / f"output-{len(self.outputs)}.txt").open("w+")
        paths = os.pathsep.join([str(HERE / "inside"), str(ROOT)])
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "scalekit", "launch", "--nproc", self.ranks, *self.options, "--"),
                *(str(HERE / "job.py"), str(self.folder), self.strategy),
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": paths,
                "FAULT_DONE": str(self.folder / "fault-done"),
                **self.environment,
            },
        )

    def wait(self, process: subprocess.Popen[str]) -> int:
        """Until the job's first process has ended, and all of the job after it.

        Raises:
            AssertionError: something of it lives on.
        """
        try:
            code = process.wait(PATIENCE_SECONDS)
            gone = wait_until(lambda: not self.processes(), 60)
        finally:
            for each in self.processes():
                os.kill(each, signal.SIGKILL)
            self._log.seek(0)
            self.outputs.append(self._log.read())
            self._log.close()
        assert gone, f"processes of the job live on: {self.outputs[-1]}"
        return code

    def run(self) -> int:
        return self.wait(self.start())

    def wait_for_step(self, step: int) -> None:
        """Until the job has done a step."""
        now = self.folder / "now"
        if not wait_until(lambda: now.is_file() and int(now.read_text() or 0) >= step, PATIENCE_SECONDS):
            raise AssertionError(f"step {step} was not reached")

    def processes(self) -> list[int]:
        """All that has this job's environment, by what the system says."""
        mark = f"FAULT_DONE={self.folder / 'fault-done'}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def rank(self, rank: int) -> int:
        """A rank's process."""
        for process in self.processes():
            entry = Path(f"/proc/{process}")
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in (entry / "environ").read_bytes().split(b"\0") and any(
                word.endswith(b"faults/job.py") for word in words
            ):
                return process
        raise AssertionError(f"rank {rank} is not there")

    @property
    def checkpoints(self) -> list[Path]:
        return published(self.folder / "run" / "checkpoints")

    @property
    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
        return [{name: record[name] for name in METRICS} for record in map(json.loads, lines)]

    def rows(self) -> dict[int, list[int]]:
        """The rows that each step used; a step that came again used the same, as far as its ranks could tell."""
        times: dict[tuple[int, int], dict[int, list[int]]] = {}
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            counts: dict[tuple[int, int], int] = {}
            for line in path.read_text().splitlines():
                try:
                    said = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a kill cut it short
                key = (said["step"], said["ranks"])
                counts[key] = counts.get(key, 0) + 1
                mine = times.setdefault(key, {}).setdefault(int(path.stem.partition("-")[2]), said["rows"])
                assert mine == said["rows"], f"step {said['step']} came again with other rows"
        whole = {key: parts for key, parts in times.items() if len(parts) == key[1]}
        found: dict[int, list[int]] = {}
        for (step, _), parts in whole.items():
            rows = sorted(row for part in parts.values() for row in part)
            assert found.setdefault(step, rows) == rows, f"step {step} has other rows on other ranks"
        return found

    def expect_like(self, other: FaultyJob, tolerance: float = 0.0) -> None:
        """It came to what the other came to, every row was used once an epoch, and every checkpoint is sound.

        Raises:
            AssertionError: it did not.
        """
        found, expected = self.metrics, other.metrics
        assert [record["step"] for record in found] == list(range(1, STEPS + 1)), found
        for one, two in zip(found, expected, strict=True):
            for name in METRICS:
                assert abs(one[name] - two[name]) <= tolerance * abs(two[name]), (one, two)
        assert self.rows() == other.rows()
        assert self.checkpoints[-1].name == f"step-{STEPS:08d}"
        for checkpoint in self.checkpoints:
            check(checkpoint, 0, lambda value: [value], 1)
        left = [path.name for path in (self.folder / "run" / "checkpoints").iterdir() if path.name.startswith(".")]
        assert not left, f"left behind: {left}"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something came true in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return False
        time.sleep(0.02)
    return True
