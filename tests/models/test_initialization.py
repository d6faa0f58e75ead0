"""A model that a checkpoint fills is built without memory for its weights, unless that would change something."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

import scalekit
from scalekit.models.initialization import build_to_fill, tied_names
from scalekit.models.resolve import resolve_model
from tests.support import parity_cases as parity
from tests.support.language_model import save_model
from tests.support.legs import EndedError, Ends


class Tied(nn.Module):
    """One parameter in two places, registered by hand, and a buffer that is computed."""

    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.empty(8, 8))
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


class DrawnAttribute(nn.Module):
    """What it draws is no buffer, and depends on what its parameters have drawn before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.order = torch.randperm(8).tolist()


class KeepsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight = nn.Parameter(torch.zeros(8))
        self.weight, self.all = weight, [weight]


class DerivesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.scale = self.weight.detach() * 2


class ReadsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.scale = self.layer.weight.abs().max().item()


class CopiesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("start", self.layer.weight.detach().clone())


@pytest.mark.parametrize(
    "build", [parity.gpt2, parity.bert, parity.t5, parity.mlp, lambda: parity.llama(tied=True), Tied]
)
def test_parameters_have_no_memory_and_buffers_have_their_values(build: Callable[[], nn.Module]) -> None:
    built, expected = build_to_fill(build), build()
    assert built is not None
    assert all(parameter.is_meta for parameter in built.parameters())
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in expected.named_parameters()]
    assert len(tied_names(built)) == len(tied_names(expected))
    for (name, buffer), (_, value) in zip(built.named_buffers(), expected.named_buffers(), strict=True):
        assert torch.equal(buffer, value), name


@pytest.mark.parametrize(
    "build", [DrawnBuffer, DrawnAttribute, KeepsItself, DerivesItself, ReadsItself, CopiesItself, lambda: 1 / 0]
)
def test_what_would_come_out_otherwise_is_built_for_real(build: Callable[[], nn.Module]) -> None:
    assert build_to_fill(build) is None
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_named_model_reads_no_weights_and_all_else(tmp_path: Path) -> None:
    """Of a model that was saved in bfloat16, and generates in a way of its own."""
    model = parity.llama(tied=True).to(torch.bfloat16)
    model.generation_config.repetition_penalty = 1.5
    model.save_pretrained(tmp_path)
    source = resolve_model(str(tmp_path)).source
    assert not isinstance(source, nn.Module)
    expected = source()
    (tmp_path / "model.safetensors").unlink()
    built = build_to_fill(source)
    assert built is not None
    assert {t.dtype for t in (*built.parameters(), *built.buffers())} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(built.buffers(), expected.buffers(), strict=True))
    assert built.generation_config.to_dict() == expected.generation_config.to_dict()
    assert built.config.to_dict() == expected.config.to_dict()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        source()


def test_a_builder_that_reads_weights_by_itself(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path)
    built = build_to_fill(lambda: AutoModelForCausalLM.from_pretrained(folder))
    assert built is None or all(parameter.is_meta for parameter in built.parameters())


def test_a_resumed_job_holds_no_model_that_it_does_not_need(tmp_path: Path) -> None:
    """The first start builds weights, the next one, which a checkpoint fills, none; both come to the same."""
    built_with_values = []

    def builder() -> nn.Module:
        model = parity.mlp()
        built_with_values.append(not next(model.parameters()).is_meta)
        return model

    def train(folder: Path, *callbacks: Callback) -> scalekit.Run:
        return scalekit.fit(
            builder,
            parity.number_rows(),
            loss=nn.MSELoss(),
            max_steps=4,
            checkpoint_every=2,
            callbacks=callbacks,
            output_dir=str(folder),
        )

    with suppress(EndedError):
        train(tmp_path / "part", Ends(2))
    assert built_with_values[-1]
    built_with_values.clear()
    part = train(tmp_path / "part")
    assert built_with_values
    assert not any(built_with_values)
    whole = train(tmp_path / "whole")
    for one, two in zip(part.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, two)
