"""What a module and its optimizers may not do with one part of a global batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import Optimizer

from scalekit.errors import ConfigError, ModelError


def check_may_skip(called: str, parts: int) -> None:
    """Whether a `training_step` may leave out its batch.

    Args:
        called: the name of the module's class.
        parts: in how many its global batch is run.

    Raises:
        ModelError: the batch is a part of a global batch, whose loss would be divided by rows that it does not have.
    """
    if parts > 1:
        raise ModelError(
            f"{called}.training_step returned None for a part of a global batch, which leaves its rows "
            "out after they were counted. Return a loss, such as 0 times the model's outputs, or train on one process with "
            "micro_batch_size=global_batch_size"
        )


def check_closures(optimizers: Iterable[Optimizer], parts: int) -> None:
    """Whether optimizers may evaluate their closure several times, as LBFGS does.

    Args:
        optimizers: torch's own.
        parts: in how many a global batch is run.

    Raises:
        ConfigError: the closure is a part of the global batch alone, or its number of evaluations could differ by rank.
    """
    if parts > 1 and any(isinstance(each, torch.optim.LBFGS) for each in optimizers):
        raise ConfigError(
            f"LBFGS evaluates the loss several times a step, and the global batch is in {parts} parts: train on one "
            "process with micro_batch_size=global_batch_size, or take another optimizer"
        )
