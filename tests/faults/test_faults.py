"""Promise 3: whatever is killed, and whenever, the job started again by the same command comes to the same."""

import random
from pathlib import Path

import pytest

from tests.faults.harness import FaultyJob
from tests.faults.injections import ALL

STRATEGIES = ("ddp", "zero2", "zero3", "fsdp2")
LONG = [
    pytest.param(name, seed, STRATEGIES[seed % 4], marks=pytest.mark.long)
    for name, (_, times) in ALL.items()
    for seed in range(1, times + 1)
]
SHORT = [(name, 0, "zero2") for name in ("kill-in-a-save", "kill-the-agent", "freeze-a-rank", "damage-the-newest")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FaultyJob]:
    """The job under each strategy that is asked for, with nothing done to it."""

    class Jobs(dict[str, FaultyJob]):
        def __missing__(self, strategy: str) -> FaultyJob:
            self[strategy] = job = FaultyJob(tmp_path_factory.mktemp("undisturbed") / strategy, strategy)
            assert job.run() == 0, job.outputs
            return job

    return Jobs()


@pytest.mark.parametrize(("name", "seed", "strategy"), [*SHORT, *LONG])
def test_nothing_is_lost(
    name: str, seed: int, strategy: str, undisturbed: dict[str, FaultyJob], tmp_path: Path
) -> None:
    expected, job = undisturbed[strategy], FaultyJob(tmp_path / "job", strategy)
    injection, _ = ALL[name]
    injection(job, random.Random(f"{name} {seed}"))
    before = len(job.checkpoints)
    job.environment, job.options = {}, ()
    assert job.run() == 0, job.outputs
    job.expect_like(expected)
    assert before == 0 or "resumed at step" in job.outputs[-1]
