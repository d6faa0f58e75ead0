"""The moving average is the formula's, and a folder that opens by itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2LMHeadModel

import scalekit
from scalekit import errors
from tests.support import parity_cases as parity

DECAY = 0.8


class ByHand(Callback):
    """The formula, on the whole model."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.averages = {name: p.detach().clone() for name, p in module.model.named_parameters()}

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        for name, p in module.model.named_parameters():
            self.averages[name] = DECAY * self.averages[name] + (1 - DECAY) * p.detach()


def test_the_average_is_the_formulas(tmp_path: Path) -> None:
    hand = ByHand()
    run = scalekit.fit(
        parity.gpt2,
        torch.utils.data.DataLoader(parity.causal_rows(), collate_fn=parity.collate, shuffle=True),
        global_batch_size=4,
        max_steps=5,
        learning_rate=0.1,
        ema_decay=DECAY,
        callbacks=[hand],
        output_dir=str(tmp_path),
    )
    assert run.checkpoint is not None
    found = load_file(run.checkpoint / "average" / "model.safetensors")
    assert found.keys() == hand.averages.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, hand.averages[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, load_file(run.checkpoint / "model" / "model.safetensors")[name])
    _, info = GPT2LMHeadModel.from_pretrained(run.checkpoint / "average", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_what_is_not_trained_is_in_it_as_it_is(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        return model

    run = scalekit.fit(
        build, parity.number_rows(), loss=nn.MSELoss(), global_batch_size=4, max_steps=3, ema_decay=DECAY,
        output_dir=str(tmp_path),
    )  # fmt: skip
    assert run.checkpoint is not None
    weights, averages = (load_file(run.checkpoint / kind / "model.safetensors") for kind in ("model", "average"))
    same = {name for name in weights if torch.equal(weights[name], averages[name])}
    assert same == {"0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_a_decay_lies_between() -> None:
    with pytest.raises(errors.ConfigError, match=r"ema_decay=1\.5 must be a number between 0 and 1"):
        scalekit.fit(nn.Linear(1, 1), [{"x": [1.0]}], max_steps=1, ema_decay=1.5)
