"""The Lightning plugins that keep what a precision's name promises."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.plugins.precision import Precision as LightningPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning_utilities import apply_to_collection
from torch import Tensor, nn
from torch.optim import Optimizer

from scalekit.config.precision import dtypes_for
from scalekit.errors import ConfigError
from scalekit.strategies.buffer_sync import batch_norms


class Plugin(LightningPrecision):
    """What all precisions share: parameters as promised, and the gradients' true global norm, met while clipping."""

    gradient_norm: Tensor | float | None = None

    def convert_module(self, module: nn.Module) -> nn.Module:
        check_norms(module, str(self.precision))
        check_width(module, str(self.precision))
        return cast_parameters(module, dtypes_for(self.precision).parameters)

    def convert_input(self, data: Any) -> Any:
        dtype = dtypes_for(self.precision).compute
        if dtype is torch.float32 or not self.precision.endswith("-true"):
            return data
        return apply_to_collection(data, Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t)

    def module_init_context(self) -> AbstractContextManager[Any]:
        """Models are always built in float32, so that one seed gives the same weights whatever the precision."""
        return nullcontext()

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        if self.precision == "16-mixed" and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ConfigError(
                "'16-mixed' scales losses, which fused optimizers undo too late for clipping: use fused=False"
            )
        parameters = [p for p in self.main_params(optimizer) if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.gradient_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if clip_val <= 0:
            return
        if gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
            nn.utils.clip_grad_value_(parameters, clip_val)
        else:
            nn.utils.clip_grads_with_norm_(parameters, clip_val, self.gradient_norm)


class TruePrecision(Plugin):
    """Parameters, compute and all else in one type.

    Args:
        precision: ``32-true`` or ``bf16-true``.
    """

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.precision: Any = precision


class AutocastPrecision(Plugin, MixedPrecision):
    """float32 parameters, with matrix products in half precision by `torch.autocast`.

    Args:
        precision: ``bf16-mixed`` or ``16-mixed``; the latter scales its losses.
        device: ``"cuda"`` or ``"cpu"``.
    """


def plugin(precision: str, device: str) -> Plugin:
    """The Lightning plugin for a precision."""
    if precision.endswith("-true"):
        return TruePrecision(precision)
    return AutocastPrecision(precision, device)  # type: ignore[arg-type]


def check_norms(module: nn.Module, precision: str) -> None:
    """Batch norms add up what they have seen, for which 16 bits are too few, and torch takes no others beside such weights.

    Raises:
        ConfigError: the model has some, and its parameters would have 16 bits.
    """
    if precision == "bf16-true" and batch_norms(module):
        raise ConfigError("precision='bf16-true' leaves batch norms too few bits: take 'bf16-mixed'")


def check_width(module: nn.Module, precision: str) -> None:
    """No precision computes in 64 bits: to make such a model's parameters narrower is for its user to say.

    Raises:
        ConfigError: a parameter has 64 bits.
    """
    wide = next(
        (name for name, each in module.named_parameters() if each.dtype in (torch.float64, torch.complex128)), None
    )
    if wide is not None:
        raise ConfigError(
            f"the parameter {wide!r} has 64 bits, and precision={precision!r} computes in 32 at most: "
            "call .float() on the model"
        )


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts floating-point parameters, in place; buffers, such as rotary frequencies, keep their precision."""
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return module
