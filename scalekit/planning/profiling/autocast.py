"""Mixed precision on fake CPU tensors, as a CPU or a GPU would have it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def autocast(compute: torch.dtype, like_a_gpu: bool, keeps_casts: bool) -> Iterator[None]:
    """Mixed precision on fake CPU tensors, in a forward pass.

    Args:
        compute: the lower type.
        like_a_gpu: whether the operations that a GPU's autocast keeps in float32 stay so.
        keeps_casts: whether parameters are cast once a forward pass (DeepSpeed's autocast) or at each use (Lightning's).
    """
    with torch.autocast("cpu", compute, cache_enabled=keeps_casts), OnGPU() if like_a_gpu else nullcontext():
        yield


_FLOAT_ON_GPU = {
    "layer_norm",
    "group_norm",
    "norm",
    "softmax",
    "log_softmax",
    "softmin",
    "softplus",
    "nll_loss",
    "cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "kl_div",
    "cosine_similarity",
    "cosine_embedding_loss",
    "exp",
    "expm1",
    "log",
    "log1p",
    "log2",
    "log10",
    "pow",
    "__pow__",
    "__rpow__",
    "reciprocal",
    "rsqrt",
    "sum",
    "prod",
    "cumsum",
    "cumprod",
    "cdist",
    "renorm",
}
"""PyTorch's list of operations that CUDA's autocast runs in float32 (torch.amp, "CUDA Ops that can autocast to float32")."""


class OnGPU(torch.overrides.TorchFunctionMode):
    """Has functions do on a CPU what they do on a GPU, as far as types and memory go.

    Inputs of `_FLOAT_ON_GPU` are cast to float32 under autocast, which does not do so by itself for CPUs. Attention is one
    kernel, dropout included; for CPUs there is none with dropout, and a score for each pair of positions would be kept.

    A backward pass turns modes off, and checkpointing brings autocast alone back for what it computes again.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            return func(*args, **(kwargs | {"dropout_p": 0.0} if "dropout_p" in kwargs else kwargs))
        if getattr(func, "__name__", "") not in _FLOAT_ON_GPU or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)

        def single(value: Any) -> Any:
            is_low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
            return value.float() if is_low else value

        with torch.autocast("cpu", enabled=False):
            return func(*map(single, args), **{name: single(value) for name, value in kwargs.items()})
