"""Time: a profile, a setting and the hardware's rates give the seconds of one optimizer step, and what they go into.

Operations take what a roofline gives them, collectives what their bytes take on the slowest wire they cross, and what an
engine does beside compute is hidden by it. Hardware's rates are peaks; the constants here say how much of them is reached.
They are rounded figures for large models on current GPUs, so that the estimate tells strategies apart: it is no benchmark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scalekit.dtypes import Dtypes
from scalekit.hardware import Hardware
from scalekit.planning.layouts import layout
from scalekit.planning.profile import Profile
from scalekit.planning.setting import Setting
from scalekit.planning.trace import Event, Trace

PARTS = ("compute", "communication", "offload", "update", "data")
"""What a step's seconds go into, each without what is hidden behind compute.

compute: the forward and backward passes. communication: collectives. offload: the bus, the update in the host's memory, and
drives. update: the optimizer's, on the device. data: the loading of batches.
"""

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
"""The same on a CPU, which computes nothing else meanwhile."""

LATENCY_SECONDS = 20e-6
"""What a collective takes within a node, however small. Assumed."""

NODES_LATENCY_SECONDS = 10e-6
"""What it takes more for each doubling of the nodes: 32 nodes need 63 to 71 microseconds (NVIDIA/nccl issue 652)."""

GLOO_LATENCY_SECONDS = 3e-4
"""What a collective takes among processes on CPUs, which wake each other's threads over TCP."""

OVERLAP = 0.8
"""The share of compute behind which communication can hide: NCCL's kernels take some of the multiprocessors and of the
memory bandwidth. Assumed."""

NVME_BYTES_PER_SECOND = 3e9
"""Of one node's drives, reading or writing. Assumed: the hardware does not say, and this is one drive on PCIe 3.0."""

ASSUMED_FLOPS = {"bfloat16": 50e12, "float16": 50e12, "float32": 20e12}
"""For a device whose peaks are unknown."""

DDP_BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's `bucket_cap_mb`."""


@dataclass(frozen=True)
class Time:
    """One optimizer step.

    Attributes:
        seconds: that it takes.
        parts: seconds by `PARTS`; they sum to `seconds`.
        samples_per_second, tokens_per_second: over all ranks.
        mfu: the model's FLOPs, without those of recomputation, as a share of what all devices could do in that time, at the
            peak of the compute type (PaLM, arXiv 2204.02311, appendix B); None where that peak is unknown.
        bottleneck: the largest part, or "memory bandwidth" where that is compute that mostly waits for memory.
    """

    seconds: float
    parts: Mapping[str, float]
    samples_per_second: float
    tokens_per_second: float
    mfu: float | None
    bottleneck: str


def estimate(profile: Profile, setting: Setting, hardware: Hardware) -> Time:
    """The time of one optimizer step; from the number of parameters alone where the profile has no trace."""
    trace = None
    if profile.problem is None:
        trace = profile.at(setting.micro_batch_size, setting.recompute, layout(profile, setting).computes_with)
    rates, sizes = _Rates.of(setting, hardware), Sizes.of(profile, setting, trace)
    compute = _roofline(_Work.of(trace) if trace else _Work.assumed(profile, setting, sizes), rates)
    parts = {
        "compute": setting.accumulation * compute.seconds,
        "communication": math.fsum(_exposed_seconds(phase, compute, rates) for phase in traffic(setting, sizes)),
        "offload": _offload_seconds(setting, sizes, rates),
        "update": _update_seconds(setting, sizes, rates),
        # Workers load beside the step; whether they keep up is for a run to measure.
        "data": 0.0,
    }
    seconds = sum(parts.values())
    samples = setting.micro_batch_size * setting.accumulation * setting.world_size
    peak = hardware.device.flops.get(_name(setting.dtypes.compute))
    flops = setting.accumulation * _model_flops(compute, sizes)
    largest = max(PARTS, key=lambda part: parts[part])
    waits_for_memory = largest == "compute" and 2 * compute.memory_bound > compute.seconds
    return Time(
        seconds=seconds,
        parts=parts,
        samples_per_second=samples / seconds,
        tokens_per_second=samples * profile.subject.tokens / seconds,
        mfu=flops / (seconds * peak) if peak else None,
        bottleneck="memory bandwidth" if waits_for_memory else largest,
    )


