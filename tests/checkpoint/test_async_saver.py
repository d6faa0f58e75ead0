"""Checkpoints are published whole or not at all, by real writer processes."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scalekit.checkpoint.async_saver import Saver
from scalekit.checkpoint.format import published, sweep
from scalekit.checkpoint.load import check, fill
from scalekit.distributed.process import STOP_SIGNALS
from scalekit.distributed.run_lock import claim
from scalekit.distributed.shards import TensorShard
from scalekit.errors import CheckpointError

WEIGHTS = "model/model"


@pytest.fixture
def savers() -> Iterator[list[Saver]]:
    """Those of two ranks."""
    made = [Saver(rank, 2) for rank in range(2)]
    yield made
    for saver in made:
        saver.close()


def parts(value: float, elements: int = 1000) -> dict[str, list[TensorShard]]:
    return {WEIGHTS: [TensorShard("w", (elements,), torch.full((elements,), value))]}


def save(savers: list[Saver], folder: Path, value: float, unwanted: tuple[str, ...] = ()) -> list[str]:
    """What becomes of it."""
    for saver in savers:
        saver.save(folder, parts(value), {"state.json": b"{}"}, unwanted)
    return [outcome.why or outcome.done for saver in savers for outcome in saver.outcomes(wait=True)]


def value_of(folder: Path) -> float:
    found = parts(0.0)
    fill(found, folder)
    assert len(set(found[WEIGHTS][0].data.tolist())) == 1
    return found[WEIGHTS][0].data[0].item()


def sound(folder: Path) -> None:
    check(folder, 0, lambda value: [value], 1)


def test_a_checkpoint_is_published_by_all_ranks_together(savers: list[Saver], tmp_path: Path) -> None:
    first, second = savers
    folder = tmp_path / "step-00000001"
    first.save(folder, parts(1.0), {})
    time.sleep(0.5)
    assert not published(tmp_path)
    second.save(folder, parts(1.0), {})
    assert [outcome.done for outcome in first.outcomes(wait=True)] == ["published"]
    assert published(tmp_path) == [folder]
    assert value_of(folder) == 1.0
    sound(folder)


def test_one_at_the_same_place_is_replaced_and_unwanted_ones_go(savers: list[Saver], tmp_path: Path) -> None:
    names = [f"step-{step:08d}" for step in (1, 2, 3)]
    for name in names:
        assert save(savers, tmp_path / name, 1.0) == ["published", "written"]
    assert save(savers, tmp_path / names[2], 2.0, (names[0], "step-00000009")) == ["published", "written"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]
    assert value_of(tmp_path / names[2]) == 2.0


def test_what_was_in_memory_then_is_what_is_saved(savers: list[Saver], tmp_path: Path) -> None:
    """The training continues, and changes its tensors, while the writers are at work."""
    weights = torch.full((3_000_000,), 1.0)
    for saver in savers:
        saver.save(tmp_path / "step-00000001", {WEIGHTS: [TensorShard("w", (3_000_000,), weights)]}, {})
    weights.fill_(2.0)
    for saver in savers:
        saver.outcomes(wait=True)
    found = torch.zeros(3_000_000)
    fill({WEIGHTS: [TensorShard("w", (3_000_000,), found)]}, tmp_path / "step-00000001")
    assert torch.equal(found, torch.ones(3_000_000))


def test_a_writer_that_dies_in_between_costs_none(savers: list[Saver], tmp_path: Path) -> None:
    assert save(savers, tmp_path / "step-00000001", 1.0) == ["published", "written"]
    writer = savers[0]._writer
    assert writer is not None
    writer.kill()
    writer.wait()
    assert save(savers, tmp_path / "step-00000002", 2.0) == ["published", "written"]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_writer_is_out_of_a_signals_reach(number: int, savers: list[Saver], tmp_path: Path) -> None:
    assert save(savers, tmp_path / "step-00000001", 1.0) == ["published", "written"]
    writer = savers[0]._writer
    assert writer is not None
    os.kill(writer.pid, number)
    assert save(savers, tmp_path / "step-00000002", 2.0) == ["published", "written"]
    assert savers[0]._writer is writer


def test_the_next_job_in_a_folder_waits_for_the_writers_too(savers: list[Saver], tmp_path: Path) -> None:
    """A rank that is killed is gone at once, its writer a moment later; ranks start again faster than that."""
    os.close(claim(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert save(savers, tmp_path / "checkpoints" / "step-00000001", 1.0) == ["published", "written"]
    with (tmp_path / ".ranks.lock").open() as ranks:
        with pytest.raises(BlockingIOError):
            fcntl.flock(ranks, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for saver in savers:
            writer = saver._writer
            assert writer is not None
            writer.kill()
            writer.wait()
        fcntl.flock(ranks, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_writer_that_dies_costs_one_checkpoint(rank: int, savers: list[Saver], tmp_path: Path) -> None:
    assert save(savers, tmp_path / "step-00000001", 1.0) == ["published", "written"]
    writer = savers[rank]._writer
    assert writer is not None
    os.kill(writer.pid, signal.SIGSTOP)
    savers[rank].save(tmp_path / "step-00000002", parts(2.0), {})
    os.kill(writer.pid, signal.SIGKILL)
    (outcome,) = savers[rank].outcomes(wait=True)
    assert (outcome.done, outcome.why) == ("failed", "the process that writes it ended with -9")
    assert [path.name for path in published(tmp_path)] == ["step-00000001"]
    if rank == 1:
        savers[0].save(tmp_path / "step-00000002", parts(2.0), {})
        assert [each.why for each in savers[0].outcomes(wait=True)] == ["rank 1 could not write its part"]
    assert save(savers, tmp_path / "step-00000003", 3.0) == ["published", "written"]


def test_a_folder_that_is_gone_is_said_and_not_made_anew(savers: list[Saver], tmp_path: Path) -> None:
    lost = tmp_path / "gone" / "step-00000001"
    why = save(savers, lost, 1.0)
    assert why[0].startswith("No such file or directory")
    assert not lost.parent.exists()


def test_what_is_left_half_written_is_swept_away(tmp_path: Path) -> None:
    for name in (".step-00000001.partial", ".step-00000002.deleted", ".step-00000003.replaced"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "MANIFEST.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    assert not published(tmp_path)
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_another_models_checkpoint_is_refused(savers: list[Saver], tmp_path: Path) -> None:
    save(savers, tmp_path / "step-00000001", 1.0)
    wanted = [TensorShard("w", (10, 100), torch.zeros(1000)), TensorShard("v", (1,), torch.zeros(1))]
    with pytest.raises(CheckpointError, match=r"it lacks v; shapes differ: w \[1000\] \(here \[10, 100\]\)"):
        fill({WEIGHTS: wanted}, tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="in float32, and this job's precision in bfloat16"):
        fill(
            {WEIGHTS: [TensorShard("w", (1000,), torch.zeros(1000, dtype=torch.bfloat16))]}, tmp_path / "step-00000001"
        )
