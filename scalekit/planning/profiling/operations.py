"""What an operation does: its kind, as far as its speed on a CPU goes, and its floating-point operations."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import sdpa_backward_flop, sdpa_flop

from scalekit.utils.torch_internals import tree_map_only


class Sort(IntEnum):
    """What an operation does, as far as its speed on a CPU goes."""

    PLAIN = 0
    """Reads and writes memory, and computes little."""
    PRODUCT = 1
    ATTENTION = 2
    CONVOLUTION = 3
    FUNCTION = 4
    """Of each element, by a series: exp, tanh, gelu."""
    NORMALIZATION = 5
    """Means, variances and softmax over rows, or maxima over windows."""
    RANDOM = 6
    STRIDED = 7
    """Gathers, scatters, sums up or copies what does not lie in order."""


_SORTS = {
    Sort.FUNCTION: "elu|erf|erfc|erfinv|exp|expm1|gelu|log|log1p|log2|log10|log_sigmoid_forward|logit|mish|rsqrt|selu|sigmoid|"
    "silu|sin|cos|softplus|sqrt|tan|tanh",
    Sort.NORMALIZATION: "_softmax|_log_softmax|_safe_softmax|native_layer_norm|native_batch_norm|native_group_norm|"
    "_fused_rms_norm|_native_batch_norm_legit|batch_norm|cumsum|logsumexp|max_pool2d_with_indices|max_pool3d_with_indices|"
    "sort|topk|var|var_mean",
    Sort.RANDOM: "bernoulli|multinomial|native_dropout|normal|rand|randint|randn|rand_like|randn_like|uniform",
    Sort.STRIDED: "_to_copy|amax|amin|avg_pool2d|_adaptive_avg_pool2d|cat|clone|constant_pad_nd|copy|embedding|embedding_dense|"
    "gather|index|index_add|index_put|_index_put_impl|index_select|max|mean|min|repeat|scatter|scatter_add|select|"
    "select_scatter|slice|slice_scatter|stack|sum|upsample_bilinear2d|upsample_nearest2d",
}


_SORT_OF = {name: sort for sort, names in _SORTS.items() for name in names.split("|")}


def sort(name: str, has_formula: bool) -> Sort:
    """An operation's, by its name in torch; a backward one's, or one in place, is that of what it belongs to."""
    if has_formula:
        is_attention, is_convolution = "dot_product" in name or "attention" in name, "convolution" in name
        return Sort.ATTENTION if is_attention else Sort.CONVOLUTION if is_convolution else Sort.PRODUCT
    base = name.removesuffix("_data").removesuffix("_backward").removesuffix("_")
    return _SORT_OF.get(base, Sort.PLAIN)


def grouped_in_half(func: Any, args: Any, kwargs: Any) -> Any:
    """Products of groups run in float32 on CPUs, and only in half precision on fake tensors; shapes are the same."""
    low = tree_map_only(Tensor, lambda t: t.bfloat16() if t.dtype is torch.float32 else t, (args, kwargs))
    out = func(*low[0], **low[1])
    return out.float() if args[0].dtype is torch.float32 else out


GROUPED = (torch.ops.aten._grouped_mm.default,)


def _grouped_flops(left: Any, right: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Each row of a group meets its own matrix, as if there were one matrix; a gradient of weights has two matrices in."""
    return int(2 * left.shape[-2] * left.shape[-1] * right.shape[-1])


def _flash_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop(query.shape, key.shape, value.shape))


def _flash_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop(grad.shape, query.shape, key.shape, value.shape))


# What PyTorch's own counter leaves out.
MORE_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward_flops,
}
