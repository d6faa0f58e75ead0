"""Counts what was done to jobs, and says at the end how much of it they came through."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Told:
    """What was done to one job.

    Attributes:
        job: the test's name.
        faults: by name, with what each did.
        is_survived: whether the job came to the same in spite of it.
    """

    job: str
    faults: list[tuple[str, str]] = field(default_factory=list)
    is_survived: bool = False

    def begins(self, name: str) -> None:
        self.faults.append((name, "?"))

    def did(self, what: str) -> None:
        self.faults[-1] = (self.faults[-1][0], what)

    def survived(self) -> None:
        self.is_survived = True


_TOLD = pytest.StashKey[list[Told]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TOLD] = []


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Told:
    mine = Told(request.node.name)
    request.config.stash[_TOLD].append(mine)
    return mine


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    jobs = config.stash[_TOLD]
    if not jobs:
        return
    faults = [fault for job in jobs for fault in job.faults]
    lost = sum(len(job.faults) for job in jobs if not job.is_survived)
    terminalreporter.section("faults")
    for name, number in sorted(Counter(name for name, _ in faults).items()):
        did = Counter(what for each, what in faults if each == name)
        terminalreporter.line(
            f"{number:4d} {name}: {', '.join(f'{times} {what}' for what, times in did.most_common())}"
        )
    terminalreporter.line(f"{len(faults)} faults in {len(jobs)} jobs; lost {lost}")
