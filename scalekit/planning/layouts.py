"""What each engine keeps on a rank, gathers and reduces. One class an engine; each says where its figures come from.

Sizes of what is shared out are as the engines themselves round them: they pad to whole parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from scalekit.planning.memory import Course, Setting, Turn
from scalekit.planning.profile import Profile
from scalekit.planning.trace import Event, Parameter, Trace


def layout(profile: Profile, setting: Setting) -> Layout:
    """The layout of a setting's engine."""
    if setting.strategy.engine == "fsdp2":
        return FullyShared(profile, setting)
    if setting.strategy.engine == "ddp":
        return Bucketed(profile, setting)
    if setting.strategy.engine == "deepspeed":
        return Partitioned(profile, setting)
    return Replicated(profile, setting)


def _bytes(dtype: torch.dtype | None) -> int:
    return 0 if dtype is None else dtype.itemsize


class Layout(ABC):
    """What an engine keeps, and what it does around a micro-batch."""

    def __init__(self, profile: Profile, setting: Setting) -> None:
        self.profile, self.setting = profile, setting
        dtypes = setting.dtypes
        self.parameter_bytes = _bytes(dtypes.parameters)
        self.compute_bytes = _bytes(dtypes.compute)
        self.reduction_bytes = _bytes(dtypes.reduction)
        self.moment_bytes = setting.moments * _bytes(dtypes.optimizer_state)

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
    def course(self, trace: Trace, turn: Turn) -> Course:
        """What happens around one micro-batch."""

    def update(self) -> dict[str, float]:
        """Items that differ from `held` while the optimizer updates."""
        return {}

    def host_bytes(self) -> float:
        """In the host's memory, for this rank."""
        return 0.0

    def parameter_total(self) -> float:
        """Bytes of all parameters and buffers, whole."""
        return self.profile.elements * self.parameter_bytes + self.profile.buffer_bytes

    def gradient_total(self) -> float:
        """Bytes of all gradients, whole."""
        return self.profile.trained_elements * self.parameter_bytes


class Replicated(Layout):
    """One process, nothing shared out. A gradient is the tensor that autograd made."""

    def held(self) -> dict[str, float]:
        return {
            "parameters": self.parameter_total(),
            "optimizer_state": self.profile.trained_elements * self.moment_bytes,
        }

    def course(self, trace: Trace, turn: Turn) -> Course:
        course = Course.empty(trace)
        if turn is not Turn.FIRST:
            course.gradients += self.gradient_total()
        else:
            at = trace.kinds == Event.GRADIENT
            sizes = np.array([p.elements * self.parameter_bytes for p in trace.parameters], np.float64)
            course.gradients[at] = sizes[trace.subjects[at]]
            course.gradients = course.gradients.cumsum()
        return course

    def update(self) -> dict[str, float]:
        return {"gradients": self.gradient_total()}


@final
class Bucketed(Replicated):
    """DDP: gradients live in the reducer's buckets, which stand all the time (`gradient_as_bucket_view`)."""

    def held(self) -> dict[str, float]:
        return {**super().held(), "gradients": self.gradient_total()}

    def course(self, trace: Trace, turn: Turn) -> Course:
        """While gradients accumulate they are the parameters' own; the last micro-batch moves them into the buckets."""
        if self.setting.accumulation == 1:
            return Course.empty(trace)
        course = super().course(trace, Turn.FIRST)
        if turn is Turn.MIDDLE:
            course.gradients[:] = self.gradient_total()
        elif turn is Turn.LAST:
            course.gradients = self.gradient_total() - course.gradients
        return course


