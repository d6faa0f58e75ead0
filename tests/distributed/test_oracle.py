"""Promise 3: a run that was stopped and resumed, twice, is the run that was not: on these ranks or others, under this strategy
or another, in the middle of an epoch or at its end."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.distributed import oracle_case as oracle
from tests.distributed.processes import WORKERS, run, torchrun


class Chain(NamedTuple):
    """Legs of one job: how many ranks, under which strategy, and after which step each ends."""

    name: str
    legs: list[tuple[int, str, int]]


SAME = [
    *("ddp", "fsdp2", "zero2", "zero3", "zero3-offload"),
    *(pytest.param(each, marks=pytest.mark.long) for each in ("zero1", "zero2-offload", "zero3-hpz")),
]
CHAINS = [
    Chain("strategies", [(2, "zero3", 7), (2, "ddp", 15), (2, "zero2", 21), (2, "fsdp2", 28), (2, "zero3", 40)]),
    Chain("ranks", [(2, "zero3", 8), (4, "zero3", 16), (1, "zero3", 24), (3, "zero3", 40)]),
    Chain("both", [(1, "single", 13), (3, "zero3-offload", 20), (4, "fsdp2", 26), (1, "single", 31), (2, "zero1", 40)]),
]


def train(legs: list[tuple[int, str, int]], folder: Path) -> None:
    """Runs legs of one job; those that follow each other on as many ranks share their processes."""
    while legs:
        ranks = legs[0][0]
        together = next((i for i, leg in enumerate(legs) if leg[0] != ranks), len(legs))
        words = [f"{folder}:{strategy}:{until}" for _, strategy, until in legs[:together]]
        if ranks == 1:
            run([sys.executable, str(WORKERS / "oracle.py"), *words])
        else:
            torchrun("oracle", *words, nproc=ranks)
        legs = legs[together:]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one process."""
    folder = tmp_path_factory.mktemp("single")
    train([(1, "single", 40)], folder)
    return folder


def same(folder: Path, other: Path, tolerance: float) -> None:
    """Two runs did the same at every step, and came to the same."""
    found, expected = oracle.metrics(folder), oracle.metrics(other)
    assert [record["step"] for record in found] == list(range(1, oracle.STEPS + 1))
    assert oracle.used(folder) == oracle.used(other)
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, rel=tolerance, abs=0)
    for name, value in oracle.final(other).items():
        torch.testing.assert_close(oracle.final(folder)[name], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("strategy", SAME)
def test_a_resumed_run_is_bit_for_bit_the_same(strategy: str, uninterrupted: Path, tmp_path: Path) -> None:
    """Stopped at 13 and 26, in the middle of an epoch; and at 15 and 30, where one ends."""
    whole = [(2, strategy, 40)]
    legs = [[(2, strategy, until) for until in ends] for ends in ((13, 26, 40), (15, 30, 40))]
    train_all = [(tmp_path / "whole", whole), (tmp_path / "middle", legs[0]), (tmp_path / "end", legs[1])]
    torchrun("oracle", *(f"{folder}:{strategy}:{until}" for folder, some in train_all for _, _, until in some))
    same(tmp_path / "middle", tmp_path / "whole", tolerance=0)
    same(tmp_path / "end", tmp_path / "whole", tolerance=0)
    same(tmp_path / "whole", uninterrupted, tolerance=1e-5)


def test_one_process_too(uninterrupted: Path, tmp_path: Path) -> None:
    train([(1, "single", until) for until in (13, 26, 40)], tmp_path)
    same(tmp_path, uninterrupted, tolerance=0)


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.name)
def test_any_ranks_and_any_strategy_go_on_with_it(chain: Chain, uninterrupted: Path, tmp_path: Path) -> None:
    train(chain.legs, tmp_path)
    same(tmp_path, uninterrupted, tolerance=1e-5)


def test_the_oracle_sees_what_goes_wrong(uninterrupted: Path) -> None:
    """Rows are used once an epoch, and no step is like another: an order that begins anew would show."""
    steps = oracle.used(uninterrupted)
    for epoch in range(oracle.STEPS // oracle.STEPS_PER_EPOCH):
        of_epoch = [steps[epoch * oracle.STEPS_PER_EPOCH + step] for step in range(1, oracle.STEPS_PER_EPOCH + 1)]
        assert sorted(row for rows in of_epoch for row in rows) == list(range(50))
    assert len({tuple(rows) for rows in steps.values()}) == oracle.STEPS
    assert len({record["loss"] for record in oracle.metrics(uninterrupted)}) == oracle.STEPS
