"""`load_module`: a LightningModule as its checkpoint has it, hyper-parameters included."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

import scalekit
from scalekit.errors import CheckpointError, ConfigError


class Tied(pl.LightningModule):
    """With hyper-parameters of several kinds, and a weight that has two names."""

    def __init__(self, width: int, optimizer: Any = None, names: tuple[str, ...] = ("a",)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen += 1
        return self.second(self.first(batch)).square().mean()

    def configure_optimizers(self) -> Any:
        return self.hparams.optimizer(self.parameters())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded_step = checkpoint["global_step"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> scalekit.Run:
    return scalekit.fit(
        Tied(3, partial(torch.optim.SGD, lr=0.1), names=("x", "y")),
        torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=4),
        strategy="single",
        max_steps=2,
        output_dir=str(tmp_path_factory.mktemp("runs") / "tied"),
    )


def test_it_is_the_one_that_was_trained(run: scalekit.Run) -> None:
    module = scalekit.load_module(Tied, run.checkpoint, optimizer=torch.optim.SGD)
    assert module.hparams.names == ("x", "y")
    assert module.hparams.width == 3
    assert module.second.weight is module.first.weight
    assert module.loaded_step == 2
    for name, tensor in run.module.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor), name


def test_it_has_the_precision_of_its_job(tmp_path: Path) -> None:
    data = torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=4)
    settings = {"precision": "bf16-true", "strategy": "single", "max_steps": 1, "output_dir": str(tmp_path / "run")}
    run = scalekit.fit(Tied(3, partial(torch.optim.SGD, lr=0.1)), data, **settings)
    module = scalekit.load_module(Tied, run.checkpoint, optimizer=None)
    assert module.first.weight.dtype == torch.bfloat16
    assert torch.equal(module.first.weight, run.module.first.weight)


def test_an_argument_that_no_file_holds_must_be_given(run: scalekit.Run) -> None:
    with pytest.raises(
        ConfigError, match=r"has optimizer by its text alone .*load_module\(Tied, checkpoint, optimizer="
    ):
        scalekit.load_module(Tied, run.checkpoint)


def test_another_model_is_refused(run: scalekit.Run) -> None:
    with pytest.raises(CheckpointError):
        scalekit.load_module(Tied, run.checkpoint, optimizer=None, width=4)


def test_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        scalekit.load_module(Tied, tmp_path)


def test_a_class_with_more_arguments_says_which(run: scalekit.Run) -> None:
    class Other(Tied):
        def __init__(self, width: int, more: int) -> None:
            super().__init__(width)

    with pytest.raises(ConfigError, match="more"):
        scalekit.load_module(Other, run.checkpoint, optimizer=None)
