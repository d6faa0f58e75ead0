"""What this machine's CPU reaches in the kinds of operations that steps are made of, measured once and kept.

A product's rate says little of the rest: attention's kernel reaches half of it, an exponential a quarter of what memory gives,
and a random number takes longer than either. Nor does it say what Python and autograd take for an operation, however small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from scalekit.hardware.measure import Run, Runs, kept, usual_seconds

KERNELS = ("attention", "convolution", "reordering", "function", "normalization", "random", "strided", "dispatch")
"""attention, convolution: FLOP/s in float32. reordering: bytes a second of what goes into and comes out of small convolutions,
in the time that arithmetic leaves, since oneDNN brings it into an order of its own and back. function: bytes a second, of which
half are read and half written, by transcendental functions; so normalization, random numbers, and strided copies. dispatch:
seconds of an operation of a training step that computes next to nothing, in Python, autograd and torch."""

DISPATCHED = 49
"""Operations of the step that `dispatch` is measured by, as a trace counts them."""


_HEADS, _IMAGE, _KERNEL, _SMALL, _FILTERS = (
    (8, 8, 64, 64),
    (8, 64, 16, 16),
    (64, 64, 3, 3),
    (16, 128, 2, 2),
    (128, 128, 3, 3),
)
_ROWS, _NOISE, _TURNED = (1024, 256), (2**16,), (64, 128, 64)
_NUMBER_BYTES = 4


@lru_cache
def kernel_rates(threads: int, processes: int = 1) -> Mapping[str, float]:
    """This machine's `KERNELS`, with torch's number of threads, in each of so many processes at once."""
    return kept("kernels", KERNELS, threads, lambda: _time_kernels(threads, processes), processes)


def _time_kernels(threads: int, processes: int) -> Mapping[str, float]:
    # Python's lock would keep threads from dispatching at once, which processes do without a word to each other.
    seconds = usual_seconds(_runs, threads, processes) | usual_seconds(lambda: {"dispatch": _tiny_step()}, threads)
    batch, heads, length, width = _HEADS
    convolution, tiny = _convolution_flops(_IMAGE, _KERNEL), _convolution_flops(_SMALL, _FILTERS)
    amounts = {
        "attention": 4 * batch * heads * length**2 * width,
        "convolution": convolution,
        "reordering": _NUMBER_BYTES * (5 * math.prod(_SMALL) + 3 * math.prod(_FILTERS)),
        "function": 2 * _NUMBER_BYTES * math.prod(_ROWS),
        "normalization": 4 * _NUMBER_BYTES * math.prod(_ROWS),
        "random": 2 * _NUMBER_BYTES * math.prod(_NOISE),
        "strided": 2 * _NUMBER_BYTES * math.prod(_TURNED),
    }
    arithmetic = tiny / convolution * seconds["convolution"]
    seconds["reordering"] = max(seconds["reordering"] - arithmetic, seconds["reordering"] / 4)
    return {name: amount / seconds[name] for name, amount in amounts.items()} | {
        "dispatch": seconds["dispatch"] / DISPATCHED
    }


def _runs() -> Runs:
    """One of each kind but `dispatch`, on tensors of their own."""
    import torch
    from torch.nn import functional

    def ones(shape: tuple[int, ...]) -> Any:
        return torch.ones(shape, dtype=torch.float32, device="cpu")

    heads, rows, noise, turned = ones(_HEADS), ones(_ROWS), ones(_NOISE), ones(_TURNED).transpose(1, 2)
    image, kernel, small, filters = ones(_IMAGE), ones(_KERNEL), ones(_SMALL), ones(_FILTERS)
    noise_source = torch.Generator().manual_seed(0)  # the global one is the job's
    return {
        "attention": lambda: functional.scaled_dot_product_attention(heads, heads, heads),
        "convolution": lambda: _convolve(image, kernel),
        "reordering": lambda: _convolve(small, filters),
        "function": lambda: functional.gelu(rows),
        "normalization": lambda: _normalize(rows),
        "random": lambda: noise.bernoulli_(0.9, generator=noise_source),
        "strided": lambda: turned.contiguous(),
    }


def _convolution_flops(image: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """Forward, and back to images and to kernels."""
    return 6 * image[0] * math.prod(image[2:]) * math.prod(kernel)


def _convolve(image: Any, kernel: Any) -> None:
    """Forward, and back: the gradients of images and kernels are slower to come by."""
    import torch

    out = torch.nn.functional.conv2d(image, kernel, padding=1)
    way: Any = [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    torch.ops.aten.convolution_backward(out, image, kernel, None, *way)


def _normalize(rows: Any) -> None:
    """Over rows, and over columns, as layers and batches are."""
    from torch.nn import functional

    functional.layer_norm(rows, rows.shape[1:])
    functional.batch_norm(rows.view(8, 128, 16, 16), None, None, training=True)


def _tiny_step() -> Run:
    """A forward and backward pass of layers too small to compute anything, which has `DISPATCHED` operations."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        layers = [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(4)]
        model = nn.Sequential(*layers).float()
    x = torch.ones(4, 8, dtype=torch.float32, device="cpu")

    def step() -> None:
        model.zero_grad()
        with torch.enable_grad():
            model(x).sum().backward()

    return step