# -- rates ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rates:
    """What one rank reaches: FLOP/s in the compute type (`low`) and in float32 (`single`), and bytes/s.

    Attributes:
        link: to the ranks of its node.
        network: to the next rank in a ring of all, which is as slow as its way between nodes.
        bus, host, nvme: this rank's share of its node's.
        launch: the least seconds of an operation.
        latency, far_latency: the least seconds of a collective within a node, and of one over nodes.
        overlap: the share of compute that hides communication.
    """

    low: float
    single: float
    memory: float
    link: float
    network: float
    bus: float
    host: float
    nvme: float
    launch: float
    latency: float
    far_latency: float
    overlap: float

    @classmethod
    def of(cls, setting: Setting, hardware: Hardware) -> _Rates:
        device = hardware.device
        is_gpu = device.kind == "cuda"
        # A CPU's rates were measured with the very operations that they are for.
        matmul, memory, link = (MATMUL_EFFICIENCY, BANDWIDTH_EFFICIENCY, LINK_EFFICIENCY) if is_gpu else (1.0,) * 3
        node = min(setting.node_size, setting.world_size)
        nodes = math.ceil(setting.world_size / node)
        # NCCL lays as many rings as the node has adapters, each of which leaves it through another one: in DGX A100s with 25
        # GB/s for each of eight devices its authors measure 192 GB/s (NVIDIA/nccl issue 812). gloo has one ring.
        outwards = hardware.network_bytes_per_second * (node if is_gpu else 1) if nodes > 1 else math.inf
        latency = LATENCY_SECONDS if is_gpu else GLOO_LATENCY_SECONDS
        host = memory * hardware.host_bytes_per_second / node
        return cls(
            low=matmul * _peak(device.flops, _name(setting.dtypes.compute)),
            single=matmul * _peak(device.flops, "float32"),
            memory=memory * device.memory_bytes_per_second,
            link=link * device.link_bytes_per_second,
            network=link * min(device.link_bytes_per_second, outwards),
            bus=min(link * device.bus_bytes_per_second, host),
            host=host,
            nvme=NVME_BYTES_PER_SECOND / node,
            launch=LAUNCH_SECONDS if is_gpu else DISPATCH_SECONDS,
            latency=latency,
            far_latency=latency + NODES_LATENCY_SECONDS * math.log2(nodes),
            overlap=OVERLAP if is_gpu else 0.0,
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _peak(flops: Mapping[str, float], name: str) -> float:
    """A type that a device has no figure for runs as its slowest: bfloat16 as float32 where there is no bfloat16."""
    return flops.get(name) or min(flops.values(), default=ASSUMED_FLOPS[name])


# -- compute ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """A micro-batch's operations, shape [operations]; see Trace. `is_forward` tells those of the forward pass."""

    flops: NDArray[np.float64]
    moved_bytes: NDArray[np.float64]
    low_precision: NDArray[np.bool_]
    is_forward: NDArray[np.bool_]

    @classmethod
    def of(cls, trace: Trace) -> _Work:
        half = int(np.argmax(trace.kinds == Event.BACKWARD))
        is_forward = np.zeros(len(trace.flops), np.bool_)
        is_forward[trace.subjects[:half][trace.kinds[:half] == Event.OPERATE]] = True
        return cls(trace.flops, trace.moved_bytes, trace.low_precision, is_forward)

    @classmethod
    def assumed(cls, profile: Profile, setting: Setting, sizes: Sizes) -> _Work:
        """One operation a pass: 2 FLOPs a parameter and token forward, 4 backward (Kaplan et al. 2020, section 2.1)."""
        passes = np.array([2.0, 4.0 + 2.0 * setting.recompute])
        flops = passes * sizes.elements * profile.subject.tokens * setting.micro_batch_size
        is_low = np.full(2, setting.dtypes.compute.itemsize < 4)
        return cls(flops, np.zeros(2), is_low, np.array([True, False]))


@dataclass(frozen=True)
class _Compute:
    """One micro-batch's passes: seconds of each, of what waits for memory in them, and FLOPs."""

    forward: float
    backward: float
    memory_bound: float
    forward_flops: float
    backward_flops: float

    @property
    def seconds(self) -> float:
        return self.forward + self.backward


def _roofline(work: _Work, rates: _Rates) -> _Compute:
    """Each operation takes what the slower of arithmetic and memory takes (Williams et al. 2009), or its launch."""
    busy = work.flops / np.where(work.low_precision, rates.low, rates.single)
    moving = work.moved_bytes / rates.memory
    seconds = np.maximum(np.maximum(busy, moving), rates.launch)
    waits = (moving > busy) & (moving > rates.launch)
    return _Compute(
        forward=float(seconds[work.is_forward].sum()),
        backward=float(seconds[~work.is_forward].sum()),
        memory_bound=float(seconds[waits].sum()),
        forward_flops=float(work.flops[work.is_forward].sum()),
        backward_flops=float(work.flops[~work.is_forward].sum()),
    )


def _model_flops(compute: _Compute, sizes: Sizes) -> float:
    """Of one micro-batch: a product's backward is another one for its input, and one for its weight where that is trained.

    So more than that in the backward pass is recomputation, a block's or an attention kernel's own.
    """
    backward = (1 + sizes.trained / max(sizes.elements, 1)) * compute.forward_flops
    return compute.forward_flops + min(compute.backward_flops, backward)


# -- communication ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """A model's elements.

    Attributes:
        elements: of all parameters.
        trained: of those with gradients.
        root, root_trained: the same, of what is in no block.
        blocks: how many repeated blocks there are.
        shared: elements that ZeRO-3 shares out.
        owners: modules that own some of these.
        last: elements of the parameter whose gradient comes last; 0 where unknown.
    """

    elements: int
    trained: int
    root: int
    root_trained: int
    blocks: int
    shared: int
    owners: int
    last: int

    @classmethod
    def of(cls, profile: Profile, setting: Setting, trace: Trace | None) -> Sizes:
        names = [p.name for p in profile.parameters]
        blocks = {trace.modules[block] + "." for block in trace.blocks} if trace else _numbered(names)
        inside = tuple(blocks)
        sizes = np.array([math.prod(p.shape) for p in profile.parameters], np.int64)
        is_trained = np.array([p.trained for p in profile.parameters], np.bool_)
        is_root = np.array([not name.startswith(inside) for name in names], np.bool_)
        is_shared = sizes > setting.strategy.zero("stage3_param_persistence_threshold")
        owners = {name.rpartition(".")[0] for name, shared in zip(names, is_shared, strict=True) if shared}
        return cls(
            elements=int(sizes.sum()),
            trained=int(sizes @ is_trained),
            root=int(sizes @ is_root),
            root_trained=int(sizes @ (is_root & is_trained)),
            blocks=len(blocks),
            shared=int(sizes @ is_shared),
            owners=len(owners),
            last=_last_gradient(trace) if trace else 0,
        )


def _numbered(names: Iterable[str]) -> set[str]:
    """What looks like a block by its name, where no trace tells: ``model.layers.3.``."""
    return {found.group() for name in names if (found := re.match(r"(.*?\.)?\d+\.", name))}


def _last_gradient(trace: Trace) -> int:
    moments = np.flatnonzero(trace.kinds == Event.GRADIENT)
    return math.prod(trace.parameters[trace.subjects[moments[-1]]].shape) if len(moments) else 0


@dataclass(frozen=True)
class Collectives:
    """Collectives of one kind, one after another.

    Attributes:
        size_bytes: of the whole tensors, all together.
        ranks: that take part.
        number: how many they are.
        rounds: 1 for an all-gather or a reduce-scatter, 2 for an all-reduce, which is one after the other.
        bare: the share of them that compute cannot hide, because it waits for the first or is over before the last.
        is_near: whether these ranks are of one node.
    """

    size_bytes: float
    ranks: int
    number: int = 1
    rounds: int = 1
    bare: float = 1.0
    is_near: bool = False

    @property
    def sent_bytes(self) -> float:
        """By each rank, in a ring (Patarasuk and Yuan 2009)."""
        return self.rounds * (self.ranks - 1) / self.ranks * self.size_bytes


@dataclass(frozen=True)
class Phase:
    """What is communicated beside one pass, or between passes.

    Attributes:
        beside: the pass, ``forward`` or ``backward``; None where nothing is computed meanwhile.
        times: how often in an optimizer step.
        collectives: what is communicated each time.
    """

    beside: str | None
    times: int
    collectives: tuple[Collectives, ...]

    @property
    def sent_bytes(self) -> float:
        """By each rank, in an optimizer step."""
        return self.times * sum(each.sent_bytes for each in self.collectives)


def traffic(setting: Setting, sizes: Sizes) -> list[Phase]:
    """All collectives of an optimizer step; where engines do as ZeRO's paper has it, see its section 7 (arXiv 1910.02054)."""
    engine, shards = setting.strategy.engine, setting.strategy.shards
    if setting.world_size == 1:
        return []
    if engine == "ddp":
        return _replicated(setting, sizes)
    if engine == "fsdp2":
        return _fully_sharded(setting, sizes)
    if engine == "deepspeed":
        return _zero3(setting, sizes) if "parameters" in shards else _zero(setting, sizes)
    return []


def _replicated(setting: Setting, sizes: Sizes) -> list[Phase]:
    """DDP sums buckets of gradients once a step (`no_sync`), while the last micro-batch's backward pass makes the next.

    The last bucket is sent when that pass is over; a parameter larger than a bucket, such as an embedding, is one by itself.
    """
    item = setting.dtypes.reduction.itemsize
    size = sizes.trained * item
    bare = min(1.0, max(DDP_BUCKET_BYTES, sizes.last * item) / max(size, 1))
    number = math.ceil(size / DDP_BUCKET_BYTES)
    return [Phase("backward", 1, (Collectives(size, setting.world_size, number, rounds=2, bare=bare),))]


def _fully_sharded(setting: Setting, sizes: Sizes) -> list[Phase]:
    """FSDP2 gathers each block for each pass, the root for the forward pass alone, and reduces each micro-batch's gradients.

    The forward pass waits for the root and the first block; those of the root and of the first block are reduced last.
    """
    world, item = setting.world_size, setting.dtypes.compute.itemsize
    inside, blocks = sizes.elements - sizes.root, max(sizes.blocks, 1)
    first = (sizes.root + inside / blocks) / max(sizes.elements, 1)
    last = (sizes.root_trained + (sizes.trained - sizes.root_trained) / blocks) / max(sizes.trained, 1)
    units = sizes.blocks + (sizes.root > 0)
    gather = Collectives(sizes.elements * item, world, units, bare=first)
    again = Collectives(inside * item, world, sizes.blocks, bare=1 / blocks)
    reduce = Collectives(sizes.trained * setting.dtypes.reduction.itemsize, world, units, bare=last)
    times = setting.accumulation
    return [Phase("forward", times, (gather,)), Phase("backward", times, (again, reduce))]


def _zero(setting: Setting, sizes: Sizes) -> list[Phase]:
    """ZeRO-1 sums gradients once a step, ZeRO-2 those of each micro-batch; updated parameters are gathered once a step.

    DeepSpeed sums each bucket with an all-reduce, of which a rank keeps its part (`use_multi_rank_bucket_allreduce`), twice
    what the paper's reduce-scatter sends. Nothing overlaps: our engine sets `overlap_comm` to false.
    """
    shards = setting.strategy.shards
    phases = [
        Phase(None, setting.accumulation if "gradients" in shards else 1, (_reduction(setting, sizes, rounds=2),))
    ]
    if "optimizer" in shards:
        size = sizes.trained * setting.dtypes.parameters.itemsize
        phases.append(Phase(None, 1, (Collectives(size, setting.world_size),)))
    return phases


def _zero3(setting: Setting, sizes: Sizes) -> list[Phase]:
    """ZeRO-3 gathers parameters for each pass, ahead of their use, and reduce-scatters each micro-batch's gradients.

    What the forward pass ends with stays for the backward pass, which needs it again soon; so a small model is gathered once.
    With hpZ a node has all parts after a step's first gathering (ZeRO++, arXiv 2306.10209, section 3.2), until the update.
    """
    world, node, times = setting.world_size, setting.node_size, setting.accumulation
    is_near = node < world and setting.strategy.second_shard(node) > 1
    item = setting.dtypes.parameters.itemsize
    ahead = max(1.0, setting.strategy.zero("stage3_prefetch_bucket_size"))

    def gather(elements: float, near: bool) -> Collectives:
        number = min(sizes.owners, math.ceil(elements / ahead))
        bare = 1 / max(sizes.blocks, number, 1)
        return Collectives(elements * item, node if near else world, number, bare=bare, is_near=near)

    again = _gathered_again(setting, sizes)
    return [
        Phase("forward", 1, (gather(sizes.shared, False),)),
        Phase("forward", times - 1, (gather(sizes.shared, is_near),)),
        Phase("backward", times, (gather(again, is_near),)),
        Phase(None, times, (_reduction(setting, sizes, rounds=1),)),
        Phase(None, 1, (Collectives((sizes.elements - sizes.shared) * item, world),)),
    ]


def _reduction(setting: Setting, sizes: Sizes, rounds: int) -> Collectives:
    number = math.ceil(sizes.trained / max(setting.strategy.bucket_elements(sizes.trained), 1))
    return Collectives(sizes.trained * setting.dtypes.reduction.itemsize, setting.world_size, number, rounds)


def _gathered_again(setting: Setting, sizes: Sizes) -> float:
    """Elements that ZeRO-3 gathers for the backward pass: it meets all that came since, forward and back, before them."""
    return max(0.0, sizes.shared - setting.strategy.zero("stage3_max_reuse_distance") / 2)


def _exposed_seconds(phase: Phase, compute: _Compute, rates: _Rates) -> float:
    """What of a phase is not hidden behind the pass beside it, over a step."""
    seconds = [_collective_seconds(each, rates) for each in phase.collectives]
    if phase.beside is None:
        return phase.times * sum(seconds)
    hidden = rates.overlap * (compute.forward if phase.beside == "forward" else compute.backward)
    bare = sum(each.bare * taken for each, taken in zip(phase.collectives, seconds, strict=True))
    return phase.times * max(bare, sum(seconds) - hidden)


def _collective_seconds(each: Collectives, rates: _Rates) -> float:
    bandwidth, latency = (rates.link, rates.latency) if each.is_near else (rates.network, rates.far_latency)
    return each.sent_bytes / bandwidth + each.number * latency


# -- offload and update -----------------------------------------------------------------------------------------------


def _update_bytes(dtypes: Dtypes, moments: int) -> int:
    """Memory traffic of updating one element: reads it, its gradient and moments, writes it and the moments. Adam's is 28."""
    master = (dtypes.master or dtypes.parameters).itemsize
    return 2 * master + dtypes.parameters.itemsize + 2 * moments * dtypes.optimizer_state.itemsize


def _share(setting: Setting, sizes: Sizes) -> float:
    """Elements that one rank updates."""
    return sizes.trained / (setting.world_size if "optimizer" in setting.strategy.shards else 1)


def _update_seconds(setting: Setting, sizes: Sizes, rates: _Rates) -> float:
    """On the device: the gradients are read for their norm, and the fused optimizer passes over its share once."""
    if "optimizer" in setting.strategy.offload:
        return 0.0
    dtypes = setting.dtypes
    per_element = dtypes.parameters.itemsize + _update_bytes(dtypes, setting.moments)
    return _share(setting, sizes) * per_element / rates.memory


def _offload_seconds(setting: Setting, sizes: Sizes, rates: _Rates) -> float:
    """What optimizer and parameters on the host cost; none of it overlaps, since DeepSpeed copies on the compute stream."""
    offload, seconds = setting.strategy.offload, 0.0
    if "optimizer" in offload:
        seconds += _host_update_seconds(setting, sizes, rates)
    if "parameters" in offload:
        size = (
            setting.accumulation
            * (sizes.shared + _gathered_again(setting, sizes))
            * setting.dtypes.parameters.itemsize
            / setting.world_size
        )
        seconds += size / rates.bus + (size / rates.nvme if offload["parameters"] == "nvme" else 0.0)
    return seconds


def _host_update_seconds(setting: Setting, sizes: Sizes, rates: _Rates) -> float:
    """Once a step: gradients go down, the CPU updates as its memory allows, and parameters come up unless they stay there.

    ZeRO-Offload (arXiv 2101.06840, section 4). From drives, master weights and moments are read, and written again.
    """
    dtypes, offload, share = setting.dtypes, setting.strategy.offload, _share(setting, sizes)
    crossings = 1 if "parameters" in offload else 2
    seconds = share * crossings * dtypes.parameters.itemsize / rates.bus
    seconds += share * _update_bytes(dtypes, setting.moments) / rates.host
    if offload["optimizer"] == "nvme":
        state = (dtypes.master or dtypes.parameters).itemsize + setting.moments * dtypes.optimizer_state.itemsize
        seconds += share * 2 * state / rates.nvme
    if offload.get("parameters") == "nvme":
        seconds += share * dtypes.parameters.itemsize / rates.nvme
    return seconds
