"""The probe: a decision is tried out in processes of its own, and a rank without memory never leaves the others waiting."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.processes import ROOT, WORKERS, torchrun
from tests.support.processes import run as in_time

MEBIBYTE = 2**20
# What a process may allocate beside its libraries, on the last rank alone: enough for one row at once, or for two, but not for
# four, whose forward pass alone takes 1280 MiB.
FOR_ONE, FOR_TWO = 1024 * MEBIBYTE, 1664 * MEBIBYTE


def run(folder: Path, limit: int, micro_batch_size: int | str, *checks: str) -> tuple[str, list[list[dict]]]:
    """What is printed, and what comes of a job for each memory check, on both ranks."""
    words = (folder, limit, micro_batch_size, *checks)
    if limit:  # of memory, which processes that were forked have more of
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        output = in_time([*command, str(WORKERS / "probe.py"), *map(str, words)])
    else:
        output = torchrun("probe", *words)
    return output, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


class Probe(NamedTuple):
    process: int
    parent: int


def probes() -> list[Probe]:
    """Those that run now, on this machine."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    return [
        Probe(*map(int, line.split()[:2]))
        for line in listed.splitlines()
        if "-m scalekit.training.trial_process" in line
    ]


def wait_for(look: Callable[[], Any], timeout_seconds: float = 120) -> Any:
    until = time.monotonic() + timeout_seconds
    while (found := look()) is None:
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.5)
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    assert wait_for(lambda: None if probes() else True, timeout_seconds=10)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """What a probe finds out is kept for the machine: not for the tests' own one."""
    monkeypatch.setenv("SCALEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.long
def test_a_probe_changes_nothing_and_corrects_the_machines_predictions(tmp_path, cache):
    """A process on a CPU takes its libraries' memory too, which nobody can foresee but can measure."""
    _, results = run(tmp_path, 0, 2, "warn", "probe", "probe")
    assert results[0] == results[1]
    plain, first, second = results[0]
    assert first["losses"] == second["losses"] == plain["losses"]
    plain, first, second = (each["plan"]["predicted"] for each in results[0])
    assert "probed_peak_bytes" not in plain
    errors = [abs(each["probed_peak_bytes"] / each["peak_bytes"] - 1) for each in (first, second)]
    assert errors[1] < 0.03 < errors[0]
    assert first["items"]["allocator_and_context"] == 0 < second["items"]["allocator_and_context"]
    assert (cache / "contexts.json").is_file()


def test_a_rank_without_memory_leaves_nobody_waiting(tmp_path, cache, monkeypatch):
    """Rank 0 is nowhere near a collective when rank 1 fails: it hears of it all the same."""
    monkeypatch.setenv("ASLEEP", "0")
    started = time.monotonic()
    _, results = run(tmp_path, FOR_ONE, 4, "probe")
    assert time.monotonic() - started < 200, "rank 0 would have slept for longer"
    for (result,) in results:
        assert "rank 1" in result["error"]
        assert "can't allocate memory" in result["error"]
        assert "micro_batch_size=1 needs" in result["error"]
    assert not (tmp_path / "run-0").exists()


def test_a_job_that_cannot_be_tried_out_on_one_rank_runs_and_says_so(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("UNPICKLABLE", "1")
    _, results = run(tmp_path, 0, 1, "probe")
    for (result,) in results:
        assert len(result["losses"]) == 2
        assert (
            "the probe says nothing: rank 1, the job cannot be given to another process"
            in result["plan"]["reasons"][-1]
        )


def test_a_probe_ends_with_its_job(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("ASLEEP", "0")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", WORKERS / "probe.py", tmp_path]
    job = subprocess.Popen([*command, "0", "1", "probe"], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        (probe,) = wait_for(lambda: probes() or None)
        os.kill(probe.parent, signal.SIGKILL)
        wait_for(lambda: None if probes() else True)
    finally:
        job.kill()
        job.wait()


@pytest.mark.long
def test_what_fails_makes_way_for_what_needs_less(tmp_path, cache):
    output, results = run(tmp_path, FOR_TWO, "auto", "probe")
    tried = [line.split()[-6] for line in output.splitlines() if line.startswith("probe ")]
    assert tried == ["4,", "2,"]
    plans = [result["plan"] for (result,) in results]
    assert plans[0] == plans[1]
    assert plans[0]["micro_batch_size"] == 2
    assert plans[0]["predicted"]["probed_peak_bytes"]
