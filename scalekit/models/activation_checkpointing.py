"""Activation checkpointing: a block's activations are not kept for the backward pass but computed again (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint

from scalekit.errors import ConfigError
from scalekit.models.initialization import repeated_blocks


def can_recompute(model: nn.Module) -> bool:
    """Whether a model has repeated blocks."""
    return bool(_own_switches(model) or repeated_blocks(model))


def recompute_blocks(model: nn.Module, again: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
    """Makes every repeated block of a model keep its input alone.

    A Hugging Face model does it by its own switch, which also turns off what does not go with it (caches of keys and
    values).

    Args:
        model: to change.
        again: what surrounds a block that is computed again, beside autocast, which is as it was.

    Raises:
        ConfigError: the model has no repeated blocks.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), again()

    switches = _own_switches(model)
    for each in switches:
        each.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    if switches:
        return
    found = repeated_blocks(model)
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no repeated blocks that activation checkpointing could recompute"
        )
    for block in found:
        checkpoint(block, context_fn=contexts)


def _own_switches(model: nn.Module) -> list[Any]:
    """The outermost Hugging Face models that know how to do it."""
    if getattr(model, "supports_gradient_checkpointing", False):
        return [model]
    return [found for child in model.children() for found in _own_switches(child)]
