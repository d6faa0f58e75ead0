"""A request to stop is heard in the middle of a long step, on every rank before the same micro-batch, and nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import oracle_case as oracle
from tests.support.legs import used
from tests.support.processes import torchrun
from tests.support.slow_case import STEPS, AsksToStop, Slow, rows, stream, train

STRATEGIES = ("ddp", "zero3", "fsdp2")
Found = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop")
    torchrun("stop", folder, *STRATEGIES)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Found]:
    """What each rank has seen."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def same(folder: Path, other: Path) -> None:
    """Two runs came to the same, bit for bit.

    Raises:
        AssertionError: they did not.
    """
    assert oracle.metrics(folder) == oracle.metrics(other)
    assert used(folder) == used(other)
    last = Path("checkpoints", f"step-{STEPS:08d}")
    files = sorted(path.relative_to(other / last) for path in (other / last).rglob("*.safetensors"))
    assert {str(file.parent) for file in files} == {"model", "average", "optimizer"}
    for file in files:
        one, two = load_file(folder / last / file), load_file(other / last / file)
        assert one.keys() == two.keys()
        for name, value in two.items():
            assert torch.equal(one[name], value), f"{file}: {name}"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ranks_leave_together_within_two_micro_batches(found: list[Found], strategy: str) -> None:
    for leg in range(2):
        ends = [each[strategy]["legs"][leg] for each in found]
        assert [end["code"] for end in ends] == [75, 75]
        assert ends[0]["done"] == ends[1]["done"] <= 3 + 2, ends


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_stops_with_the_last_whole_step(folder: Path, found: list[Found], strategy: str) -> None:
    said = [leg["said"] for leg in found[0][strategy]["legs"][:2]]
    assert "in step 5: started again, the job resumes after step 4" in said[0]
    assert "in step 6: started again, the job resumes after step 5" in said[1]
    names = {each.name for each in (folder / strategy / "checkpoints").iterdir()}
    assert names == {f"step-{step:08d}" for step in (4, 5, STEPS)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_resumed_job_is_the_uninterrupted_one(folder: Path, found: list[Found], strategy: str) -> None:
    same(folder / strategy, folder / f"{strategy}-whole")
    for each in found:
        assert each[strategy]["legs"][2] == each[strategy]["whole"]


@pytest.mark.parametrize("data", [rows, stream])
def test_one_process(data: Callable[[], Any], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", "single", data=data)
    stopped = train(tmp_path / "stopped", "single", AsksToStop(5, rank=0), data=data)
    assert (stopped["code"], stopped["done"]) == (75, 3)
    assert "resumes after step 4" in stopped["said"]
    assert train(tmp_path / "stopped", "single", data=data) == whole
    same(tmp_path / "stopped", tmp_path / "whole")


def test_in_the_first_step_there_is_nothing_to_save(tmp_path: Path) -> None:
    stopped = train(tmp_path, "single", AsksToStop(1, rank=0))
    assert (stopped["code"], stopped["done"]) == (75, 2)
    assert not [*(tmp_path / "checkpoints").iterdir()]


def test_weights_that_change_with_micro_batches_are_not_saved_in_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from the newest checkpoint then, to the same."""
    monkeypatch.setattr(Slow, "changes_frozen", True)
    train(tmp_path / "whole", "single")
    stopped = train(tmp_path / "stopped", "single", AsksToStop(5, rank=0), checkpoint_every=2)
    assert stopped["code"] == 75
    stopped = train(tmp_path / "stopped", "single", AsksToStop(6, rank=0), checkpoint_every=2)
    assert "in step 6: started again, the job resumes after step 4" in stopped["said"]
    train(tmp_path / "stopped", "single")
    same(tmp_path / "stopped", tmp_path / "whole")
