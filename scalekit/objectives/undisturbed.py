"""Losses of a job's own model outside of its steps, as exactly as its types allow, which leave the module as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""How far two losses that are the same may differ, as a share of them, by the type that computes."""

EXACT_TOLERANCE = 1e-5

LossOf = Callable[[Any], float]


def undisturbed(strategy: Any, module: Any, loss: Callable[[Any, Any, Any], Tensor]) -> tuple[LossOf, float]:
    """What gives the loss of a batch; and how far two that are the same may differ, as a share of them.

    Args:
        strategy: the trainer's strategy.
        module: the LightningModule.
        loss: of the strategy, the module and a batch.
    """
    dtypes = strategy.dtypes
    # Autocast is left off where each rank has all parameters, and in float32.
    is_exact = dtypes.compute == torch.float32 or (dtypes.parameters == torch.float32 and not strategy.is_shared)

    def loss_of(batch: Any) -> float:
        moved = strategy.to_device(batch)
        autocast = torch.autocast(strategy.root_device.type, enabled=False) if is_exact else nullcontext()
        with strategy.standing_in(), autocast:  # what a module keeps of one batch says nothing of the next one
            return float(loss(strategy, module, moved).double())

    return loss_of, EXACT_TOLERANCE if is_exact else _TOLERANCE[dtypes.compute]
