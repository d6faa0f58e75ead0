"""How long a job takes is said before it begins, and corrected once by what was measured."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from torch import nn

import scalekit
from scalekit.callbacks.evaluation import EvaluationSteps
from scalekit.callbacks.job_time import JobTime, corrected, is_other


@pytest.mark.parametrize("every", [None, 1, 3, 4, 10, 11, 0.25, 0.5, 0.7, "epoch"])
@pytest.mark.parametrize("epoch", [None, 1, 3, 4, 10])
@pytest.mark.parametrize("done", [0, 3, 9, 10])
def test_evaluations_are_counted_as_they_are_due(done: int, epoch: int | None, every: Any) -> None:
    steps = EvaluationSteps.of(every, 10, epoch)
    assert steps.after(done) == sum(steps.due(step) for step in range(done + 1, 11))


@pytest.mark.parametrize(
    ("every", "due"),
    [("epoch", [4, 8, 10]), (0.5, [2, 4, 6, 8, 10]), (0.75, [3, 7, 10]), (3, [3, 6, 9, 10]), (None, [10])],
)
def test_an_epoch_or_a_share_of_one_or_steps(every: Any, due: list[int]) -> None:
    steps = EvaluationSteps.of(every, 10, epoch_steps=4)
    assert [step for step in range(1, 11) if steps.due(step)] == due


def test_everything_counts() -> None:
    job = JobTime(20, 2, step_seconds=10, evaluation_seconds=5, end_seconds=10)
    assert job.seconds == 220
    assert re.fullmatch(r"20 steps, 3 min 40 s, done (\w+ \d\d \w+ )?at \d\d:\d\d", str(job))
    assert corrected(job, [5, 100, 6], [1, 2]).seconds == 20 * 6 + 2 * 2 + 10


def test_an_end_on_another_day_has_its_day() -> None:
    assert re.search(r"done \w{3} \d\d \w{3} at \d\d:\d\d$", str(JobTime(1, 0, step_seconds=3 * 86400)))


def test_what_is_not_known_is_not_said() -> None:
    job = JobTime(20, 0, step_seconds=None)
    assert str(job) == "20 steps; how long they take is not known yet"
    assert is_other(job, corrected(job, [1], []))


def test_a_small_correction_is_not_said() -> None:
    job = JobTime(100, 0, step_seconds=10)
    assert not is_other(job, corrected(job, [10.9], []))
    assert is_other(job, corrected(job, [11.2], []))


class Slow(Callback):
    def on_train_batch_start(self, *rest: Any) -> None:
        time.sleep(0.3)


def test_a_job_says_when_it_ends_and_corrects_that_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"x": [1.0], "y": [1.0]}] * 8
    settings: dict[str, Any] = {"loss": nn.MSELoss(), "global_batch_size": 8, "callbacks": [Slow()]}
    scalekit.fit(nn.Linear(1, 1), rows, max_steps=10, output_dir=str(tmp_path / "run"), **settings)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("time")]
    assert len(said) == 2
    assert re.fullmatch(r"time +10 steps, \d+ s, done .*at \d\d:\d\d \(an epoch is 1 step\)", said[0])
    assert re.fullmatch(
        r"time +[\d.]+ s a step where .+ s were predicted: 6 steps, \d+ s, done .*at \d\d:\d\d", said[1]
    )
