"""Promise 3: whatever is killed, and whenever, the job started again by the same command comes to the same.

A job suffers several faults, each in the start after the one before, and is then left alone.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import FaultyJob
from tests.faults.injections import ALL

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp2")
FAULTS_A_JOB = 7
SHORT = ("fill-the-disk", "kill-in-a-save", "freeze-a-rank", "damage-the-newest")


def _dealt() -> list[list[str]]:
    """The faults of the long form, by the job that suffers them."""
    names = [name for name, (_, times) in ALL.items() for _ in range(times)]
    random.Random(5).shuffle(names)
    return [names[at : at + FAULTS_A_JOB] for at in range(0, len(names), FAULTS_A_JOB)]


LONG = [
    pytest.param(f"long-{number}", names, STRATEGIES[number % 4], marks=pytest.mark.long, id=f"long-{number}")
    for number, names in enumerate(_dealt(), start=1)
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FaultyJob]:
    """The job under each strategy that is asked for, with nothing done to it."""

    class Jobs(dict[str, FaultyJob]):
        def __missing__(self, strategy: str) -> FaultyJob:
            self[strategy] = job = FaultyJob(tmp_path_factory.mktemp("undisturbed") / strategy, strategy)
            assert job.run() == 0, job.outputs
            return job

    return Jobs()


@pytest.mark.parametrize(("seed", "names", "strategy"), [pytest.param("short", SHORT, "zero2", id="short"), *LONG])
def test_nothing_is_lost(
    seed: str,
    names: list[str],
    strategy: str,
    undisturbed: dict[str, FaultyJob],
    tmp_path: Path,
    record_property: Callable[[str, str], None],
) -> None:
    job, draw = FaultyJob(tmp_path / "job", strategy), random.Random(seed)
    for name in names:
        injection, _ = ALL[name]
        record_property(name, injection(job, draw))
        job.expect_sound_checkpoints()
    assert job.run() == 0, job.outputs
    job.expect_sound_checkpoints()
    job.expect_like(undisturbed[strategy])
