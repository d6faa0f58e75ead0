"""Which models' traces are kept on disk: those whose every part a library made, under a key that any change to them changes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from scalekit.models.resolve import resolve_model
from scalekit.planning.profiling.model_inputs import profiled_model

IDS = torch.ones(2, 4, dtype=torch.long)


def llama(**changes: object) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": 32, "max_position_embeddings": 16, **changes}))


def key(model: nn.Module | Callable[[], nn.Module], length: int = 4) -> str | None:
    ids = IDS[:, :length]
    return profiled_model(resolve_model(model), {"input_ids": ids, "labels": ids}, samples=2).key


def without_a_layer(model: LlamaForCausalLM) -> None:
    model.model.layers = model.model.layers[:1]


def frozen(model: LlamaForCausalLM) -> None:
    model.model.embed_tokens.requires_grad_(False)


def longer(model: LlamaForCausalLM) -> None:
    model.resize_token_embeddings(40)


def test_a_function_and_a_module_of_the_same_model_are_the_same() -> None:
    assert key(llama) == key(llama()) is not None


@pytest.mark.parametrize("change", [without_a_layer, frozen, longer])
def test_what_was_changed_after_it_was_built_is_another(change: Callable[[LlamaForCausalLM], None]) -> None:
    changed = llama()
    change(changed)
    assert key(changed) not in (None, key(llama))


def test_other_sizes_and_shapes_are_others() -> None:
    assert len({key(llama), key(llama(attention_dropout=0.5)), key(llama(num_key_value_heads=1)), key(llama, 3)}) == 4


class Own(nn.Linear):
    pass


def own_part(model: LlamaForCausalLM) -> None:
    model.lm_head = Own(16, 32, bias=False)


def own_forward(model: LlamaForCausalLM) -> None:
    model.lm_head.forward = lambda hidden: hidden @ model.lm_head.weight.T  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [own_part, own_forward])
def test_code_of_the_users_is_not_kept(change: Callable[[LlamaForCausalLM], None]) -> None:
    changed = llama()
    change(changed)
    assert key(changed) is None
    assert key(nn.Sequential(nn.Linear(1, 1), Own(1, 1))) is None
