"""FSDP2: everything in parts, blocks gathered one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
import torch

from scalekit.planning.memory.layouts.base import MODULE_EVENTS, Layout, MemoryTimeline, chosen
from scalekit.planning.profiling.step_config import AccumulationPhase
from scalekit.planning.profiling.tracing import Event, Parameter, Trace


@final
class FullyShared(Layout):
    """FSDP2: repeated blocks are gathered one by one, what is left (the root) for the whole pass.

    As in torch/distributed/fsdp/_fully_shard: parts are padded along the first dimension; a gathered block is copied out of
    the collective's buffer, so that both stand for a moment; gradients are copied into the reduction's buffer, of which the
    previous one is freed first.
    """

    @property
    def group_size(self) -> int:
        """The ranks that share a parameter out."""
        return self.setting.strategy.group_size(self.setting.world_size, self.setting.node_size)

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

    def course(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        course = MemoryTimeline.empty(trace)
        units = self._units(trace)
        _Passes(self, trace, course, units, turn is not AccumulationPhase.FIRST).run()
        return course

    def whole(self, parameters: Iterable[Parameter]) -> float:
        """Elements of a unit as it is gathered: all parts, padded."""
        return self._parts(parameters) * self.group_size

    def _parts(self, parameters: Iterable[Parameter]) -> float:
        return sum(_part(p, self.group_size) for p in parameters)

    def _gradient_parts(self, parameters: Iterable[Parameter]) -> float:
        return self._parts(p for p in parameters if p.trained) * self.parameter_bytes

    def _largest(self, parameters: Sequence[Parameter]) -> float:
        """Elements of the first rank's parts, which no padding fills: an optimizer's state has their shapes."""
        return sum(min(_part(p, self.group_size), p.elements) for p in parameters)

    def _units(self, trace: Trace) -> list[list[int]]:
        """The parameters (indices) of the root, and then of each block."""
        units: list[list[int]] = [[], *([] for _ in trace.blocks)]
        names = [trace.modules[block] + "." for block in trace.blocks]
        for index, parameter in enumerate(trace.parameters):
            inside = [place for place, name in enumerate(names) if parameter.name.startswith(name)]
            units[inside[0] + 1 if inside else 0].append(index)
        return units


def _part(parameter: Parameter, parts: int) -> int:
    """Elements of one padded part, sharded along the first dimension."""
    if not parameter.shape:
        return 1
    return math.ceil(parameter.shape[0] / parts) * (parameter.elements // max(parameter.shape[0], 1))


class _Passes:
    """FSDP2's forward and backward pass over units; unit 0 is the root."""

    def __init__(
        self, layout: FullyShared, trace: Trace, course: MemoryTimeline, units: list[list[int]], later: bool
    ) -> None:
        self._layout, self._trace, self._course, self._later = layout, trace, course, later
        self._units = [[trace.parameters[i] for i in unit] for unit in units]
        self._unit_of = {index: place for place, unit in enumerate(units) for index in unit}
        self._block_of = {block: place + 1 for place, block in enumerate(trace.blocks)}
        world = layout.group_size
        whole = [layout.whole(unit) for unit in self._units]
        trained = [layout.whole(p for p in unit if p.trained) for unit in self._units]
        self._gathered = [w * layout.compute_bytes for w in whole]
        self._buffer = [w * layout.compute_bytes if world > 1 else 0.0 for w in whole]
        self._reduced = [w * layout.reduction_bytes for w in trained]
        self._copied = [layout.reduction_copy(size) if world > 1 else 0.0 for size in self._reduced]
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
        for moment, kind, subject in chosen(trace, MODULE_EVENTS | {Event.GRADIENT, Event.BACKWARD}):
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
        return 0.0 if layout.compute_bytes == layout.parameter_bytes else self._gathered[unit] / layout.group_size

    def _reshard(self, unit: int, moment: int) -> None:
        self._course.communication[moment] -= self._gathered[unit]
        self._open.discard(unit)

    def _gather_again(self, unit: int, moment: int) -> None:
        """Backward: gathers, frees the buffer, and then begins to gather the block before."""
        if unit in self._open | self._done:
            return
        course = self._course
        if self._ahead == unit:
            course.communication[moment] -= self._buffer[unit]
        course.communication[moment] += self._gathered[unit]
        self._open.add(unit)
        self._look_ahead(unit, moment)
        # The buffer stands while it is copied from, when the next gathering, which counts from here on, has not begun.
        begun = self._buffer[self._ahead] if self._ahead is not None else 0.0
        course.spikes[moment] = max(course.spikes[moment], self._buffer[unit] - begun)

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
        course.spikes[moment] = max(course.spikes[moment], self._pending[unit], self._copied[unit])
        self._reducing = self._reduced[unit]
        gradients[moment] -= self._pending[unit]
        self._pending[unit] = 0.0
        if not self._later:
            gradients[moment] += self._parts[unit]
        else:
            course.spikes[moment] = max(course.spikes[moment], self._parts[unit])
