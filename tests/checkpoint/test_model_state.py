"""What of a model a checkpoint holds: all that changes, each tensor once."""

import peft
import pytest
import torch
from torch import nn

from scalekit.checkpoint.format import ADAPTER, REST, WEIGHTS
from scalekit.checkpoint.model_state import ModelFormat, TensorsByFile
from scalekit.errors import CheckpointError
from scalekit.training.scale_module import ScaleModule
from tests.support import parity_cases as parity


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(x))


class WithState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}


def tensors_by_file(model: nn.Module) -> TensorsByFile:
    return ModelFormat(ScaleModule(model)).tensors_by_file()


def test_tied_tensors_are_held_once() -> None:
    found = tensors_by_file(parity.gpt2())
    assert found.keys() == {WEIGHTS}
    assert "transformer.wte.weight" in found[WEIGHTS]
    assert "lm_head.weight" not in found[WEIGHTS]


def test_beside_an_adapter_stands_what_else_changes() -> None:
    adapted = peft.get_peft_model(Normed(), peft.LoraConfig(r=2, target_modules=["layer"]))
    found = tensors_by_file(adapted)
    assert {name.split(".")[-2] for name in found[ADAPTER]} == {"lora_A", "lora_B"}
    assert {name.split(".")[-1] for name in found[REST]} == {"running_mean", "running_var", "num_batches_tracked"}


def test_several_adapters_are_refused() -> None:
    adapted = peft.get_peft_model(parity.gpt2(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.add_adapter("other", peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(CheckpointError, match="the adapters default, other"):
        tensors_by_file(adapted)


def test_state_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(CheckpointError, match="_extra_state of WithState is a dict"):
        tensors_by_file(WithState(1, 1))