@final
class Partitioned(Replicated):
    """DeepSpeed's ZeRO-1 and ZeRO-2: parameters whole in one flat tensor, master weights and moments in parts.

    As in deepspeed/runtime/zero/stage_1_and_2.py, where Lightning owns the accumulation: a bucket is made when the first
    gradient of a backward pass comes; reducing it makes a copy of what is in it. ZeRO-1 keeps every gradient and copies them
    into the bucket once the pass is over; while gradients accumulate it keeps them and the bucket. ZeRO-2 copies each
    gradient as it comes, and keeps its part of their sum.
    """

    def __init__(self, profile: Profile, setting: Setting) -> None:
        super().__init__(profile, setting)
        self._part = profile.trained_elements / setting.world_size
        self._gradient_part = self._part * self.parameter_bytes
        self._keeps_all = setting.strategy.stage < 2
        self._bucket_elements = setting.strategy.bucket_elements(profile.trained_elements)

    def held(self) -> dict[str, float]:
        master = self.parameter_bytes if self.setting.dtypes.master is None else self.setting.dtypes.master.itemsize
        return {
            "parameters": self.parameter_total(),
            "master_weights": self._part * master,
            "optimizer_state": self._part * self.moment_bytes,
        }

    def update(self) -> dict[str, float]:
        """The part's gradients, and the flat copy of them that the optimizer is given."""
        return {"gradients": self._gradient_part, "communication": self._gradient_part}

    def course(self, trace: Trace, turn: Turn) -> Course:
        course = super().course(trace, turn) if self._keeps_all else Course.empty(trace)
        bucket = self._bucket_elements * self.parameter_bytes
        came = np.flatnonzero(trace.kinds == Event.GRADIENT)
        if not len(came):
            return course
        if not self._keeps_all:
            in_bucket = self._fill(trace, course, came)
            if turn is not Turn.FIRST:
                course.gradients += self._gradient_part
            course.spikes[-1] = in_bucket * self.parameter_bytes
            course.communication[came[0] :] = bucket
        else:
            course.spikes[-1] = bucket if turn is not Turn.FIRST else 0.0
            course.communication[0 if turn is not Turn.FIRST else came[0] :] = bucket
        return course

    def _fill(self, trace: Trace, course: Course, came: NDArray[np.int64]) -> int:
        """Fills the bucket gradient by gradient and reduces it when the next one does not fit; returns what is left in it."""
        filled = 0
        for moment in came:
            elements = trace.parameters[trace.subjects[moment]].elements
            if filled + elements > self._bucket_elements:
                course.spikes[moment] = filled * self.parameter_bytes
                filled = 0
            filled += elements
        return filled


@final
class FullyShared(Layout):
    """FSDP2: repeated blocks are gathered one by one, what is left (the root) for the whole pass.

    As in torch/distributed/fsdp/_fully_shard: parts are padded along the first dimension; a gathered block is copied out of
    the collective's buffer, so that both stand for a moment; gradients are copied into the reduction's buffer, of which the
    previous one is freed first.
    """

    @property
    def computes_with(self) -> torch.dtype:
        return self.setting.dtypes.compute

    def held(self) -> dict[str, float]:
        trained = [p for p in self.profile.parameters if p.trained]
        return {
            "parameters": self._parts(self.profile.parameters) * self.parameter_bytes + self.profile.buffer_bytes,
            "optimizer_state": self._largest(trained) * self.moment_bytes,
        }

    def update(self) -> dict[str, float]:
        return {"gradients": self._gradient_parts(self.profile.parameters)}

    def course(self, trace: Trace, turn: Turn) -> Course:
        course = Course.empty(trace)
        units = self._units(trace)
        _Passes(self, trace, course, units, turn is not Turn.FIRST).run()
        return course

    def whole(self, parameters: Iterable[Parameter]) -> float:
        """Elements of a unit as it is gathered: all parts, padded."""
        return self._parts(parameters) * self.setting.world_size

    def _parts(self, parameters: Iterable[Parameter]) -> float:
        return sum(_part(p, self.setting.world_size) for p in parameters)

    def _gradient_parts(self, parameters: Iterable[Parameter]) -> float:
        return self._parts(p for p in parameters if p.trained) * self.parameter_bytes

    def _largest(self, parameters: Sequence[Parameter]) -> float:
        """Elements of the first rank's parts, which no padding fills: an optimizer's state has their shapes."""
        return sum(min(_part(p, self.setting.world_size), p.elements) for p in parameters)

    def _units(self, trace: Trace) -> list[list[int]]:
        """The parameters (indices) of the root, and then of each block."""
        units: list[list[int]] = [[], *([] for _ in trace.blocks)]
        names = [trace.modules[block] + "." for block in trace.blocks]
        for index, parameter in enumerate(trace.parameters):
            inside = [place for place, name in enumerate(names) if parameter.name.startswith(name)]
            units[inside[0] + 1 if inside else 0].append(index)
        return units


