"""Memory that a step has freed is there for the next one: no page is asked for twice."""

import os
import subprocess
import sys

import pytest

STEPS = """
import contextlib, resource, sys, torch
from scalekit.utils.host_memory import kept_when_freed
torch.set_num_threads(1)
def step():
    return sum(torch.ones(n * 2**20).sum() for n in (4, 1, 8, 2))
with kept_when_freed() if sys.argv[1] == "kept" else contextlib.nullcontext():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * 15 * 2**22 // 4096


def faults(how: str, **environment: str) -> int:
    command = [sys.executable, "-c", STEPS, how]
    return int(subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=True).stdout)


def test_no_page_is_asked_for_twice() -> None:
    if faults("given back") < PAGES / 2:
        pytest.skip("this system's allocator keeps memory by itself")
    assert faults("kept") < PAGES / 10


def test_an_environment_that_says_how_is_left_alone() -> None:
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="131072") > PAGES / 2
