"""Real processes, started as users start them, but from one that has the imports; a failing rank shows its traceback."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from scalekit.distributed.fork_server import ADDRESS, ForkedProcess, ForkServer
from scalekit.distributed.program import Program

WORKERS = Path(__file__).parents[1] / "distributed" / "workers"
ROOT = Path(__file__).parents[2]

IMPORTED = (
    "scalekit.training.fit",
    "datasets",
    "wandb",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "transformers.generation.utils",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("auto", "bert", "gpt2", "llama", "t5")),
    "tests.support.parity_cases",
    "tests.support.language_model",
    "tests.support.legs",
)


class ProcessesError(AssertionError):
    """A job that ended with an error, with what its ranks printed."""


@cache
def server() -> ForkServer:
    """This test process's own; `scalekit launch` finds it by the environment."""
    return ForkServer.start(IMPORTED)


@cache
def server_of_launchers() -> ForkServer:
    """Has few modules: torch's agent walks the stack at each of its events, and looks at all modules for each frame."""
    return ForkServer.start(["scalekit.distributed.elastic_agent"])


def start(
    words: Sequence[object], log: Path, directory: Path | None = None, environment: Mapping[str, str] | None = None
) -> ForkedProcess:
    """Starts ``python WORDS``, which prints into a file.

    Args:
        directory: where it runs; that of the tests by default.
        environment: in which it differs from that of the tests.
    """
    whole = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        ADDRESS: server().address,
        **(environment or {}),
    }
    with log.open("wb") as file:
        program = Program([str(word) for word in words], whole, str(directory or os.getcwd()), own_session=True)
        parent = server_of_launchers() if "launch" in program.words else server()
        return parent.fork(program, file.fileno())


def torchrun(worker: str, *arguments: object, nproc: int = 2, timeout_seconds: float = 600) -> str:
    """Runs `workers/WORKER.py` on `nproc` processes and returns what it printed."""
    command = [sys.executable, "-m", "scalekit", "launch", f"--nproc={nproc}", "--"]
    return run([*command, str(WORKERS / f"{worker}.py"), *map(str, arguments)], timeout_seconds)


def found(worker: str, folder: Path, *arguments: object) -> dict[str, Any]:
    """What a worker has written to ``found.json`` in its folder, the first of its arguments."""
    torchrun(worker, folder, *arguments)
    read: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return read


def run(command: list[str], timeout_seconds: float = 600, expect_failure: bool = False, **environment: str) -> str:
    """Runs ``python ...``, and returns what it and all that it started printed; none of that outlives it."""
    if command[0] != sys.executable:
        raise ValueError(f"{command[0]} is another Python")
    with tempfile.TemporaryDirectory(prefix="scalekit-") as folder:
        log = Path(folder) / "output"
        process = start(command[1:], log, environment=environment)
        code = process.wait(timeout_seconds)
        if code is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        output = log.read_text(errors="replace")
    if code is None:
        raise ProcessesError(f"not done after {timeout_seconds} s: {' '.join(command)}\n{output}")
    if (code != 0) != expect_failure:
        raise ProcessesError(f"exit code {code}: {' '.join(command)}\n{output}")
    caused = [line for line in output.splitlines() if f"{ROOT / 'scalekit'}/" in line and "Warning:" in line]
    if caused:
        raise ProcessesError("ScaleKit causes warnings:\n" + "\n".join(caused))
    return output
