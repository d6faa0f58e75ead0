"""Promise 3: a run that was stopped and resumed, twice, is the run that was not, on other ranks too and under other strategies.

On the same ranks, under the same strategy, it is so bit for bit: see test_promises.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import oracle_case as oracle
from tests.support.legs import used
from tests.support.processes import WORKERS, run, torchrun


class Leg(NamedTuple):
    """How many ranks, under which strategy, and after which step it ends."""

    ranks: int
    strategy: str
    until: int


CHAINS = {
    "strategies": [
        Leg(2, "zero3", 4),
        Leg(2, "ddp", 7),
        Leg(2, "zero2", 10),
        Leg(2, "fsdp2", 14),
        Leg(2, "zero3", 20),
    ],
    "ranks": [Leg(2, "zero3", 4), Leg(4, "zero3", 8), Leg(1, "zero3", 12), Leg(3, "zero3", 20)],
    "both": [
        Leg(1, "single", 7),
        Leg(3, "zero3", 10),
        Leg(4, "hsdp", 13),
        Leg(1, "single", 16),
        Leg(2, "zero1", 20),
    ],
    "offloaded": [Leg(1, "single", 7), Leg(3, "zero3-offload", 10), Leg(2, "zero2-offload", 20)],
    "to-zero3": [Leg(1, "single", 5), Leg(2, "zero3", 20)],
}


def train(legs: list[Leg], folder: Path) -> None:
    """Runs legs of one job; those that follow each other on as many ranks share their processes."""
    while legs:
        ranks = legs[0].ranks
        together = next((i for i, leg in enumerate(legs) if leg.ranks != ranks), len(legs))
        words = [f"{folder}:{leg.strategy}:{leg.until}" for leg in legs[:together]]
        if ranks == 1:
            run([sys.executable, str(WORKERS / "oracle.py"), *words])
        else:
            torchrun("oracle", *words, nproc=ranks)
        legs = legs[together:]


def test_one_process_goes_on_bit_for_bit(uninterrupted: Path, tmp_path: Path) -> None:
    train([Leg(1, "single", until) for until in (7, 13, 20)], tmp_path)
    oracle.same(tmp_path, uninterrupted, tolerance=0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "both" else pytest.mark.long) for name in CHAINS]
)
def test_any_ranks_and_any_strategy_go_on_with_it(name: str, uninterrupted: Path, tmp_path: Path) -> None:
    train(CHAINS[name], tmp_path)
    oracle.same(tmp_path, uninterrupted, tolerance=1e-5)


def test_the_oracle_sees_what_goes_wrong(uninterrupted: Path) -> None:
    """Rows are used once an epoch, and no step is like another: an order that starts again would show."""
    steps = used(uninterrupted)
    for epoch in range(oracle.STEPS // oracle.STEPS_PER_EPOCH):
        of_epoch = [steps[epoch * oracle.STEPS_PER_EPOCH + step] for step in range(1, oracle.STEPS_PER_EPOCH + 1)]
        assert sorted(row for rows in of_epoch for row in rows) == list(range(50))
    assert len({tuple(rows) for rows in steps.values()}) == oracle.STEPS
    assert len({record["loss"] for record in oracle.metrics(uninterrupted)}) == oracle.STEPS
