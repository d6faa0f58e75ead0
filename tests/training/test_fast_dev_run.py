"""`fast_dev_run`, and epochs that are limited: what is run, what is left behind, what is refused."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from torch import nn

import scalekit
from scalekit.errors import ConfigError

ROWS = [{"x": [float(i)], "y": [2.0 * i]} for i in range(40)]


def fit(folder: Path, **settings: Any) -> scalekit.Run:
    usual = {
        "validation": ROWS[:30],
        "loss": nn.MSELoss(),
        "strategy": "single",
        "precision": "32-true",
        "global_batch_size": 4,
        "max_epochs": 2,
        "output_dir": str(folder / "run"),
    }
    return scalekit.fit(nn.Linear(1, 1), **{"data": ROWS, **usual, **settings})


@pytest.mark.parametrize(("given", "steps"), [(True, 1), (3, 3)])
def test_a_trial_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool | int, steps: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "passing"))
    (tmp_path / "passing").mkdir()
    timer = Timer()
    callbacks = [ModelCheckpoint(tmp_path / "saved"), EarlyStopping("nothing"), timer]
    run = fit(tmp_path, fast_dev_run=given, callbacks=callbacks, keep_last=1, keep_best="loss", checkpoint_every=1)
    assert len(run.history) == steps
    assert [each["items"] for each in run.evaluations] == [4 * steps] * 2
    assert timer.time_elapsed("train") > 0
    assert run.checkpoint is None
    assert run.validate()["loss"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["passing"]
    assert not list((tmp_path / "passing").glob("scalekit-fast-dev-run-*"))


def test_a_trial_of_any_job(tmp_path: Path) -> None:
    run = fit(tmp_path, fast_dev_run=True, warmup_steps=100, lr_schedule="linear")
    assert len(run.history) == 1
    run = fit(tmp_path, fast_dev_run=True, overfit_batches=2)
    assert len(run.history) == 1


def test_a_limited_epoch_is_resumed_where_it_was(tmp_path: Path) -> None:
    settings = {"limit_train_batches": 3, "checkpoint_every": 2, "max_epochs": None}
    whole = fit(tmp_path / "whole", **{**settings, "max_steps": 6})
    assert [each["samples"] for each in whole.history] == [4, 8, 12, 16, 20, 24]
    assert "on 12 of 40 samples" in str(whole.plan)
    resumed = fit(
        tmp_path / "resumed",
        **{**settings, "max_steps": 6, "resume": str(whole.folder / "checkpoints" / "step-00000002")},
    )
    assert [each["loss"] for each in resumed.history[-4:]] == [each["loss"] for each in whole.history[-4:]]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"limit_train_batches": 1.0}, "a share of them below 1, or None for all"),
        ({"limit_train_batches": True}, "a share of them below 1, or None for all"),
        ({"limit_train_batches": 0.01}, "a share of 0.01 of 10 global batches to train is none"),
        ({"limit_val_batches": 2, "validation": None}, "limit_val_batches: there is no validation set"),
        (
            {"overfit_batches": 1, "limit_val_batches": 2},
            "overfit_batches limits training and validation alike: leave limit_val_batches out",
        ),
        (
            {"overfit_batches": 1, "data": scalekit.Mixture([(ROWS, 1.0), (ROWS, 2.0)])},
            "rows that have weights are drawn again",
        ),
        ({"gradient_clip_algorithm": "value"}, "give `gradient_clip`"),
        ({"gradient_clip_algorithm": "value", "gradient_clip": 1.0, "strategy": "zero2"}, "take ddp or fsdp2"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(tmp_path, **settings)
    assert not list(tmp_path.iterdir())
