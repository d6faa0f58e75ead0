"""What this machine's CPU reaches in the kinds of operations that steps are made of, measured once and kept.

A product's rate says little of the rest: attention's kernel reaches half of it, an exponential a quarter of what memory gives,
and a random number takes longer than either. Nor does it say what Python and autograd take for an operation, however small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from scalekit.hardware.measure import best_seconds, kept

KERNELS = ("attention", "convolution", "reordering", "function", "normalization", "random", "strided", "dispatch")
"""attention, convolution: FLOP/s in float32. reordering: bytes a second of what goes into and comes out of small convolutions,
in the time that arithmetic leaves, since oneDNN brings it into an order of its own and back. function: bytes a second, of which
half are read and half written, by transcendental functions; so normalization, random numbers, and strided copies. dispatch:
seconds of an operation of a training step that computes next to nothing, in Python, autograd and torch."""

DISPATCHED = 49
"""Operations of the step that `dispatch` is measured by, as a trace counts them."""


@lru_cache
def kernel_rates(threads: int) -> Mapping[str, float]:
    """This machine's `KERNELS`, with torch's number of threads."""
    return kept("kernels", KERNELS, threads, lambda: _time_kernels(threads))


def _time_kernels(threads: int) -> Mapping[str, float]:
    import torch
    from torch.nn import functional

    def ones(*shape: int) -> Any:
        return torch.ones(shape, dtype=torch.float32, device="cpu")

    heads, image, kernel = ones(8, 8, 64, 64), ones(8, 64, 16, 16), ones(64, 64, 3, 3)
    rows, noise, turned = ones(1024, 256), ones(2**16), ones(64, 128, 64).transpose(1, 2)
    noise_source = torch.Generator().manual_seed(0)  # the global one is the job's
    small, filters = ones(16, 128, 2, 2), ones(128, 128, 3, 3)
    attention, convolution, tiny = (
        4 * 8 * 8 * 64 * 64 * 64,
        6 * 8 * 64 * 16 * 16 * 64 * 9,
        6 * 16 * 128 * 2 * 2 * 128 * 9,
    )
    step = _tiny_step()
    runs: dict[str, tuple[float, Callable[[], object]]] = {
        "attention": (attention, lambda: functional.scaled_dot_product_attention(heads, heads, heads)),
        "convolution": (convolution, lambda: _convolve(image, kernel)),
        "reordering": (5 * small.nbytes + 3 * filters.nbytes, lambda: _convolve(small, filters)),
        "function": (2 * rows.nbytes, lambda: functional.gelu(rows)),
        "normalization": (4 * rows.nbytes, lambda: _normalize(rows)),
        "random": (2 * noise.nbytes, lambda: noise.bernoulli_(0.9, generator=noise_source)),
        "strided": (2 * turned.nbytes, lambda: turned.contiguous()),
    }
    seconds = best_seconds({name: run for name, (_, run) in runs.items()} | {"dispatch": step}, threads)
    arithmetic = tiny / convolution * seconds["convolution"]
    seconds["reordering"] = max(seconds["reordering"] - arithmetic, seconds["reordering"] / 4)
    return {name: amount / seconds[name] for name, (amount, _) in runs.items()} | {
        "dispatch": seconds["dispatch"] / DISPATCHED
    }


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


def _tiny_step() -> Callable[[], object]:
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
