"""Which checkpoints go, and which stay."""

import pytest

from scalekit import errors
from scalekit.checkpoint.retention import Rotation
from scalekit.config.settings import Job

EVALUATIONS = [{"step": step, "loss": loss, "accuracy": 1 - loss} for step, loss in ((2, 0.5), (4, 0.3), (6, 0.4))]
STANDING = [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("rotation", "unwanted"),
    [
        (Rotation(), []),
        (Rotation(last=2), [2, 3, 4]),
        (Rotation(last=1), [2, 3, 4, 5]),
        (Rotation(last=9), []),
        (Rotation(last=1, every=3), [2, 4, 5]),
        (Rotation(last=1, best="loss"), [2, 3, 5]),
        (Rotation(last=1, best="accuracy", more_is_better=True), [2, 3, 5]),
        (Rotation(last=1, best="accuracy"), [3, 4, 5]),
        (Rotation(last=1, every=3, best="loss"), [2, 5]),
    ],
)
def test_what_goes(rotation: Rotation, unwanted: list[int]) -> None:
    assert rotation.unwanted(STANDING, EVALUATIONS) == unwanted


def test_the_best_is_that_of_those_that_stand() -> None:
    assert Rotation(last=1, best="loss").unwanted([2, 5, 6], EVALUATIONS) == [2, 5]


def test_what_is_no_number_is_not_the_best() -> None:
    found = [{"step": step, "area": value} for step, value in ((1, float("nan")), (2, 0.9), (3, 0.5))]
    assert Rotation(last=1, best="area", more_is_better=True).unwanted([1, 2, 3], found) == [1]


def job(**settings: object) -> Job:
    return Job("m", "d", max_steps=1, **{"keep_last": 1, "evaluate_every": 2, **settings})


def test_a_metric_says_which_way_is_better() -> None:
    metrics = {"area": {"class": "AUROC", "task": "binary"}, "error": {"class": "MeanSquaredError"}}
    assert Rotation.of(job(keep_best="area", metrics=metrics), evaluates=True).more_is_better
    assert not Rotation.of(job(keep_best="error", metrics=metrics), evaluates=True).more_is_better
    assert not Rotation.of(job(keep_best="loss"), evaluates=True).more_is_better


@pytest.mark.parametrize(
    ("settings", "evaluates", "said"),
    [
        ({"keep_best": "accurcy"}, True, "Did you mean 'accuracy'"),
        ({"keep_best": "loss"}, False, "validation"),
        ({"keep_best": "loss", "evaluate_every": None}, True, "evaluate_every"),
        ({"keep_best": "loss", "keep_last": None, "checkpoint_every": 1}, True, "keep_last"),
    ],
)
def test_what_cannot_be_kept_is_refused(settings: dict[str, object], evaluates: bool, said: str) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        Rotation.of(job(**settings), evaluates)
