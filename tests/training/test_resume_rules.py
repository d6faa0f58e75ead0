"""Which checkpoint a job resumes from, as a table: its `resume`, what the folder holds, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalekit.config.settings import Job
from scalekit.errors import CheckpointError, ConfigError
from scalekit.training.resume_rules import FoundRun, checkpoints_to_resume, continues, folder_of

RUN = Path("runs/model")
OTHER = "runs/other/checkpoints/step-2"
OWN = "runs/model/checkpoints/step-2"


def found(*steps: int, differing: str = "", begun_with: str = "auto", total_steps: int = 9) -> FoundRun:
    checkpoints = tuple(RUN / "checkpoints" / f"step-{step}" for step in steps)
    return FoundRun(RUN, checkpoints, tuple(differing.split()), begun_with, total_steps)


@pytest.mark.parametrize(
    ("resume", "run", "expected"),
    [
        ("auto", found(), []),
        ("auto", found(2, 4), [4, 2]),
        ("auto", found(differing="seed"), []),
        ("auto", found(2, differing="seed data"), "another job: its config.yaml differs in seed, data"),
        ("never", found(), []),
        ("never", found(2), "resume='never'"),
        (OTHER, found(), [2]),
        (OTHER, found(4, 6), "later checkpoints"),
        (OTHER, found(4, 6, begun_with=OTHER), [6, 4, 2]),
        (OTHER, found(4, 6, begun_with=OTHER, differing="seed"), "later checkpoints"),
        (OTHER, found(1, 2), [2]),
        (OWN, found(1, 2), [2]),
        (OWN, found(1, 2, 4), "later checkpoints"),
        (OWN, found(1, 2, 4, begun_with=OWN), "later checkpoints"),
    ],
)
def test_which_checkpoints(resume: str, run: FoundRun, expected: list[int] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises((ConfigError, CheckpointError), match=expected):
            checkpoints_to_resume(resume, run)
        return
    assert [path.name for path in checkpoints_to_resume(resume, run)] == [f"step-{step}" for step in expected]


@pytest.mark.parametrize(
    ("resume", "max_steps", "run", "expected"),
    [
        ("auto", None, found(2), True),
        ("auto", 9, found(2), True),
        ("auto", 8, found(2), False),
        ("auto", None, found(), False),
        ("auto", None, found(9), False),
        ("auto", None, found(2, total_steps=0), False),
        ("auto", None, found(2, differing="seed"), False),
        ("never", None, found(2), False),
        ("never", None, found(2, begun_with="never"), False),
        (OTHER, None, found(4), False),
        (OTHER, None, found(4, begun_with=OTHER), True),
        (f"{OTHER}/", None, found(4, begun_with=OTHER), True),
        (OWN, None, found(4, begun_with=OWN), False),
    ],
)
def test_whether_an_unnamed_job_continues(resume: str, max_steps: int | None, run: FoundRun, expected: bool) -> None:
    assert continues(resume, max_steps, run) is expected


def test_a_folder_that_says_nothing_is_not_continued(tmp_path: Path) -> None:
    job = Job.from_mapping({"model": "m", "data": "d", "max_steps": 9})
    (tmp_path / "m" / "checkpoints").mkdir(parents=True)
    run = FoundRun.read(tmp_path / "m", job)
    assert (run.differing, run.checkpoints, run.total_steps) == ((), (), 0)
    assert folder_of(job, "m", tmp_path) == tmp_path / "m-2"
    assert folder_of(job, "n", tmp_path) == tmp_path / "n"
