"""By default a job saves by the time that its steps take, so that one that is killed loses minutes and no disk fills up."""

import json
from pathlib import Path

import pytest
import torch

import scalekit
from scalekit.callbacks import checkpoints
from scalekit.config.settings import Job
from tests.distributed.workers import auto_checkpoints
from tests.support import processes


def standing(folder: Path) -> list[int]:
    return sorted(int(each.name.removeprefix("step-")) for each in (folder / "run" / "checkpoints").glob("step-*"))


def test_it_is_the_default_and_keeps_two() -> None:
    job = Job.from_mapping({"model": "m", "data": "d", "max_steps": 9})
    assert (job.checkpoint_every, job.kept) == ("auto", 2)
    assert Job.from_mapping({**vars(job), "checkpoint_every": 5}).kept is None
    assert Job.from_mapping({**vars(job), "keep_last": 7}).kept == 7


def test_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "AUTO_SECONDS", 0.25)
    steps = auto_checkpoints.train(tmp_path, "single")
    assert 2 <= len(steps) < 14, "five steps of 0.05 s make a quarter of a second"
    assert steps[-1] == 14
    assert standing(tmp_path) == steps[-2:]


def test_what_would_be_kept_is_saved(tmp_path: Path) -> None:
    """A step of `keep_every`, and one with an evaluation where the best is kept."""
    rows = [{"x": [float(i), 1.0], "y": [float(i)]} for i in range(16)]
    job = {"loss": torch.nn.MSELoss(), "global_batch_size": 4, "max_steps": 12, "keep_last": 1, "learning_rate": 1e-2}
    scalekit.fit(torch.nn.Linear(2, 1), rows, **job, keep_every=5, output_dir=str(tmp_path / "every" / "run"))
    assert standing(tmp_path / "every") == [5, 10, 12]
    best = {"validation": rows[:4], "evaluate_every": 4, "keep_best": "loss"}
    scalekit.fit(torch.nn.Linear(2, 1), rows, **job, **best, output_dir=str(tmp_path / "best" / "run"))
    lines = (tmp_path / "best" / "run" / "evaluations.jsonl").read_text().splitlines()
    found = {each["step"]: each["loss"] for each in map(json.loads, lines) if each["step"]}
    assert set(standing(tmp_path / "best")) == {12, min(found, key=lambda step: found[step])}


@pytest.mark.parametrize("strategy", ["ddp"])
def test_all_ranks_save_after_the_same_steps(strategy: str, tmp_path: Path) -> None:
    processes.torchrun("auto_checkpoints", tmp_path, strategy)
    one, other = (json.loads((tmp_path / f"saves-{rank}.json").read_text()) for rank in range(2))
    assert one == other
    assert len(one) >= 3
    assert standing(tmp_path) == one[-2:]
