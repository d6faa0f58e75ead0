"""Which processes belong to a job that faults are done to. It imports nothing but what Python brings."""

from pathlib import Path

JOB = "FAULT_JOB"
"""The variable of the environment that all of a job's processes inherit: the job's folder."""


def processes(job: str) -> list[int]:
    """All that live of a job, by what the system says."""
    mark = f"{JOB}={job}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