def _part(parameter: Parameter, parts: int) -> int:
    """Elements of one padded part, shared out along the first dimension."""
    if not parameter.shape:
        return 1
    return math.ceil(parameter.shape[0] / parts) * (parameter.elements // max(parameter.shape[0], 1))


class _Passes:
    """FSDP2's forward and backward pass over units; unit 0 is the root."""

    def __init__(self, layout: FullyShared, trace: Trace, course: Course, units: list[list[int]], later: bool) -> None:
        self._layout, self._trace, self._course, self._later = layout, trace, course, later
        self._units = [[trace.parameters[i] for i in unit] for unit in units]
        self._unit_of = {index: place for place, unit in enumerate(units) for index in unit}
        self._block_of = {block: place + 1 for place, block in enumerate(trace.blocks)}
        world = layout.setting.world_size
        whole = [layout.whole(unit) for unit in self._units]
        trained = [layout.whole(p for p in unit if p.trained) for unit in self._units]
        self._gathered = [w * layout.compute_bytes for w in whole]
        self._buffer = [w * layout.compute_bytes if world > 1 else 0.0 for w in whole]
        self._reduced = [w * layout.reduction_bytes for w in trained]
        self._parts = [w * layout.parameter_bytes / world for w in trained]
        self._open: set[int] = set()
        self._done: set[int] = set()  # what is reduced; a block's other outputs may get their gradients long after
        self._waiting = 0.0  # the last gathering's buffer, in the forward pass
        self._ahead: int | None = None  # the unit whose gathering was begun early, in the backward pass
        self._reducing = 0.0  # the last reduction's buffer
        self._pending = [0.0] * len(units)  # gradients of a unit that are not reduced yet

    def run(self) -> None:
        trace = self._trace
        level = self._course.communication
        self._is_backward = False
        kept = sum(self._parts) if self._later else 0.0
        gradients = np.zeros(len(trace.kinds))
        gradients[0] = kept
        self._held = gradients
        self._gather(0, 0)
        for moment, (kind, subject) in enumerate(zip(trace.kinds.tolist(), trace.subjects.tolist(), strict=True)):
            if kind == Event.ENTER and subject in self._block_of and not self._is_backward:
                self._gather(self._block_of[subject], moment)
            elif kind == Event.LEAVE and subject in self._block_of and not self._is_backward:
                self._reshard(self._block_of[subject], moment)
            elif kind == Event.BACKWARD:
                level[moment] -= self._waiting
                self._waiting, self._is_backward = 0.0, True
                self._look_ahead(len(self._units), moment)
            elif kind == Event.ENTER_BACKWARD and subject in self._block_of:
                self._gather_again(self._block_of[subject], moment)
            elif kind == Event.GRADIENT:
                parameter = trace.parameters[subject]
                size = parameter.elements * self._layout.compute_bytes
                self._pending[self._unit_of[subject]] += size
                gradients[moment] += size
            elif kind == Event.LEAVE_BACKWARD and subject in self._block_of:
                self._reduce(self._block_of[subject], moment)
        last = len(trace.kinds) - 1
        for unit in sorted(self._open, reverse=True):
            self._reduce(unit, last)
        self._course.communication = level.cumsum()
        self._course.gradients = gradients.cumsum()

    def _gather(self, unit: int, moment: int) -> None:
        """Forward: the buffer of the gathering before is freed once this one has come."""
        course, buffer = self._course, self._buffer[unit]
        course.spikes[moment] = max(
            course.spikes[moment], self._cast(unit), max(0.0, self._waiting - self._gathered[unit])
        )
        course.communication[moment] += buffer - self._waiting + self._gathered[unit]
        self._waiting = buffer
        self._open.add(unit)

    def _cast(self, unit: int) -> float:
        """This rank's part in the type that is gathered."""
        layout = self._layout
        return (
            0.0 if layout.compute_bytes == layout.parameter_bytes else self._gathered[unit] / layout.setting.world_size
        )

    def _reshard(self, unit: int, moment: int) -> None:
        self._course.communication[moment] -= self._gathered[unit]
        self._open.discard(unit)

    def _gather_again(self, unit: int, moment: int) -> None:
        """Backward: gathers, begins to gather the block before, and frees this one's buffer at once."""
        if unit in self._open | self._done:
            return
        course = self._course
        if self._ahead == unit:
            course.communication[moment] -= self._buffer[unit]
        course.spikes[moment] = max(course.spikes[moment], self._buffer[unit])
        course.communication[moment] += self._gathered[unit]
        self._open.add(unit)
        self._look_ahead(unit, moment)

    def _look_ahead(self, unit: int, moment: int) -> None:
        self._ahead = unit - 1 if unit > 1 else None
        if self._ahead is not None:
            self._course.communication[moment] += self._buffer[self._ahead]

    def _reduce(self, unit: int, moment: int) -> None:
        """Frees the unit, copies its gradients into the reduction's buffer, and keeps this rank's part of the sum."""
        if unit not in self._open:
            return
        course, gradients = self._course, self._held
        self._open.discard(unit)
        self._done.add(unit)
        course.communication[moment] += self._reduced[unit] - self._gathered[unit] - self._reducing
        course.spikes[moment] = max(course.spikes[moment], self._pending[unit])
        self._reducing = self._reduced[unit]
        gradients[moment] -= self._pending[unit]
        self._pending[unit] = 0.0
        if not self._later:
            gradients[moment] += self._parts[unit]
        else:
            course.spikes[moment] = max(course.spikes[moment], self._parts[unit])
