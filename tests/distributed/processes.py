"""Real processes under torchrun, with a time limit; a failing rank shows its traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
ROOT = Path(__file__).parents[2]


class ProcessesError(AssertionError):
    """A job that ended with an error, with what its ranks printed."""


def torchrun(worker: str, *arguments: object, nproc: int = 2, timeout_seconds: float = 600) -> str:
    """Runs `workers/WORKER.py` on `nproc` processes and returns what it printed."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"),
        str(WORKERS / f"{worker}.py"),
        *map(str, arguments),
    ]
    return run(command, timeout_seconds)


def run(command: list[str], timeout_seconds: float = 600, expect_failure: bool = False, **environment: str) -> str:
    """Runs a command in a process group of its own, which is killed as a whole when time is up."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **environment},
    )
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise ProcessesError(f"not done after {timeout_seconds} s: {' '.join(command)}\n{output}") from None
    if (process.returncode != 0) != expect_failure:
        raise ProcessesError(f"exit code {process.returncode}: {' '.join(command)}\n{output}")
    caused = [line for line in output.splitlines() if f"{ROOT / 'scalekit'}/" in line and "Warning:" in line]
    if caused:
        raise ProcessesError("ScaleKit causes warnings:\n" + "\n".join(caused))
    return output
