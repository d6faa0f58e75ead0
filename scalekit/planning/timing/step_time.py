"""Time: a profile, a setting and the hardware's rates give the seconds of one optimizer step, and what they go into.

Operations take what a roofline gives them, collectives what their bytes take on the slowest wire they cross, and what a
strategy does beside compute is hidden by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalekit.config.names import Checkpointing
from scalekit.config.precision import type_name
from scalekit.hardware import Hardware
from scalekit.planning.memory.layouts import layout
from scalekit.planning.profiling.operations import Sort
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.profiling.tracing import Event, Trace
from scalekit.planning.timing.communication import Collectives, Phase, Sizes, traffic
from scalekit.planning.timing.device_rates import (
    MICRO_BATCH_DISPATCHES,
    PARAMETER_DISPATCHES,
    SAVE_BYTES_PER_SECOND,
    STEP_COLLECTIVES,
    STEP_DISPATCHES,
    Rates,
)
from scalekit.planning.timing.update_time import offload_seconds, update_seconds

PARTS = ("compute", "communication", "offload", "update", "loop", "data")
"""What a step's seconds go into, each without what is hidden behind compute.

compute: the forward and backward passes. communication: collectives. offload: the bus, the update in the host's memory, and
drives. update: the optimizer's, on the device. loop: what Python does around it, which a GPU does not wait for. data: the
loading of batches.
"""


_AGAIN: Mapping[Checkpointing, float] = {"none": 0.0, "selective": 1.0, "full": 2.0}
"""FLOPs a parameter and token that are computed again."""


@dataclass(frozen=True)
class Time:
    """One optimizer step.

    Attributes:
        seconds: that it takes.
        parts: seconds by `PARTS`; they sum to `seconds`.
        forward_seconds: of one micro-batch's forward pass alone, as in an evaluation.
        samples_per_second, tokens_per_second: over all ranks.
        mfu: the model's FLOPs, without those of recomputation, as a share of what all devices could do in that time, at the
            peak of the compute type (PaLM, arXiv 2204.02311, appendix B); None where that peak is unknown.
        bottleneck: the largest part, or "memory bandwidth" where that is compute that mostly waits for memory.
    """

    seconds: float
    parts: Mapping[str, float]
    forward_seconds: float
    samples_per_second: float
    tokens_per_second: float
    mfu: float | None
    bottleneck: str


def estimate(
    profile: Profile, setting: StepConfig, hardware: Hardware, fill: Callable[[int], float] = lambda _: 1.0
) -> Time:
    """The time of one optimizer step; from the number of parameters alone where the profile has no trace.

    Args:
        profile: of the model, on the longest rows.
        setting: how it is run.
        hardware: where.
        fill: of a number of rows, the mean length of the longest of them, as a share of the longest row of all.
    """
    trace = _trace(profile, setting, _slowest_fill(setting, fill))
    rates, sizes = Rates.of(setting, hardware), Sizes.of(profile, setting, trace)
    compute = _roofline(_Work.of(trace) if trace else _Work.assumed(profile, setting, sizes), rates)
    parts = {
        "compute": setting.accumulation * compute.seconds + _summing_seconds(setting, sizes, rates),
        "communication": math.fsum(_exposed_seconds(phase, compute, rates) for phase in traffic(setting, sizes)),
        "offload": offload_seconds(setting, sizes, rates),
        "update": update_seconds(setting, sizes, rates),
        "loop": _loop_seconds(profile, setting, rates),
        # Workers load beside the step; whether they keep up is for a run to measure.
        "data": 0.0,
    }
    seconds = sum(parts.values())
    samples = setting.micro_batch_size * setting.accumulation * setting.world_size
    peak = hardware.device.flops.get(type_name(setting.dtypes.compute))
    flops = setting.accumulation * _model_flops(compute, sizes)
    largest = max(PARTS, key=lambda part: parts[part])
    waits_for_memory = largest == "compute" and 2 * compute.memory_bound > compute.seconds
    return Time(
        seconds=seconds,
        parts=parts,
        forward_seconds=_forward_seconds(setting, sizes, compute, rates),
        samples_per_second=samples / seconds,
        tokens_per_second=samples * profile.subject.tokens * fill(setting.micro_batch_size) / seconds,
        mfu=flops / (seconds * peak) if peak else None,
        bottleneck="memory bandwidth" if waits_for_memory else largest,
    )


def _trace(profile: Profile, setting: StepConfig, fill: float) -> Trace | None:
    """A micro-batch's; shorter rows are taken for fewer ones."""
    if profile.problem is not None:
        return None
    return profile.at(setting.micro_batch_size * fill, setting.recompute, layout(profile, setting).computes_with)


def _slowest_fill(setting: StepConfig, fill: Callable[[int], float]) -> float:
    """The mean length of the micro-batches of the rank that a step waits for, as a share of the longest row's.

    Where ranks meet in each micro-batch, that is the longest of theirs. Where they meet once a step, the sums of several
    micro-batches differ by less: a mean's deviation falls with the root of their number.
    """
    own, longest = fill(setting.micro_batch_size), fill(setting.micro_batch_size * setting.world_size)
    meetings = setting.accumulation if "gradients" in setting.strategy.shards else 1
    return own + (longest - own) / math.sqrt(setting.accumulation / meetings)


