"""What every strategy's layout gives: what it holds through a step, and what it does around a micro-batch.

Sizes of what is sharded are as the libraries themselves round them: they pad to whole parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import AccumulationPhase, StepConfig
from scalekit.planning.profiling.tracing import Event, Trace

MODULE_EVENTS = {Event.ENTER, Event.LEAVE, Event.ENTER_BACKWARD, Event.LEAVE_BACKWARD}


@dataclass
class MemoryTimeline:
    """What a strategy adds to a micro-batch, event by event.

    Attributes:
        gradients: bytes of gradients held after each event, shape [events].
        communication: bytes of gathered parameters and buffers held after each event, shape [events].
        spikes: bytes beyond those that live within one event only, shape [events].
    """

    gradients: NDArray[np.float64]
    communication: NDArray[np.float64]
    spikes: NDArray[np.float64]

    @classmethod
    def empty(cls, trace: Trace) -> MemoryTimeline:
        """Nothing added."""
        return cls(*(np.zeros(len(trace.kinds)) for _ in range(3)))


def _bytes(dtype: torch.dtype | None) -> int:
    return 0 if dtype is None else dtype.itemsize


class Layout(ABC):
    """What a strategy keeps, and what it does around a micro-batch."""

    def __init__(self, profile: Profile, setting: StepConfig) -> None:
        self.profile, self.setting = profile, setting
        dtypes = setting.dtypes
        self.parameter_bytes = _bytes(dtypes.parameters)
        self.compute_bytes = _bytes(dtypes.compute)
        self.reduction_bytes = _bytes(dtypes.reduction)
        self.moment_bytes = setting.moments * _bytes(dtypes.optimizer_state)
        self.master_bytes = _bytes(dtypes.master or dtypes.parameters)

    @property
    def computes_with(self) -> torch.dtype:
        """The type of the parameters that the forward pass meets."""
        return self.setting.dtypes.parameters

    @property
    def keeps_casts(self) -> bool:
        """Whether parameters are cast to the compute type once a forward pass, and not at each use."""
        return self.setting.strategy.engine == "deepspeed"

    @abstractmethod
    def held(self) -> dict[str, float]:
        """Bytes that a rank holds through the whole step."""

    @abstractmethod
    def course(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        """What happens around one micro-batch."""

    def update(self) -> dict[str, float]:
        """Items that differ from `held` while the optimizer updates."""
        return {}

    def host_bytes(self) -> float:
        """In the host's memory, for this rank."""
        return 0.0

    def offloads(self, what: str) -> bool:
        """Whether ``"parameters"`` or the ``"optimizer"`` live outside of the device."""
        return what in self.setting.strategy.offload

    def reduction_copy(self, bytes_: float) -> float:
        """What a reduce-scatter takes beside its buffers: gloo, on CPUs, works on a copy."""
        return bytes_ if self.setting.kind == "cpu" else 0.0

    def parameter_total(self) -> float:
        """Bytes of all parameters and buffers, whole."""
        return self.profile.elements * self.parameter_bytes + self.profile.buffer_bytes

    def gradient_total(self) -> float:
        """Bytes of all gradients, whole."""
        return self.profile.trained_elements * self.parameter_bytes

    def as_autograd_makes_them(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        """Gradients that are the parameters' own: each comes as its backward pass makes it, and stays for the next."""
        course = MemoryTimeline.empty(trace)
        if turn is not AccumulationPhase.FIRST:
            course.gradients += self.gradient_total()
            return course
        at = trace.kinds == Event.GRADIENT
        sizes = np.array([p.elements * self.parameter_bytes for p in trace.parameters], np.float64)
        course.gradients[at] = sizes[trace.subjects[at]]
        course.gradients = course.gradients.cumsum()
        return course


def chosen(trace: Trace, kinds: set[Event]) -> Iterator[tuple[int, int, int]]:
    """The moments of some kinds of events, with their kinds and subjects."""
    moments = np.flatnonzero(np.isin(trace.kinds, list(kinds)))
    yield from zip(moments.tolist(), trace.kinds[moments].tolist(), trace.subjects[moments].tolist(), strict=True)


def reductions(trace: Trace, bucket_elements: int) -> Iterator[tuple[int, int]]:
    """When a bucket of gradients is reduced, and the elements in it: when the next one does not fit, and at the end."""
    filled = 0
    for moment in np.flatnonzero(trace.kinds == Event.GRADIENT).tolist():
        elements = trace.parameters[trace.subjects[moment]].elements
        if filled + elements > bucket_elements:
            yield moment, filled
            filled = 0
        filled += elements
    yield len(trace.kinds) - 1, filled
