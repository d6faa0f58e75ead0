"""What callbacks have come to is saved and gone on with: early stopping counts on, evaluations come once, the best is kept."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from torch import nn

import scalekit
from scalekit import errors
from scalekit.checkpoint import load
from tests.support import parity_cases as parity
from tests.support import processes
from tests.support.legs import EndedError, Ends
from tests.support.processes import start


class GetsWorse(LightningModule):
    """Its held-out loss falls for three evaluations and rises from then on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 2)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.layer(batch["x"]), batch["y"])

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        step = self.global_step
        loss = torch.tensor(float(abs(step - 6)))
        self.log("held_out", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(folder: Path, *callbacks: Callback, **settings: Any) -> scalekit.Run:
    usual = {"max_steps": 20, "evaluate_every": 2, "checkpoint_every": 2, "global_batch_size": 4}
    rows = parity.number_rows()
    stopping = EarlyStopping("held_out", patience=3)
    return scalekit.fit(
        settings.pop("module", None) or GetsWorse(),
        torch.utils.data.DataLoader(rows[:40], collate_fn=parity.collate),
        validation=torch.utils.data.DataLoader(rows[40:], collate_fn=parity.collate),
        callbacks=[stopping, *callbacks],
        output_dir=str(folder),
        **{**usual, **settings},
    )


def lines(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in map(json.loads, (folder / name).read_text().splitlines())]


@pytest.mark.parametrize("step", [7, 8, 10])
def test_early_stopping_counts_on(step: int, tmp_path: Path) -> None:
    """The best is at step 6, so that the job ends with step 12, wherever it was stopped before."""
    whole = train(tmp_path / "whole")
    with suppress(EndedError):
        train(tmp_path / "part", Ends(step))
    part = train(tmp_path / "part")
    assert whole.history[-1]["step"] == 12
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert lines(tmp_path / "part", name) == lines(tmp_path / "whole", name)
    assert part.checkpoint is not None
    assert part.checkpoint.name == "step-00000012"


def test_the_best_and_the_last_are_kept(tmp_path: Path) -> None:
    train(tmp_path, keep_last=1, keep_best="loss")
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["step-00000006", "step-00000012"]


def test_a_metric_that_is_not_found_ends_the_job_before_its_first_step(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="keep_best='accuracy' is not found"):
        train(tmp_path, keep_last=1, keep_best="accuracy")


class Strange(GetsWorse):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation
        self.save_hyperparameters()


class Saving(Strange):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["activation"] = self.activation


def test_what_cannot_be_saved_shows_after_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(errors.CheckpointError, match=r"state.activation is a GELU"):
        train(tmp_path, checkpoint_every=None, module=Saving(nn.GELU()))
    assert [step for step, _ in lines(tmp_path, "metrics.jsonl")] == [1]


def test_hyperparameters_that_no_file_holds_are_kept_by_their_text(tmp_path: Path, capsys: Any) -> None:
    run = train(tmp_path, module=Strange(nn.GELU()), max_steps=2)
    assert "by their text alone: activation" in capsys.readouterr().out
    assert run.checkpoint is not None
    assert load.state(run.checkpoint)["hyper_parameters"] == {"activation": "GELU(approximate='none')"}


def test_what_others_save_stands_when_they_go_on(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"mine-{trainer.global_step}")
            assert (tmp_path / f"mine-{trainer.global_step}" / "MANIFEST.json").is_file()

    train(tmp_path / "run", Saves(), max_steps=3)


class Fails(GetsWorse):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 3:
            raise ValueError("a row that is not as the others")
        return super().training_step(batch, batch_idx)


def test_what_is_saved_on_an_exception_is_resumed_when_it_is_named(tmp_path: Path) -> None:
    def run(module: LightningModule, **settings: Any) -> scalekit.Run:
        rescue = OnExceptionCheckpoint(tmp_path)
        return train(tmp_path / "part", rescue, module=module, checkpoint_every=None, max_steps=6, **settings)

    with pytest.raises(ValueError, match="not as the others"):
        run(Fails())
    left = tmp_path / "on_exception.ckpt"
    with pytest.raises(
        errors.CheckpointError, match=rf"left {left}, and this is a new run: resume it by resume='{left}'"
    ):
        run(GetsWorse())
    run(GetsWorse(), resume=str(left))
    assert not left.exists()
    train(tmp_path / "whole", max_steps=6)
    assert lines(tmp_path / "part", "metrics.jsonl") == lines(tmp_path / "whole", "metrics.jsonl")


def test_what_fails_before_a_step_overwrites_nothing(tmp_path: Path, capsys: Any) -> None:
    class FailsAtOnce(Fails):
        def on_train_start(self) -> None:
            raise ValueError("a row that is not as the others")

    with pytest.raises(ValueError, match="not as the others"):
        train(tmp_path / "run", OnExceptionCheckpoint(tmp_path), module=FailsAtOnce())
    assert not (tmp_path / "on_exception.ckpt").exists()
    assert "nothing is saved on the exception" in capsys.readouterr().out


class SavesAnyTime(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / f"mine-{batch_idx}")


@pytest.mark.parametrize(
    ("callback", "error", "message"),
    [
        (SavesAnyTime(), errors.CheckpointError, "in the middle of a step"),
        (
            ModelCheckpoint(train_time_interval=timedelta(hours=1)),
            errors.ConfigError,
            "also in the middle of a step's 2 micro",
        ),
    ],
)
def test_the_middle_of_a_step_is_not_saved(
    callback: Callback, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(tmp_path, callback, micro_batch_size=2, max_steps=2)


@pytest.mark.parametrize("hook", ["setup", "on_sanity_check_start"])
def test_before_the_first_step_a_signal_ends_a_job_at_once(hook: str, tmp_path: Path) -> None:
    asks = type("Asks", (Callback,), {hook: lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)})
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(errors.PreemptedError, match="SIGTERM before the first step"):
        train(tmp_path, asks())
    assert signal.getsignal(signal.SIGTERM) == handler


EVERYBODY = """
import os, signal, sys
import lightning.pytorch as pl, torch, scalekit
from pathlib import Path
from torch import nn

number, folder = getattr(signal, sys.argv[1]), Path(sys.argv[2])

def below(process):
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from below(child)

class Asks(pl.Callback):
    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_step == 4 and not (folder / "asked").exists():
            (folder / "asked").touch()
            everybody = [*below(os.getpid()), os.getpid()]
            print("processes", len(everybody), flush=True)
            for each in everybody:
                os.kill(each, number)

rows = [{"x": torch.full((2,), float(i)), "y": torch.ones(1)} for i in range(40)]
scalekit.fit(
    nn.Linear(2, 1), rows, loss=nn.MSELoss(), max_steps=12, global_batch_size=4, num_workers=2, checkpoint_every=2,
    logger="wandb", callbacks=[Asks()], output_dir=str(folder / "run"),
)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_request_may_reach_every_process(name: str, tmp_path: Path) -> None:
    """As from SLURM: what reads rows, writes checkpoints and tracks the run is needed until the job has saved."""
    script = tmp_path / "job.py"
    script.write_text(EVERYBODY)

    def ended() -> tuple[int | None, str]:
        log = tmp_path / "log"
        code = start([script, name, tmp_path], log, environment={"WANDB_MODE": "offline"}).wait(240)
        return code, log.read_text(errors="replace")

    code, said = ended()
    assert code == 75, said
    asked = re.search(r"^processes (\d+)$", said, re.MULTILINE)
    assert asked is not None
    assert int(asked[1]) >= 5  # two that read rows, one that writes, W&B's, and the job
    assert (tmp_path / "run" / "checkpoints" / "step-00000005").is_dir()
    code, said = ended()
    assert code == 0, said
    assert [step for step, _ in lines(tmp_path / "run", "metrics.jsonl")] == list(range(1, 13))


def by_a_file(folder: Path) -> None:
    (folder / "STOP").touch()
    time.sleep(1.1)  # it is looked for once a second


def by_a_signal(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("ask", [by_a_file, by_a_signal])
def test_a_job_stops_when_it_is_asked_to(ask: Callable[[Path], None], tmp_path: Path) -> None:
    class Asks(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == 4:
                ask(tmp_path / "part")

    with pytest.raises(errors.PreemptedError) as caught:
        train(tmp_path / "part", Asks(), checkpoint_every=None)
    assert caught.value.code == 75
    assert [each.name for each in (tmp_path / "part" / "checkpoints").iterdir()] == ["step-00000005"]
    assert not (tmp_path / "part" / "STOP").exists()
    train(tmp_path / "part", checkpoint_every=None)
    train(tmp_path / "whole", checkpoint_every=None)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert lines(tmp_path / "part", name) == lines(tmp_path / "whole", name)


class StopsAnyTime(Callback):
    """In the middle of the third step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 9:
            trainer.should_stop = True


def test_a_job_that_a_callback_ends_ends_with_a_whole_step(tmp_path: Path) -> None:
    def run(name: str, *callbacks: Callback, **settings: Any) -> scalekit.Run:
        more = {"micro_batch_size": 1, "checkpoint_every": None, "max_steps": 6, **settings}
        return train(tmp_path / name, *callbacks, **more)

    ended, whole = run("ended", StopsAnyTime()), run("whole")
    assert ended.checkpoint is not None
    assert ended.checkpoint.name == "step-00000003"
    assert lines(tmp_path / "ended", "metrics.jsonl") == lines(tmp_path / "whole", "metrics.jsonl")[:3]
    assert whole.history[-1]["step"] == 6


ON_ONE_RANK = """
import os, sys
import torch, scalekit
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from tests.callbacks.test_user_callbacks import Fails

class FailsHere(Fails):
    def training_step(self, batch, batch_idx):
        return (super() if os.environ["RANK"] == "1" else super(Fails, self)).training_step(batch, batch_idx)

rows = [{"x": torch.ones(6), "y": torch.ones(2)}] * 40
scalekit.fit(FailsHere(), rows, strategy="ddp", global_batch_size=4, max_steps=6, output_dir=sys.argv[1],
             callbacks=[OnExceptionCheckpoint(sys.argv[2])])
"""


def test_an_exception_on_one_rank_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Which saves nothing: the other rank does not know of it."""
    script = tmp_path / "job.py"
    script.write_text(ON_ONE_RANK)
    command = [sys.executable, "-m", "scalekit", "launch", "--nproc=2", "--"]
    said = processes.run([*command, str(script), str(tmp_path / "run"), str(tmp_path)], 90, expect_failure=True)
    assert "a row that is not as the others" in said
    assert "on_exception.ckpt is not saved: where an exception has ended a job" in said
    assert not (tmp_path / "on_exception.ckpt").exists()
