"""Starts a job, does something to it, starts it again by the same command, and compares it with one left alone."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scalekit.checkpoint.format import published, step_of
from scalekit.checkpoint.load import check
from scalekit.distributed.fork_server import ForkedProcess
from tests.faults import STEPS
from tests.faults.alive import JOB, processes
from tests.support.legs import used
from tests.support.processes import ROOT, start

HERE = Path(__file__).parent
PATIENCE_SECONDS = 240
METRICS = ("step", "loss", "grad_norm", "learning_rate", "samples", "items")
ROWS = 50


@dataclass
class FaultyJob:
    """A job in a folder of its own.

    Attributes:
        folder: where it works.
        strategy: under which.
        options: more of `scalekit launch`.
        environment: of its processes.
        damaged: the checkpoints that were damaged on purpose, by name, as often as each was.
        outputs: what each start has printed so far.
    """

    folder: Path
    strategy: str
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        draw = random.Random(1)
        texts = ("".join(draw.choices("abcdefgh ", k=draw.randint(3, 24))) for _ in range(ROWS))
        self.data.write_text("".join(json.dumps({"text": f"{text}."}) + "\n" for text in texts))

    @property
    def data(self) -> Path:
        return self.folder / "rows.jsonl"

    @property
    def log(self) -> Path:
        """Of the start that is under way."""
        return self.folder / f"output-{len(self.outputs)}.txt"

    # -- its processes ----------------------------------------------------------------------------------------------

    def start(self) -> ForkedProcess:
        (self.folder / "now").unlink(missing_ok=True)
        self.began_at = self.newest
        return self._start(self.log)

    def refused(self) -> str:
        """What the same command prints while the job runs.

        Raises:
            AssertionError: it was not refused.
        """
        log = self.folder / "second.txt"
        assert self._start(log).wait(PATIENCE_SECONDS) != 0
        return log.read_text()

    def _start(self, log: Path) -> ForkedProcess:
        launch = ("-m", "scalekit", "launch", "--nproc", "2", *self.options, "--")
        environment = {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HERE / "inside"), str(ROOT)]),
            JOB: str(self.folder),
            **self.environment,
        }
        return start([*launch, HERE / "job.py", self.folder, self.strategy], log, self.folder, environment)

    def wait(self, process: ForkedProcess) -> int:
        """Until the job's first process has ended, and all of the job after it.

        Raises:
            AssertionError: something of it lives on, or it did not go on with its newest sound checkpoint.
        """
        try:
            code = process.wait(PATIENCE_SECONDS)
            gone = wait_until(lambda: not self.processes(), 60)
        finally:
            self.kill()
            self.outputs.append(self.log.read_text())
        assert code is not None, f"the job does not end: {self.outputs[-1]}"
        assert gone, f"processes of the job live on: {self.outputs[-1]}"
        began = re.search(r"^run        \S+(?:, resumed at step (\d+))?$", self.outputs[-1], re.MULTILINE)
        assert began is None or int(began[1] or 0) == self.began_at, (self.began_at, self.outputs[-1])
        return code

    def run(self) -> int:
        return self.wait(self.start())

    def end(self, process: ForkedProcess) -> None:
        """Kills all of it at once, as when the power fails."""
        self.kill()
        self.wait(process)

    def kill(self) -> None:
        for each in self.processes():
            os.kill(each, signal.SIGKILL)

    def processes(self) -> list[int]:
        return processes(str(self.folder))

    def rank(self, rank: int) -> int:
        """A rank's process; those that it has forked itself have its name too."""
        named = {each: _parent(each) for each in self.processes() if _name(each) == f"rank {rank}"}
        (process,) = (each for each, parent in named.items() if parent not in named)
        return process

    def server(self) -> int:
        """The fork server that this job has for itself: the parent of its ranks."""
        return _parent(self.rank(0))

    # -- how far it is ----------------------------------------------------------------------------------------------

    def wait_for_steps(self, steps: int) -> None:
        """Until the job has done so many steps more than its newest checkpoint had when it was started."""
        now = self.folder / "now"
        self.wait_for(lambda: now.is_file() and int(now.read_text() or 0) >= self.began_at + steps)

    def wait_for_checkpoint(self) -> None:
        """Until one more stands."""
        newest = self.newest
        self.wait_for(lambda: self.newest > newest)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        if not wait_until(condition, PATIENCE_SECONDS):
            raise AssertionError(f"it did not happen: {self.log.read_text()}")

    @property
    def checkpoints(self) -> list[Path]:
        """Those that are published, and not damaged on purpose."""
        folder = self.folder / "run" / "checkpoints"

        def is_damaged(name: str) -> bool:
            """Still: one that was set aside may have come again since."""
            return self.damaged.count(name) > len([*folder.glob(f"damaged-{name}*")])

        return [each for each in published(folder) if not is_damaged(each.name)]

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return max((step_of(each) or 0 for each in self.checkpoints), default=0)

    @property
    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
        return [{name: record[name] for name in METRICS} for record in map(json.loads, lines)]

    # -- whether anything is lost -----------------------------------------------------------------------------------

    def expect_sound_checkpoints(self) -> None:
        """Every checkpoint that stands is what its manifest says.

        Raises:
            CheckpointError: one is not.
        """
        for checkpoint in self.checkpoints:
            check(checkpoint, 0, lambda value: [value], 1)

    def expect_like(self, other: FaultyJob) -> None:
        """It came to what the other came to, bit for bit; every row was used once an epoch, and nothing is left behind.

        Raises:
            AssertionError: it did not.
        """
        assert [record["step"] for record in self.metrics] == list(range(1, STEPS + 1))
        for one, two in zip(self.metrics, other.metrics, strict=True):
            assert one == two
        assert used(self.folder) == used(other.folder)
        assert _manifest(self) == _manifest(other)
        left = {path.name for path in (self.folder / "run" / "checkpoints").iterdir()}
        set_aside = {name for name in left if name.startswith("damaged-")}
        assert len(set_aside) == len(self.damaged)
        assert left - set_aside == {each.name for each in self.checkpoints}


def _name(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _manifest(job: FaultyJob) -> dict[str, str]:
    """Of the last checkpoint, what its tensors' files must be, byte for byte."""
    files = json.loads((job.checkpoints[-1] / "MANIFEST.json").read_text())["files"]
    return {name: listed["crc32"] for name, listed in files.items() if name.endswith(".safetensors")}


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether something came true in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return False
        time.sleep(0.02)
    return True
