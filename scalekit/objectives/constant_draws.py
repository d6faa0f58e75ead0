"""Random draws that are the same for each row, so that rows run together and apart can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scalekit.utils.torch_internals import TorchDispatchMode


class ConstantDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives each random tensor one value throughout, so that a row's does not depend on the rows beside it.

    Floats are a half, which is as good a mask as it is noise. Whole numbers lie in the middle of their range. An order that is
    drawn stays one: it couples samples.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return out
        if func is torch.ops.aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(out[1])
        if isinstance(out, Tensor) and out.is_floating_point():
            return out.fill_(0.5)
        if func.overloadpacket is torch.ops.aten.randint:
            bounds = [each for each in args if isinstance(each, int)]
            return out.fill_(sum(bounds) // 2)
        return out
