"""Whether a language model's loss may be computed of its hidden states: where that comes to what the model's own is.

A model may do with its logits what nobody reads off it, or add to its loss. So a few rows are run both ways, once, before the
first step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scalekit.distributed.world import World, broadcast_object
from scalekit.objectives.logged_sums import is_near
from scalekit.objectives.model_loss import ModelLoss
from scalekit.objectives.undisturbed import undisturbed
from scalekit.utils.log import detail, log
from scalekit.utils.randomness import keyed


def check_head(strategy: Any, module: Any, batch: Any, own: float | None, world: World) -> None:
    """Tells a module's objective whether its loss may be computed in parts, and why it may not; every rank calls it.

    Args:
        strategy: the trainer's strategy.
        module: a `ScaleModule` with the loss of its model.
        batch: of a few rows.
        own: the loss of the batch by the model itself; None where it is not known what that is a mean over.
        world: the job's processes.
    """
    objective: ModelLoss = module.objective
    head = None if own is None else objective.head(module.model, batch)
    if head is None or own is None:
        return

    def loss_of_parts(strategy: Any, module: Any, batch: Any) -> Tensor:
        loss: Tensor = strategy.run(lambda: objective.of_parts(head, module.model, batch).loss)
        return loss

    loss_of, tolerance = undisturbed(strategy, module, loss_of_parts)
    try:
        with strategy.standing_in(), keyed(0):
            module.eval()
            found = broadcast_object(loss_of(batch), world)
    except Exception as error:  # of a model that cannot do without labels
        log("loss", f"of whole logits, as the model has it: without labels it fails: {error}")
        return
    objective.in_parts = is_near(found, own, tolerance)
    if objective.in_parts:
        detail("loss", f"of hidden states: the logits of a micro-batch are there in {head.parts} parts, one at a time")
    else:
        log(
            "loss",
            f"of whole logits, as the model has it: of its head and hidden states it would be {found:.6g}, and it is "
            f"{own:.6g}. The plan has reckoned with parts of them",
        )
