"""A run's folder: whose it is, what is resumed in it, and that a refused job leaves none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

import scalekit
from scalekit import errors
from tests.support.legs import EndedError, Ends

ROWS = [{"x": [float(i)], "y": [2.0 * i]} for i in range(16)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fit(**settings: Any) -> scalekit.Run:
    usual = {"loss": nn.MSELoss(), "global_batch_size": 8, "max_steps": 4, "checkpoint_every": 1}
    return scalekit.fit(nn.Linear(1, 1), ROWS, **{**usual, **settings})


def ended_at(step: int, **settings: Any) -> None:
    with pytest.raises(EndedError):
        fit(callbacks=[Ends(step)], **settings)


def spoil(plan: Path, **changed: Any) -> None:
    plan.write_text(json.dumps({**json.loads(plan.read_text()), **changed}))


@pytest.mark.parametrize("named", [{}, {"output_dir": "runs/Linear"}])
def test_a_resumed_run_keeps_its_decision(named: dict[str, str]) -> None:
    """As on a machine where another micro-batch or precision was the fastest; no speed measured again may turn it."""
    ended_at(2, **named)
    plan = Path("runs/Linear/plan.json")
    assert json.loads(plan.read_text())["micro_batch_size"] == 8
    spoil(plan, micro_batch_size=2, precision="bf16-mixed", accumulation=4)
    run = fit(**named)
    assert run.folder == Path("runs/Linear")
    assert (run.plan.micro_batch_size, run.plan.accumulation, run.plan.precision) == (2, 4, "bf16-mixed")
    assert [record["step"] for record in run.history] == [1, 2, 3, 4]


def test_a_finished_run_is_not_resumed() -> None:
    assert [fit().folder for _ in range(2)] == [Path("runs/Linear"), Path("runs/Linear-2")]
    assert fit(max_steps=6).folder == Path("runs/Linear-3")


def test_an_unfinished_run_of_other_steps_is_another_job() -> None:
    ended_at(2)
    assert fit(max_steps=6).folder == Path("runs/Linear-2")
    with pytest.raises(errors.CheckpointError, match="is of a job of 4 steps"):
        fit(max_steps=6, output_dir="runs/Linear")


@pytest.mark.parametrize(
    "settings",
    [
        {"global_batch_size": 9, "micro_batch_size": 2},
        {"warmup_steps": 4},
        {"loss": None},
        {"strategy": "zero9"},
        {"output_dir": "own/folder", "optimizer_options": {"betas": 2}},
        {"validation": [], "evaluate_every": 1},
    ],
)
def test_a_refused_job_leaves_no_folder(settings: dict[str, Any]) -> None:
    with pytest.raises(errors.ScaleKitError):
        fit(**settings)
    assert list(Path().iterdir()) == []


class StopsAt(pl.Callback):
    """As Lightning's EarlyStopping does, which asks at the end of an epoch."""

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= 2


def test_what_a_callback_has_ended_stays_ended() -> None:
    """Started again by the same command it adds nothing; as another job, or without its note, it goes on."""
    for _ in range(3):
        run = fit(max_steps=4, callbacks=[StopsAt()], output_dir="run")
        assert len(run.history) == 2
    assert "by a callback at step 2: nothing is left to do" in Path("run/log.txt").read_text()
    assert len(fit(max_steps=4, output_dir="run").history) == 4
    assert len(fit(max_steps=4, output_dir="run").history) == 4


class PutsIn(pl.Callback):
    """As a callback that averages weights does at the end."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            pl_module.model.weight.fill_(7.0)


def test_what_callbacks_put_in_at_the_end_is_saved() -> None:
    run = fit(callbacks=[PutsIn()], output_dir="run")
    assert float(load_file(run.checkpoint / "model" / "model.safetensors")["weight"]) == 7.0


class Unread(Dataset[Any]):
    """Rows that nobody may read."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a row was read")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 3}, "the run of another job: its config.yaml differs in .*seed"),
        ({"resume": "never"}, "resume='never'"),
    ],
)
def test_another_jobs_folder_is_told_before_data_is_read(settings: dict[str, Any], message: str) -> None:
    job = {"loss": nn.MSELoss(), "global_batch_size": 8, "max_steps": 4, "output_dir": "own"}
    scalekit.fit(nn.Linear(1, 1), ROWS, **job)
    with pytest.raises(errors.ScaleKitError, match=message):
        scalekit.fit(nn.Linear(1, 1), Unread(), **job, **settings)
