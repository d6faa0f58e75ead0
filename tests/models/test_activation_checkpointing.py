"""Activation checkpointing changes no number, and computes again what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import scalekit
from scalekit.errors import ConfigError
from scalekit.models.activation_checkpointing import _Policy, recompute_blocks

HOW = ("none", "selective", "full")
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
LAYERS = 3


class Counts(TorchDispatchMode):
    """Counts matrix products, and attentions by one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.attentions = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in PRODUCTS
        self.attentions += "scaled_dot_product_flash_attention_for_cpu.default" in str(func)
        return func(*args, **(kwargs or {}))


def llama(dropout: float = 0.0) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        attention_dropout=dropout,
    )
    return transformers.LlamaForCausalLM(config)


def gpt2(dropout: float = 0.0) -> nn.Module:
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=32, **rates)
    )


class Block(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.wide, self.narrow, self.dropout = nn.Linear(32, 64), nn.Linear(64, 32), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.narrow(torch.relu(self.wide(x))))


class Plain(nn.Module):
    """Blocks of the user's own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
        self.blocks = nn.ModuleList(Block(dropout) for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def trained(build: Any, how: str, dropout: float) -> tuple[Counts, dict[str, Tensor]]:
    """What a step has computed, and its gradients."""
    torch.manual_seed(0)
    model = build(dropout).train()
    if how != "none":
        recompute_blocks(model, how)
    rows = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    with Counts() as counts:
        found = model(input_ids=rows, labels=rows, **({} if isinstance(model, Plain) else {"use_cache": False}))
        (found if isinstance(found, Tensor) else found.loss).backward()
    return counts, {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("build", [llama, gpt2, Plain])
def test_gradients_are_the_same_to_the_last_bit(build: Any, dropout: float) -> None:
    _, expected = trained(build, "none", dropout)
    for how in ("selective", "full"):
        _, found = trained(build, how, dropout)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), f"{how}: {name}"


@pytest.mark.parametrize(("build", "products"), [(llama, 7), (Plain, 2)])
def test_every_second_product_is_computed_again(build: Any, products: int) -> None:
    none, selective, full = (trained(build, how, 0.0)[0] for how in HOW)
    again = products - 1  # torch ends a block's recomputation before the last one, whose result nobody needs
    assert full.products - none.products == again * LAYERS
    assert selective.products - none.products == again // 2 * LAYERS


def test_attention_is_kept_by_the_selective_way() -> None:
    none, selective, full = (trained(llama, how, 0.0)[0] for how in HOW)
    assert (none.attentions, selective.attentions, full.attentions) == (LAYERS, LAYERS, 2 * LAYERS)


def test_attention_that_drops_is_computed_again() -> None:
    """Were it kept, what draws behind it in the block would draw other numbers than before."""

    class Forward:
        is_recompute = False

    for operation, before in (
        (torch.ops.aten._scaled_dot_product_flash_attention.default, 0),
        (torch.ops.aten._scaled_dot_product_efficient_attention.default, 2),
    ):
        inputs = [None] * (3 + before)
        assert _Policy()(Forward(), operation, *inputs, 0.0).name == "MUST_SAVE"
        assert _Policy()(Forward(), operation, *inputs, 0.1).name == "PREFER_RECOMPUTE"


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no repeated blocks"):
        recompute_blocks(nn.Linear(2, 2), "selective")


class InPlace(Plain):
    """Its blocks change a product's result in place."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.dropout = nn.ReLU(inplace=True)  # of the second product
            block.wide = nn.Sequential(nn.Linear(32, 64), nn.ReLU(inplace=True))


def test_a_product_that_is_changed_in_place_cannot_be_kept(tmp_path: Path) -> None:
    rows = [{"input_ids": torch.randint(0, 64, (8,)), "labels": torch.randint(0, 64, (8,))} for _ in range(8)]
    job = {"global_batch_size": 4, "max_steps": 1, "micro_batch_size": 4}
    with pytest.raises(ConfigError, match="changes one in place"):
        scalekit.fit(InPlace, rows, **job, activation_checkpointing="selective", output_dir=str(tmp_path / "one"))
    run = scalekit.fit(InPlace, rows, **job, activation_checkpointing="full", output_dir=str(tmp_path / "other"))
    assert len(run.history) == 1