def _forward_seconds(setting: StepConfig, sizes: Sizes, compute: _Compute, rates: Rates) -> float:
    """A micro-batch's forward pass alone."""
    gathers = [replace(phase, times=1) for phase in traffic(setting, sizes) if phase.beside == "forward"]
    each = compute.forward + math.fsum(_exposed_seconds(phase, compute, rates) for phase in gathers[:1])
    return each + (MICRO_BATCH_DISPATCHES * rates.launch if rates.adds_up else 0.0)


def save_seconds(size_bytes: float, nodes: int = 1, bytes_per_second: float = SAVE_BYTES_PER_SECOND) -> float:
    """From the beginning of a save to its published checkpoint; the training continues meanwhile, but a job's end waits for it.

    Args:
        size_bytes: of the whole checkpoint: the model's weights, and of each trained number master and moments.
        nodes: each writes its ranks' share.
        bytes_per_second: of one node's files, written and checked.
    """
    return size_bytes / (nodes * bytes_per_second)


# -- compute ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """A micro-batch's operations, shape [operations]; see Trace. `is_forward` tells those of the forward pass."""

    flops: NDArray[np.float64]
    moved_bytes: NDArray[np.float64]
    low_precision: NDArray[np.bool_]
    is_forward: NDArray[np.bool_]
    sorts: NDArray[np.int8] | None = None

    @classmethod
    def of(cls, trace: Trace) -> _Work:
        half = int(np.argmax(trace.kinds == Event.BACKWARD))
        is_forward = np.zeros(len(trace.flops), np.bool_)
        is_forward[trace.subjects[:half][trace.kinds[:half] == Event.OPERATE]] = True
        sorts = trace.sorts if len(trace.sorts) else None
        return cls(trace.flops, trace.moved_bytes, trace.low_precision, is_forward, sorts)

    @classmethod
    def assumed(cls, profile: Profile, setting: StepConfig, sizes: Sizes) -> _Work:
        """One operation a pass: 2 FLOPs a parameter and token forward, 4 backward (Kaplan et al. 2020, section 2.1)."""
        passes = np.array([2.0, 4.0 + _AGAIN[setting.recompute]])
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


def _roofline(work: _Work, rates: Rates) -> _Compute:
    """Each operation takes what the slower of arithmetic and memory takes (Williams et al. 2009), or its launch.

    A CPU does one after the other: Python and autograd come to an operation, which then brings what it computes with into
    caches.
    """
    sorts = np.where(work.flops > 0, Sort.PRODUCT, Sort.PLAIN) if work.sorts is None else work.sorts
    busy = work.flops / (np.where(work.low_precision, rates.low, rates.single) * rates.flops_shares[sorts])
    moving = work.moved_bytes / (rates.memory * rates.memory_shares[sorts])
    longest = np.maximum(np.maximum(busy, moving), rates.launch)
    seconds = busy + moving + rates.launch if rates.adds_up else longest
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


def _summing_seconds(setting: StepConfig, sizes: Sizes, rates: Rates) -> float:
    """Gradients of all micro-batches but the first are added to those there, which a CPU cannot hide."""
    if not rates.adds_up:
        return 0.0
    return (setting.accumulation - 1) * 3 * sizes.trained * setting.dtypes.parameters.itemsize / rates.memory


def _loop_seconds(profile: Profile, setting: StepConfig, rates: Rates) -> float:
    """What a step takes however small its model is: on a CPU all waits for Python, a GPU is given its work ahead."""
    if not rates.adds_up:
        return 0.0
    trained = sum(parameter.trained for parameter in profile.parameters)
    number = STEP_DISPATCHES + PARAMETER_DISPATCHES * trained + setting.accumulation * MICRO_BATCH_DISPATCHES
    collectives = STEP_COLLECTIVES if setting.world_size > 1 else 0
    return number * rates.launch + collectives * rates.far_latency


# -- communication ----------------------------------------------------------------------------------------------------


def _exposed_seconds(phase: Phase, compute: _Compute, rates: Rates) -> float:
    """What of a phase is not hidden behind the pass beside it, over a step."""
    seconds = [_collective_seconds(each, rates) for each in phase.collectives]
    if phase.beside is None:
        return phase.times * sum(seconds)
    hidden = rates.overlap * (compute.forward if phase.beside == "forward" else compute.backward)
    bare = sum(each.bare * taken for each, taken in zip(phase.collectives, seconds, strict=True))
    return phase.times * max(bare, sum(seconds) - hidden)


def _collective_seconds(each: Collectives, rates: Rates) -> float:
    near, far = (rates.link, rates.latency), (rates.network / each.at_once, rates.far_latency)
    bandwidth, latency = near if each.is_near else far
    return each.sent_bytes / (bandwidth * (rates.gather_share if each.gathers else 1.0)) + each.number * latency
