"""A model that a checkpoint fills is built without memory for its weights, unless that would change something."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scalekit import models, weights
from tests.distributed import parity_cases as parity
from tests.tiny import save_model


class Tied(nn.Module):
    """One parameter in two places, registered by hand, and a buffer that is computed."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.randn(8, 8))
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.first.weight = weight
        self.second.weight = weight
        self.register_buffer("angles", torch.arange(8.0) / 8)


class DrawnBuffer(nn.Module):
    """Its buffer depends on what its parameters have drawn before, and no state dict names it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("features", torch.randn(8), persistent=False)


class ReadsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.scale = float(self.layer.weight.abs().max())


class CopiesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("start", self.layer.weight.detach().clone())


@pytest.mark.parametrize(
    "build", [parity.gpt2, parity.bert, parity.t5, parity.mlp, lambda: parity.llama(tied=True), Tied]
)
def test_parameters_have_no_memory_and_buffers_have_their_values(build: Callable[[], nn.Module]) -> None:
    built, expected = weights.build_to_fill(build), build()
    assert built is not None
    assert all(parameter.is_meta for parameter in built.parameters())
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in expected.named_parameters()]
    assert len(weights.ties(built)) == len(weights.ties(expected))
    for (name, buffer), (_, value) in zip(built.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(buffer, value), name


@pytest.mark.parametrize("build", [DrawnBuffer, ReadsItself, CopiesItself, lambda: 1 / 0])
def test_what_would_come_out_otherwise_is_built_for_real(build: Callable[[], nn.Module]) -> None:
    assert weights.build_to_fill(build) is None
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_named_model_reads_no_weights(tmp_path: Path) -> None:
    source = models.resolve(save_model(tmp_path)).source
    (tmp_path / "model.safetensors").unlink()
    assert not isinstance(source, nn.Module)
    assert weights.build_to_fill(source) is not None
    with pytest.raises(OSError, match=r"model\.safetensors"):
        source()


def test_a_builder_that_reads_weights_by_itself(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path)
    built = weights.build_to_fill(lambda: AutoModelForCausalLM.from_pretrained(folder))
    assert built is None or all(parameter.is_meta for parameter in built.parameters())
