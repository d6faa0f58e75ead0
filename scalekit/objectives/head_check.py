"""Whether a language model's loss may be computed of its hidden states: where that comes to what the model's own is.

A model may do with its logits what its configuration does not say, or add to its loss, and no number of a first batch shows a
bias that is still zero. So a row is run as the model has it, in training: each function is noted by which logits come of the
head's output, and the cross-entropy of those logits is compared with the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scalekit.distributed.world import World, all_gather_object
from scalekit.objectives.counts import Entries
from scalekit.objectives.head_loss import Head
from scalekit.objectives.logged_sums import is_near
from scalekit.objectives.model_loss import ModelLoss
from scalekit.objectives.objective import called
from scalekit.objectives.undisturbed import EXACT_TOLERANCE, undisturbed
from scalekit.utils.log import detail, log
from scalekit.utils.randomness import keyed
from scalekit.utils.torch_internals import tree_iter

_SAME_NUMBERS = {
    *("__get__", "__getitem__", "to", "float", "type", "type_as", "contiguous", "view", "reshape", "clone", "detach"),
    *("squeeze", "unsqueeze", "dim", "size"),
}
"""Functions after which logits are what they were."""

_TRANSFORMS = {"__mul__", "mul", "__rmul__", "__truediv__", "div", "tanh"}
"""Those of `Transform`."""

_CROSS_ENTROPY = {"cross_entropy", "nll_loss", "log_softmax"}


def check_head(strategy: Any, module: Any, batch: Any, row: Any, own: float, world: World) -> None:
    """Tells a module's objective whether its loss may be computed in parts, and says why where it may not; every rank calls it.

    Args:
        strategy: the trainer's strategy.
        module: a `ScaleModule` with the loss of its model.
        batch: of a few rows.
        row: one of them, as a batch.
        own: the loss of the batch by the model itself.
        world: the job's processes.
    """
    objective: ModelLoss = module.objective
    head = objective.head(module.model, batch)
    if head is None:
        return
    reasons: list[str | None] = []
    # Ranks decide together before each run, in which they may wait for each other.
    for how, reason in (
        ("in training", partial(_in_training, strategy, module, head, row)),
        ("without labels", partial(_in_parts, strategy, module, head, batch, own)),
    ):
        if not any(reasons):
            with strategy.standing_in(), keyed(0):
                reasons = all_gather_object(_caught(reason, how), world)
    objective.in_parts = not any(reasons)
    if objective.in_parts:
        detail(
            "loss",
            f"of hidden states: the logits of a micro-batch are there in up to {head.parts} parts, one at a time",
        )
    else:
        why = next(filter(None, reasons))
        log("loss", f"of whole logits, as the model has it, and the plan has reckoned with parts: {why}")


def _caught(reason: Callable[[], str | None], how: str) -> str | None:
    """A reason; what a model raises is one."""
    try:
        return reason()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"it fails {how}: {type(error).__name__}: {error}"


def _in_training(strategy: Any, module: Any, head: Head, row: Any) -> str | None:
    """Why a row in training says that the loss cannot be computed in parts; None where it does not."""
    objective: ModelLoss = module.objective
    found: str | None = strategy.run(lambda: _difference(objective, module.model, head, strategy.to_device(row)))
    return found


def _in_parts(strategy: Any, module: Any, head: Head, batch: Any, own: float) -> str | None:
    """Why the loss in parts says so."""
    objective: ModelLoss = module.objective

    def loss_of_parts(strategy: Any, module: Any, batch: Any) -> Tensor:
        loss: Tensor = strategy.run(lambda: objective.of_parts(head, module.model, batch).loss)
        return loss

    module.eval()
    loss_of, tolerance = undisturbed(strategy, module, loss_of_parts)
    loss = loss_of(batch)
    if is_near(loss, own, tolerance):
        return None
    return f"without labels its loss would be {loss:.6g}, and it is {own:.6g}"


def _difference(objective: ModelLoss, model: nn.Module, head: Head, row: Any) -> str | None:
    """What a model does beyond its head, its configuration and a cross-entropy; None where that is all."""
    functions = _AfterHead()
    handle = head.layer.register_forward_hook(lambda *run: functions.begin(run[-1]))
    try:
        with functions:
            output = called(model.train(), row)
    finally:
        handle.remove()
    logits, loss = getattr(output, "logits", None), getattr(output, "loss", None)
    expected = (*row["labels"].shape, head.layer.out_features)
    if not isinstance(logits, Tensor) or not isinstance(loss, Tensor) or logits.shape != expected:
        return "it gives no logits of each label, for all classes of its head"
    names = functions.of(logits)
    if names is None:
        return "its logits are not those of its head"
    usual = _SAME_NUMBERS | (_TRANSFORMS if head.transform.changes else set())
    if more := names - usual:
        return f"it does more with its logits than its configuration says: {', '.join(sorted(more))}"
    if more := (functions.of(loss) or frozenset({"nothing"})) - usual - _CROSS_ENTROPY:
        return f"its loss is more than the cross-entropy of its logits: {', '.join(sorted(more))}"
    for is_shifted in (objective.is_shifted, not objective.is_shifted):
        found = list(_cross_entropies(logits, row["labels"], is_shifted))
        if any(is_near(each, float(loss), EXACT_TOLERANCE) for each in found):
            if isinstance(objective.count, Entries):
                objective.count = replace(objective.count, shifted=is_shifted)
            return None
    (cross_entropy, *_) = _cross_entropies(logits, row["labels"], objective.is_shifted)
    return f"its loss is {float(loss):.6g}, and the cross-entropy of its logits {cross_entropy:.6g}"


def _cross_entropies(logits: Tensor, labels: Tensor, is_shifted: bool) -> Iterator[float]:
    """In float32, and in the logits' own type, as some models have it."""
    if is_shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    for each in (logits.float(), logits):
        yield float(nn.functional.cross_entropy(each.flatten(0, 1), labels.flatten()))


class _AfterHead(torch.overrides.TorchFunctionMode):
    """Notes by which functions tensors have come of a head's output."""

    def __init__(self) -> None:
        super().__init__()
        # With the tensors, so that no other has their identity.
        self._known: dict[int, tuple[Tensor, frozenset[str]]] = {}

    def begin(self, output: Tensor) -> None:
        """Notes the head's output itself."""
        self._known[id(output)] = output, frozenset()

    def of(self, tensor: Tensor) -> frozenset[str] | None:
        """The functions' names; None of a tensor that does not come of the head's output."""
        return self._known[id(tensor)][1] if id(tensor) in self._known else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_iter((args, kwargs or {})) if isinstance(each, Tensor)]
        made = func(*args, **(kwargs or {}))
        before = [names for each in given if (names := self.of(each)) is not None]
        if before:
            names = frozenset({getattr(func, "__name__", str(func))}).union(*before)
            # What a function changes in its place it may not return.
            changed = args[:1] if getattr(func, "__name__", "") == "__setitem__" else (kwargs or {}).get("out")
            for each in tree_iter((made, changed)):
                if isinstance(each, Tensor):
                    self._known[id(each)] = each, names
        return made
