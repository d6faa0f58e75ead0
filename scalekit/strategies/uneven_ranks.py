"""What a rank does that has no rows left where others have some, under a strategy that needs all ranks for a step."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

_PLAIN = (list, dict, set, deque)
_OF_TORCH = frozenset(vars(nn.Module()))
_OF_DEEPSPEED = (
    "ds_",
    "_ds_",
    "pre_bwd_fn",
    "post_bwd_fn",
    "applied_pre_backward",
    "_external_params",
    "_original_parameters",
)
"""How the names begin of what it keeps in modules, and has to change while others run rows."""


def without_rows(batch: Any) -> Any:
    """A batch as it came, with no row in it; what is no tensor, list or mapping stays as it is."""
    if isinstance(batch, Tensor):
        return batch[:0] if batch.ndim else batch
    if isinstance(batch, Mapping):
        emptied = copy.copy(batch)
        for name, value in batch.items():
            emptied[name] = without_rows(value)  # type: ignore[index]
        return emptied
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(without_rows, batch))
    if isinstance(batch, (list, tuple)):
        holds_tensors = any(isinstance(each, (Tensor, Mapping, list, tuple)) for each in batch)
        return type(batch)(map(without_rows, batch)) if holds_tensors else type(batch)()
    return batch


@contextmanager
def as_it_was(module: nn.Module) -> Generator[None, None, None]:
    """Leaves a module as it was but for gradients, whatever a step does with it: modes, buffers, metrics, lists, counts.

    What the parts keep by themselves beside that stays, since libraries note in them what they have set up.

    Args:
        module: whose own attributes are put back, and those of torchmetrics' metrics in it. What lists hold is not copied.
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    modes = [(part, part.training) for part in module.modules()]
    kept = [_Attributes(part) for part in module.modules() if part is module or isinstance(part, Metric)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.data.copy_(before)  # unseen by autograd, whose backward pass is still to come
            for attributes in kept:
                attributes.restore()
        for part, mode in modes:
            part.training = mode


class _Attributes:
    """The attributes of a module, as they are now."""

    def __init__(self, part: nn.Module) -> None:
        self._part = part
        found = vars(part).items()
        self._values = {n: value for n, value in found if n not in _OF_TORCH and not n.startswith(_OF_DEEPSPEED)}
        self._contents = {name: copy.copy(value) for name, value in self._values.items() if type(value) in _PLAIN}
        self._tensors = {n: value.detach().clone() for n, value in self._values.items() if type(value) is Tensor}

    def restore(self) -> None:
        """Puts them back, in the same objects."""
        now = vars(self._part)
        for name, value in self._values.items():
            now[name] = value
            if name in self._tensors:
                value.data.copy_(self._tensors[name])
            elif name in self._contents:
                _refill(value, self._contents[name])


def _refill(container: Any, contents: Any) -> None:
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(contents)
    else:
        container.update(contents)
