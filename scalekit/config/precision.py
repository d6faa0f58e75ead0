"""The types that a precision's name promises, under every strategy.

| name       | parameters | master | compute | reduction | optimizer state |
|------------|------------|--------|---------|-----------|-----------------|
| 32-true    | float32    | float32 | float32  | float32   | float32  |
| bf16-mixed | float32    | float32 | bfloat16 | float32   | float32  |
| 16-mixed   | float32    | float32 | float16  | float32   | float32  |
| bf16-true  | bfloat16   | none    | bfloat16 | bfloat16  | bfloat16 |
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from scalekit.config.names import PRECISIONS
from scalekit.errors import ConfigError, UnknownNameError
from scalekit.hardware import fastest_precision


def type_name(dtype: torch.dtype) -> str:
    """Such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Dtypes:
    """The types of everything that a step touches.

    Attributes:
        parameters: as the model holds them between steps.
        master: as the optimizer updates them; None where it updates the parameters in their own low precision.
        compute: of matrix products and convolutions.
        reduction: in which gradients are summed over ranks.
        optimizer_state: of the optimizer's moments.
    """

    parameters: torch.dtype
    master: torch.dtype | None
    compute: torch.dtype
    reduction: torch.dtype
    optimizer_state: torch.dtype

    def as_names(self) -> dict[str, str | None]:
        """The same, as text: ``"bfloat16"``, ``"float32"``."""
        return {name: None if t is None else type_name(t) for name, t in asdict(self).items()}


def dtypes_for(precision: str) -> Dtypes:
    """The types that a precision's name promises, under every strategy.

    Raises:
        UnknownNameError: no such precision.
    """
    single = torch.float32
    if precision == "bf16-true":
        half = torch.bfloat16
        return Dtypes(half, None, half, half, half)
    compute = {"32-true": single, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    if compute is None:
        raise UnknownNameError("precision", precision, (*PRECISIONS, "auto"))
    return Dtypes(single, single, compute, single, single)


def resolve_precision(precision: str, device: str) -> str:
    """Turns ``"auto"`` into a name: bf16-mixed where this machine computes bfloat16 clearly faster, else 32-true.

    Raises:
        UnknownNameError: no such precision.
        ConfigError: 16-mixed without a GPU.
    """
    if precision == "auto":
        return fastest_precision(device)
    dtypes_for(precision)
    if precision == "16-mixed" and device != "cuda":
        raise ConfigError("precision '16-mixed' needs a GPU; on a CPU use 'bf16-mixed' or '32-true'")
    return precision
