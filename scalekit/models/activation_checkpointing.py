"""Activation checkpointing: a block's activations are not kept for the backward pass but computed again (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final

import torch
from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from scalekit.errors import ConfigError
from scalekit.models.initialization import repeated_blocks

_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def can_recompute(model: nn.Module) -> bool:
    """Whether a model has repeated blocks."""
    return bool(_own_switches(model) or repeated_blocks(model))


def recompute_blocks(
    model: nn.Module, how: str = "full", again: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    """Makes every repeated block of a model keep little for its backward pass.

    A Hugging Face model does it by its own switch, which also turns off what does not go with it (caches of keys and
    values).

    Args:
        model: to change.
        how: ``"full"`` keeps a block's input alone, ``"selective"`` the results of attention and every second product too.
        again: what surrounds a block that is computed again, beside autocast, which is as it was.

    Raises:
        ConfigError: the model has no repeated blocks.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        if how == "full":
            return nullcontext(), again()
        kept, computed = create_selective_checkpoint_contexts(_Policy())  # type: ignore[no-untyped-call]
        return kept, _both(computed, again())

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


@final
class _Policy:
    """Keeps what is dear to compute and cheap to keep: attention, and the first, third, ... matrix product of a block."""

    def __init__(self) -> None:
        self._products = {False: 0, True: 0}  # met in the forward pass, and when it is computed again

    def __call__(self, context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if operation in _PRODUCTS:
            self._products[context.is_recompute] += 1
            is_kept = self._products[context.is_recompute] % 2 == 1
        else:
            # What draws is computed again, for what comes behind it to draw the same as before.
            is_kept = operation in _ATTENTION and not _draws(operation, args, kwargs)
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


def _draws(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an attention drops some of its weights at random."""
    given = dict(zip((each.name for each in operation._schema.arguments), args, strict=False)) | kwargs
    return bool(given.get("dropout_p"))


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Generator[None, None, None]:
    with one, other:
        yield


def _own_switches(model: nn.Module) -> list[Any]:
    """The outermost Hugging Face models that know how to do it."""
    if getattr(model, "supports_gradient_checkpointing", False):
        return [model]
    return [found for child in model.children() for found in _own_switches(child)]
