"""What one rank reaches of the peaks that hardware is sold with.

They are rounded figures for large models on current GPUs, so that an estimate tells strategies apart: it is no benchmark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalekit.config.precision import type_name
from scalekit.hardware import Device, Hardware
from scalekit.hardware.links import ASSUMED
from scalekit.planning.profiling.operations import Sort
from scalekit.planning.profiling.step_config import StepConfig

MATMUL_EFFICIENCY = 0.7
"""Of a GPU's dense peak: cuBLAS reaches 650 to 700 of an H100's 989 TFLOP/s in large bfloat16 products.

The same holds for attention, whose kernels reach half of that, because PyTorch's formulas count the half above the diagonal
that they leave out.
"""

BANDWIDTH_EFFICIENCY = 0.8
"""Of a GPU's memory bandwidth: elementwise kernels on large tensors reach 80 to 90%, those on smaller ones less."""

LINK_EFFICIENCY = 0.8
"""Of links, networks and buses. At its best NCCL gets 46 to 48 of an adapter's 50 GB/s (NVIDIA/nccl-tests issue 290), on a
large cluster about 350 of 400 GB/s a node (issue 283), and less for a block's parameters than for those gigabytes."""

LAUNCH_SECONDS = 5e-6
"""The shortest that an operation takes on a GPU: PyTorch issues a kernel in about this time, whatever it computes."""

DISPATCH_SECONDS = 1e-5
"""The same on a CPU, which computes nothing else meanwhile; one that is at hand is measured."""

STEP_DISPATCHES, MICRO_BATCH_DISPATCHES, PARAMETER_DISPATCHES = 45, 25, 1
"""What Python does beside the model on a CPU, by what an operation's dispatch takes there: for a step (Lightning's loop, the
ledger, the optimizer, the log), for a micro-batch (its rows put together, the loop), and for each parameter that is clipped and
updated. Counted from steps of a single linear layer: 0.7, 0.4 and 0.017 ms where a dispatch takes 15 microseconds."""

STEP_COLLECTIVES = 2
"""Sums over ranks of a few numbers in each step: the items of a global batch, and its loss."""

LATENCY_SECONDS = 20e-6
"""What a collective takes within a node, however small. Assumed."""

NODES_LATENCY_SECONDS = 10e-6
"""What it takes more for each doubling of the nodes: 32 nodes need 63 to 71 microseconds (NVIDIA/nccl issue 652)."""

OVERLAP = 0.8
"""The share of compute behind which communication can hide: NCCL's kernels take some of the multiprocessors and of the
memory bandwidth. Assumed."""

NVME_BYTES_PER_SECOND = 3e9
"""Of one node's drives, reading or writing. Assumed: the hardware does not say, and this is one drive on PCIe 3.0."""

SAVE_BYTES_PER_SECOND = 500e6
"""Of one node's checkpoint files, written and checked. Assumed: a cloud's network disk gives about this."""

ASSUMED_FLOPS = {"bfloat16": 50e12, "float16": 50e12, "float32": 20e12}
"""For a device whose peaks are unknown."""


@dataclass(frozen=True)
class Rates:
    """What one rank reaches: FLOP/s in the compute type (`low`) and in float32 (`single`), and bytes/s.

    Attributes:
        link: to the ranks of its node.
        network: to the next rank in a ring of all, which is as slow as its way between nodes.
        gather_share: of these two, what an all-gather reaches: gloo copies what it gathers.
        bus, host, nvme: this rank's share of its node's.
        launch: the least seconds of an operation, or on a CPU what is added to each.
        flops_shares, memory_shares: of these rates, what each sort of operation reaches, shape [sorts].
        adds_up: whether an operation takes the sum of what arithmetic, memory and its launch take, as on a CPU, or the longest.
        latency, far_latency: the least seconds of a collective within a node, and of one over nodes.
        overlap: the share of compute that hides communication.
    """

    low: float
    single: float
    memory: float
    link: float
    network: float
    gather_share: float
    bus: float
    host: float
    nvme: float
    launch: float
    latency: float
    far_latency: float
    overlap: float
    flops_shares: NDArray[np.float64]
    memory_shares: NDArray[np.float64]
    adds_up: bool

    @classmethod
    def of(cls, setting: StepConfig, hardware: Hardware) -> Rates:
        device = hardware.device
        is_gpu = device.kind == "cuda"
        # A CPU's rates were measured with the very operations that they are for.
        matmul, memory, link = (MATMUL_EFFICIENCY, BANDWIDTH_EFFICIENCY, LINK_EFFICIENCY) if is_gpu else (1.0,) * 3
        node = min(setting.node_size, setting.world_size)
        nodes = math.ceil(setting.world_size / node)
        # NCCL lays as many rings as the node has adapters, each of which leaves it through another one: in DGX A100s with 25
        # GB/s for each of eight devices its authors measure 192 GB/s (NVIDIA/nccl issue 812). gloo has one ring.
        outwards = hardware.network_bytes_per_second * (node if is_gpu else 1) if nodes > 1 else math.inf
        gloo = {**ASSUMED, **device.kernels}
        latency = LATENCY_SECONDS if is_gpu else gloo["collective"]
        host = memory * hardware.host_bytes_per_second / node
        flops_shares, memory_shares, dispatch = _shares(device)
        return cls(
            low=matmul * _peak(device.flops, type_name(setting.dtypes.compute)),
            single=matmul * _peak(device.flops, "float32"),
            memory=memory * device.memory_bytes_per_second,
            link=link * device.link_bytes_per_second,
            network=link * min(device.link_bytes_per_second, outwards),
            gather_share=1.0 if is_gpu else gloo["all_gather"] / gloo["all_reduce"],
            bus=min(link * device.bus_bytes_per_second, host),
            host=host,
            nvme=NVME_BYTES_PER_SECOND / node,
            launch=LAUNCH_SECONDS if is_gpu else dispatch,
            latency=latency,
            far_latency=latency + NODES_LATENCY_SECONDS * math.log2(nodes),
            overlap=OVERLAP if is_gpu else 0.0,
            flops_shares=flops_shares,
            memory_shares=memory_shares,
            adds_up=not is_gpu,
        )


def _shares(device: Device) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """What each sort of operation reaches of the rates of products and of memory, and seconds of a dispatch.

    A GPU's are all one: its kernels are bound by either, and what they reach of it is `MATMUL_EFFICIENCY` and
    `BANDWIDTH_EFFICIENCY`.
    """
    flops, memory = np.ones(len(Sort)), np.ones(len(Sort))
    single = _peak(device.flops, "float32")
    kernels = device.kernels
    if kernels:
        for sort in (Sort.ATTENTION, Sort.CONVOLUTION):
            flops[sort] = kernels[sort.name.lower()] / single
        for sort in (Sort.FUNCTION, Sort.NORMALIZATION, Sort.RANDOM, Sort.STRIDED):
            memory[sort] = kernels[sort.name.lower()] / device.memory_bytes_per_second
        memory[Sort.CONVOLUTION] = kernels["reordering"] / device.memory_bytes_per_second
    return flops, memory, kernels.get("dispatch", DISPATCH_SECONDS)


def _peak(flops: Mapping[str, float], name: str) -> float:
    """A type that a device has no figure for runs as its slowest: bfloat16 as float32 where there is no bfloat16."""
    return flops.get(name) or min(flops.values(), default=ASSUMED_FLOPS[name])
