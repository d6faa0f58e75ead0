"""Parameters of other modules that a module reads without running them, as `nn.MultiheadAttention` reads its last layer's."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn


@contextmanager
def gathers_what_is_read(module: nn.Module) -> Generator[None, None, None]:
    """Has ZeRO-3 gather such a parameter when it is read, as its engine has it in a step.

    The engine itself would count a run outside of steps among them, and expect each step to gather in the same order.

    Args:
        module: with the engine's hooks.
    """
    kept = [each._parameters for each in module.modules() if hasattr(each._parameters, "_in_forward")]
    before = [each._in_forward for each in kept]
    for each in kept:
        each._in_forward = True
    try:
        yield
    finally:
        for each, was in zip(kept, before, strict=True):
            each._in_forward = was
