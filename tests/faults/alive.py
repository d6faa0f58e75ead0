"""Which processes belong to a job that faults are done to. It imports nothing but what Python brings."""

import os
from pathlib import Path

JOB = "FAULT_JOB"
"""The variable of the environment that holds the job's folder."""


def processes(job: str) -> list[int]:
    """All that live of a job: they run in its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "cwd") == job and _lives(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _lives(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
