"""What a strategy communicates in an optimizer step: collectives, and the passes beside which they run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.profiling.tracing import Event, Trace

DDP_BUCKET_BYTES = 25 * 2**20
"""DistributedDataParallel's `bucket_cap_mb`."""


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
    def of(cls, profile: Profile, setting: StepConfig, trace: Trace | None) -> Sizes:
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
        gathers: whether they are all-gathers.
        at_once: how many such rings share the network between nodes, of other ranks.
    """

    size_bytes: float
    ranks: int
    number: int = 1
    rounds: int = 1
    bare: float = 1.0
    is_near: bool = False
    gathers: bool = False
    at_once: int = 1

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


def traffic(setting: StepConfig, sizes: Sizes) -> list[Phase]:
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


def _replicated(setting: StepConfig, sizes: Sizes) -> list[Phase]:
    """DDP sums buckets of gradients once a step (`no_sync`), while the last micro-batch's backward pass makes the next.

    The last bucket is sent when that pass is over; a parameter larger than a bucket, such as an embedding, is one by itself.
    """
    item = setting.dtypes.reduction.itemsize
    size = sizes.trained * item
    bare = min(1.0, max(DDP_BUCKET_BYTES, sizes.last * item) / max(size, 1))
    number = math.ceil(size / DDP_BUCKET_BYTES)
    return [Phase("backward", 1, (Collectives(size, setting.world_size, number, rounds=2, bare=bare),))]


def _fully_sharded(setting: StepConfig, sizes: Sizes) -> list[Phase]:
    """FSDP2 gathers each block for each pass, the root for the forward pass alone, and reduces each micro-batch's gradients.

    The forward pass waits for the root and the first block; those of the root and of the first block are reduced last. Where
    nodes have copies of all shards, each rank sums its gradients with those of the same place in the other nodes.
    """
    world, item = setting.world_size, setting.dtypes.compute.itemsize
    group = setting.strategy.group_size(world, setting.node_size)
    is_near = group <= setting.node_size < world
    inside, blocks = sizes.elements - sizes.root, max(sizes.blocks, 1)
    first = (sizes.root + inside / blocks) / max(sizes.elements, 1)
    last = (sizes.root_trained + (sizes.trained - sizes.root_trained) / blocks) / max(sizes.trained, 1)
    units = sizes.blocks + (sizes.root > 0)
    gather = Collectives(sizes.elements * item, group, units, bare=first, is_near=is_near, gathers=True)
    again = Collectives(inside * item, group, sizes.blocks, bare=1 / blocks, is_near=is_near, gathers=True)
    size = sizes.trained * setting.dtypes.reduction.itemsize
    reduce = Collectives(size, group, units, rounds=_scatter_rounds(setting), bare=last, is_near=is_near)
    times = setting.accumulation
    backward = [again, reduce]
    if group < world:
        backward.append(Collectives(size / group, world // group, units, rounds=2, bare=last, at_once=group))
    return [Phase("forward", times, (gather,)), Phase("backward", times, tuple(backward))]


def _zero(setting: StepConfig, sizes: Sizes) -> list[Phase]:
    """ZeRO-1 sums gradients once a step, ZeRO-2 those of each micro-batch; updated parameters are gathered once a step.

    DeepSpeed sums each bucket with an all-reduce, of which a rank keeps its part (`use_multi_rank_bucket_allreduce`), twice
    what the paper's reduce-scatter sends. Nothing overlaps: our strategy sets `overlap_comm` to false.
    """
    shards = setting.strategy.shards
    phases = [
        Phase(None, setting.accumulation if "gradients" in shards else 1, (_reduction(setting, sizes, rounds=2),))
    ]
    if "optimizer" in shards:
        size = sizes.trained * setting.dtypes.parameters.itemsize
        phases.append(Phase(None, 1, (Collectives(size, setting.world_size, gathers=True),)))
    return phases


def _zero3(setting: StepConfig, sizes: Sizes) -> list[Phase]:
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
        return Collectives(elements * item, node if near else world, number, bare=bare, is_near=near, gathers=True)

    again = gathered_again(setting, sizes)
    return [
        Phase("forward", 1, (gather(sizes.shared, False),)),
        Phase("forward", times - 1, (gather(sizes.shared, is_near),)),
        Phase("backward", times, (gather(again, is_near),)),
        Phase(None, times, (_reduction(setting, sizes, _scatter_rounds(setting)),)),
        Phase(None, 1, (Collectives((sizes.elements - sizes.shared) * item, world, gathers=True),)),
    ]


def _scatter_rounds(setting: StepConfig) -> int:
    """Of a reduce-scatter: gloo, on CPUs, sums everything for every rank and lets each take its part."""
    return 2 if setting.kind == "cpu" else 1


def _reduction(setting: StepConfig, sizes: Sizes, rounds: int) -> Collectives:
    number = math.ceil(sizes.trained / max(setting.strategy.bucket_elements(sizes.trained), 1))
    return Collectives(sizes.trained * setting.dtypes.reduction.itemsize, setting.world_size, number, rounds)


def gathered_again(setting: StepConfig, sizes: Sizes) -> float:
    """Elements that ZeRO-3 gathers for the backward pass: it meets all that came since, forward and back, before them."""
    return max(0.0, sizes.shared - setting.strategy.zero("stage3_max_reuse_distance") / 2)
