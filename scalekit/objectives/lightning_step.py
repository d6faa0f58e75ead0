"""The loss of a LightningModule's own `training_step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from scalekit.errors import NoLossError
from scalekit.objectives.counts import ItemCount


@dataclass(frozen=True)
class Heard:
    """What a step would have logged.

    Attributes:
        value: a single number.
        reduced_by: ``"mean"``, ``"sum"``, ``"max"`` or ``"min"``.
    """

    value: float
    reduced_by: str


@final
class OwnStep:
    """What is known of it: what it is a mean over.

    Args:
        count: what it is taken for a mean over, until it is measured.
    """

    def __init__(self, count: ItemCount) -> None:
        self.count = count

    def loss(self, strategy: Any, module: LightningModule, batch: Any) -> Tensor:
        """Of a batch on the strategy's device; nothing is logged of it.

        Raises:
            NoLossError: the step returns none.
        """
        output = run(strategy, module, "training_step", batch)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            raise NoLossError("training_step returned no loss")
        return loss


def run(strategy: Any, module: LightningModule, name: str, batch: Any) -> Any:
    """Runs a step of a LightningModule's own on a batch on the strategy's device, and gives what it returns."""
    takes_place = is_param_in_hook_signature(getattr(module, name), "batch_idx", min_args=2)
    before, module._current_fx_name = module._current_fx_name, name
    try:
        return strategy.run_step(name, batch, *([0] if takes_place else []))
    finally:
        module._current_fx_name = before
