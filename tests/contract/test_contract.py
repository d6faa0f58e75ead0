"""The contract with Lightning: the same numbers as its own Trainer gives on one process, or a refusal by name."""

import json
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from tests.contract import table
from tests.contract.case import STRATEGIES, by_lightning, differences
from tests.contract.cases import CASES
from tests.support import processes
from tests.support.matrix import Part, parts

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Of each case that some strategy runs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("lightning")
    run = {name: case for name, case in CASES.items() if len(case.refused) < len(STRATEGIES)}
    found = {name: by_lightning(case, folder / name.replace(" ", "-")) for name, case in run.items()}
    read: Results = json.loads(json.dumps(found))
    return read


TURNS = ("fsdp2", "ddp", "fsdp2", "zero2")
CORE = {
    "single": CASES,
    **{
        strategy: [
            name
            for number, name in enumerate(CASES)
            if TURNS[number % 4] == strategy or strategy in CASES[name].refused
        ]
        for strategy in ("fsdp2", "ddp", "zero2")
    },
}
"""Each case on one process, and under one other strategy; all of them by `make test-all`."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Part], list[Results]]:
    """What a strategy makes of some cases, on each of its ranks."""

    def run(part: Part) -> list[Results]:
        strategy, names = part
        folder, ranks = tmp_path_factory.mktemp("contract"), 1 if strategy == "single" else 2
        processes.torchrun("contract", folder, strategy, *names, nproc=ranks)
        return [json.loads((folder / f"found-{strategy}-{rank}.json").read_text()) for rank in range(ranks)]

    return cache(run)


@pytest.mark.parametrize(("part", "name"), parts(list(CASES), CORE))
@pytest.mark.filterwarnings("ignore")
def test_it_is_equal_or_refused(
    expected: Results, found: Callable[[Part], list[Results]], part: Part, name: str
) -> None:
    strategy = part.column
    for result in (each[name] for each in found(part)):
        assert "broken" not in result, result["broken"]
        if strategy in CASES[name].refused:
            assert CASES[name].refused[strategy] in result["refused"]
        else:
            assert "refused" not in result, result["refused"]
            assert not differences(expected[name], result)


def test_the_page_is_that_of_the_cases() -> None:
    assert table.PAGE.read_text() == table.page(), "run python -m tests.contract.table"
