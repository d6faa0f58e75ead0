"""Parameters that a model leaves out, in every step or for some rows, do not end a job, and are not trained."""

from typing import Any

import pytest

from tests.distributed.workers import unused
from tests.support import processes

STRATEGIES = ("ddp", "zero2", "fsdp2", "zero3")
CELLS = [(strategy, branches) for strategy in STRATEGIES for branches in (False, True) if not branches or strategy in unused.BRANCHING]  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return processes.found("unused", tmp_path_factory.mktemp("unused"), *STRATEGIES)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, float], Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {
        (branches, decay): unused.train(folder / str(decay), "single", branches, decay)
        for branches, decay in ((False, 0.5), (True, 0.5), (False, 0.0))
    }


@pytest.mark.parametrize(("strategy", "branches"), CELLS)
def test_the_same_as_on_one_process(
    found: dict[str, Any], alone: dict[tuple[bool, float], Any], strategy: str, branches: bool
) -> None:
    one, two = found[f"{strategy}-{branches}"], alone[branches, 0.0 if strategy.startswith("zero") else 0.5]
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5)
    assert one["norms"] == pytest.approx(two["norms"], rel=1e-5)
    for name, weights in two["weights"].items():
        assert one["weights"][name] == pytest.approx(weights, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_what_deepspeed_would_decay_is_refused(found: dict[str, Any], strategy: str) -> None:
    """Without a gradient it stays as it is under all other strategies."""
    assert found[f"{strategy}-decayed"].startswith(
        "'never.weight' had no gradient in the first step. DeepSpeed's weight decay"
    )
