"""What each engine keeps on a rank, gathers and reduces. One class an engine; each says where its figures come from.

Sizes of what is shared out are as the engines themselves round them: they pad to whole parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from scalekit.planning.profile import Profile
from scalekit.planning.setting import Setting, Turn
from scalekit.planning.trace import Event, Parameter, Trace


@dataclass
class Course:
    """What an engine adds to a micro-batch, event by event.

    Attributes:
        gradients: bytes of gradients held after each event, shape [events].
        communication: bytes of gathered parameters and buffers held after each event, shape [events].
        spikes: bytes beyond those that live within one event only, shape [events].
    """

    gradients: NDArray[np.float64]
    communication: NDArray[np.float64]
    spikes: NDArray[np.float64]

    @classmethod
    def empty(cls, trace: Trace) -> Course:
        """Nothing added."""
        return cls(*(np.zeros(len(trace.kinds)) for _ in range(3)))


def layout(profile: Profile, setting: Setting) -> Layout:
    """The layout of a setting's engine."""
    if setting.strategy.engine == "fsdp2":
        return FullyShared(profile, setting)
    if setting.strategy.engine == "ddp":
        return Bucketed(profile, setting)
    if setting.strategy.stage == 3:
        return Gathered(profile, setting)
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
    def course(self, trace: Trace, turn: Turn) -> Course:
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
        return bytes_ if self.setting.kind == "cpu" and self.setting.world_size > 1 else 0.0

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
        held = {"parameters": self.parameter_total()}
        if self.offloads("optimizer"):
            # The largest parameter's gradient, on its way to the host (`temp_grad_buffer_for_gpu_offload`).
            return {**held, "communication": self._largest_bytes()}
        return {
            **held,
            "master_weights": self._part * self.master_bytes,
            "optimizer_state": self._part * self.moment_bytes,
        }

    def update(self) -> dict[str, float]:
        """The part's gradients, and the flat copy of them that the optimizer is given."""
        if self.offloads("optimizer"):
            return {}
        return {"gradients": self._gradient_part, "communication": self._gradient_part}

    def host_bytes(self) -> float:
        """Master weights, moments, the gradients that they meet, and the parameters on their way back."""
        if not self.offloads("optimizer"):
            return 0.0
        return self._part * (2 * self.master_bytes + self.moment_bytes + self.parameter_bytes)

    def _largest_bytes(self) -> float:
        return max((p.elements for p in self.profile.parameters if p.trained), default=0) * self.parameter_bytes

    def course(self, trace: Trace, turn: Turn) -> Course:
        course = super().course(trace, turn) if self._keeps_all else Course.empty(trace)
        bucket = self._bucket_elements * self.parameter_bytes
        came = np.flatnonzero(trace.kinds == Event.GRADIENT)
        if not len(came):
            return course
        if not self._keeps_all:
            in_bucket = self._fill(trace, course, came)
            if turn is not Turn.FIRST and not self.offloads("optimizer"):
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


_MODULE_EVENTS = {Event.ENTER, Event.LEAVE, Event.ENTER_BACKWARD, Event.LEAVE_BACKWARD}


def _chosen(trace: Trace, kinds: set[Event]) -> Iterator[tuple[int, int, int]]:
    """The moments of some kinds of events, with their kinds and subjects."""
    moments = np.flatnonzero(np.isin(trace.kinds, list(kinds)))
    yield from zip(moments.tolist(), trace.kinds[moments].tolist(), trace.subjects[moments].tolist(), strict=True)


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
        for moment, kind, subject in _chosen(trace, _MODULE_EVENTS | {Event.GRADIENT, Event.BACKWARD}):
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
        course.spikes[moment] = max(
            course.spikes[moment], self._pending[unit], self._layout.reduction_copy(self._reduced[unit])
        )
        self._reducing = self._reduced[unit]
        gradients[moment] -= self._pending[unit]
        self._pending[unit] = 0.0
        if not self._later:
            gradients[moment] += self._parts[unit]
        else:
            course.spikes[moment] = max(course.spikes[moment], self._parts[unit])


@final
class Gathered(Layout):
    """DeepSpeed's ZeRO-3: every parameter in parts, gathered where a module needs it.

    As in deepspeed/runtime/zero: small parameters stay whole (`mark_persistent_parameters`); the bucket of gradients and the
    flat tensor of their parts stand all the time (stage3.py); what is gathered ahead, and what is kept because it is used again
    soon, follows partitioned_param_coordinator.py, with DeepSpeed's own defaults where the strategy's file has no others.
    """

    def __init__(self, profile: Profile, setting: Setting) -> None:
        super().__init__(profile, setting)
        self.persistence = setting.strategy.zero("stage3_param_persistence_threshold")
        self.ahead = setting.strategy.zero("stage3_prefetch_bucket_size")
        self.live = setting.strategy.zero("stage3_max_live_parameters")
        self.reuse = setting.strategy.zero("stage3_max_reuse_distance")
        self.bucket_elements = setting.strategy.bucket_elements(profile.trained_elements)
        self._part = profile.trained_elements / setting.world_size

    def held(self) -> dict[str, float]:
        whole = sum(p.elements for p in self.profile.parameters if self.stays(p)) * self.parameter_bytes
        parts = 0.0 if self.offloads("parameters") else self._parameter_parts()
        on_device = 0.0 if self.offloads("optimizer") else self._part
        return {
            "parameters": parts + self.profile.buffer_bytes,
            "master_weights": on_device * self.master_bytes,
            "optimizer_state": on_device * self.moment_bytes,
            "gradients": on_device * self.parameter_bytes,
            "communication": self.bucket_elements * self.parameter_bytes + whole + self._second_shard(),
        }

    def _parameter_parts(self) -> float:
        return self.profile.elements / self.setting.world_size * self.parameter_bytes

    def _second_shard(self) -> float:
        """ZeRO++'s copy of the parameters, shared out in each node (arXiv 2306.10209, section 4.2)."""
        ranks = self.setting.strategy.second_shard(self.setting.node_size)
        return self.profile.elements / ranks * self.parameter_bytes if ranks > 1 else 0.0

    def host_bytes(self) -> float:
        """Parameters, and master weights, moments and the gradients that they meet, as far as the host's memory has them."""
        on_host = {what for what, where in self.setting.strategy.offload.items() if where == "cpu"}
        parameters = self._parameter_parts() if "parameters" in on_host else 0.0
        each = 2 * self.master_bytes + self.moment_bytes + self.parameter_bytes
        optimizer = self._part * each if "optimizer" in on_host else 0.0
        return parameters + optimizer

    def update(self) -> dict[str, float]:
        """The part's gradients are copied for the optimizer, at most a sub-group at once."""
        held = self.held()
        group = self.setting.strategy.zero("sub_group_size")
        return {"communication": held["communication"] + min(self._part, group) * self.parameter_bytes}

    def stays(self, parameter: Parameter) -> bool:
        """Whether a parameter is so small that it is never shared out again."""
        return parameter.elements <= self.persistence

    def course(self, trace: Trace, turn: Turn) -> Course:
        course = Course.empty(trace)
        _Fetches(self, trace, course).run()
        self._reduce(trace, course)
        return course

    def _reduce(self, trace: Trace, course: Course) -> None:
        """Gradients go into the bucket as they come; what is in it is copied to be reduced when it is full, and at the end."""
        filled = 0
        for moment in np.flatnonzero(trace.kinds == Event.GRADIENT):
            elements = trace.parameters[trace.subjects[moment]].elements
            if filled + elements > self.bucket_elements:
                self._spike(course, int(moment), filled)
                filled = 0
            filled += elements
        self._spike(course, len(trace.kinds) - 1, filled)

    def _spike(self, course: Course, moment: int, elements: float) -> None:
        size = elements * self.parameter_bytes
        course.spikes[moment] = max(course.spikes[moment], size + self.reduction_copy(size))


class _Gathering:
    """Parameters that were gathered together: their common buffer stands until the last of them has been waited for."""

    def __init__(self, members: set[int], buffer_bytes: float) -> None:
        self.members, self.buffer_bytes, self.copied = members, buffer_bytes, False


class _Fetches:
    """DeepSpeed's coordinator of parameters, over the modules of one forward and backward pass."""

    def __init__(self, layout: Gathered, trace: Trace, course: Course) -> None:
        self._layout, self._trace, self._course = layout, trace, course
        elements = [p.elements for p in trace.parameters]
        self._elements = elements
        self._is_small = [layout.stays(p) for p in trace.parameters]
        self._visits = self._modules()
        self._queue = [(p, step) for step, (_, _, owned) in enumerate(self._visits) for p in owned]
        self._uses: dict[int, list[int]] = {}
        for parameter, step in self._queue:
            self._uses.setdefault(parameter, []).append(step)
        self._passed = np.concatenate(
            [[0], np.cumsum([sum(elements[p] for p in owned) for _, _, owned in self._visits])]
        )
        self._whole: set[int] = {p for p, small in enumerate(self._is_small) if small}
        self._coming: dict[int, _Gathering] = {}
        self._live = float(sum(elements[p] for p in self._whole))
        self._next = 0
        self._fetched_for = [-1] * len(elements)

    def _modules(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Moments at which a module needs its own parameters, and the moments at which it is done with them."""
        trace = self._trace
        ends = {Event.ENTER: Event.LEAVE, Event.ENTER_BACKWARD: Event.LEAVE_BACKWARD}
        open_: dict[tuple[int, int], int] = {}
        visits: list[list[int]] = []
        entered: set[int] = set()
        last_gradient = self._last_gradients()
        for moment, kind, subject in _chosen(trace, _MODULE_EVENTS):
            if kind in ends:
                if kind == Event.ENTER_BACKWARD and subject in entered:
                    continue
                if kind == Event.ENTER_BACKWARD:
                    entered.add(subject)
                open_[ends[Event(kind)], subject] = len(visits)
                end = last_gradient.get(subject, moment) if kind == Event.ENTER_BACKWARD else moment
                visits.append([moment, max(end, moment), subject])
            elif (kind, subject) in open_:
                visit = open_.pop((kind, subject))
                visits[visit][1] = max(visits[visit][1], moment)
        return [(start, end, trace.owned[subject]) for start, end, subject in visits]

    def _last_gradients(self) -> dict[int, int]:
        """For each module, when the last of its own parameters has its gradient."""
        trace = self._trace
        came = {int(trace.subjects[m]): int(m) for m in np.flatnonzero(trace.kinds == Event.GRADIENT)}
        return {
            module: max(came[p] for p in owned if p in came)
            for module, owned in enumerate(trace.owned)
            if any(p in came for p in owned)
        }

    def run(self) -> None:
        moments = [(start, 1, step) for step, (start, _, _) in enumerate(self._visits)]
        moments += [(end, 0, step) for step, (_, end, _) in enumerate(self._visits)]
        for moment, is_start, step in sorted(moments):
            if is_start:
                self._fetch(moment, step)
            else:
                self._release(moment, step)
        self._course.communication = self._course.communication.cumsum()

    def _fetch(self, moment: int, step: int) -> None:
        owned = self._visits[step][2]
        self._gather({p for p in owned if p not in self._whole and p not in self._coming}, moment)
        for parameter in owned:
            if parameter in self._coming:
                self._arrive(parameter, moment)
        self._skip_to(step)
        limit = min(self._layout.live - self._live, self._layout.ahead)
        chosen: set[int] = set()
        size = 0.0
        while self._next < len(self._queue) and size < limit:
            parameter, used = self._queue[self._next]
            self._next += 1
            self._fetched_for[parameter] = max(self._fetched_for[parameter], used)
            if parameter not in self._whole and parameter not in self._coming and parameter not in chosen:
                chosen.add(parameter)
                size += self._elements[parameter]
        self._gather(chosen, moment)

    def _skip_to(self, step: int) -> None:
        """What this module has needed is no longer to be gathered ahead."""
        while self._next < len(self._queue) and self._queue[self._next][1] <= step:
            self._fetched_for[self._queue[self._next][0]] = self._queue[self._next][1]
            self._next += 1

    def _gather(self, parameters: set[int], moment: int) -> None:
        if not parameters:
            return
        world = self._layout.setting.world_size
        padded = sum(-(-self._elements[p] // world) * world for p in parameters)
        size = padded * self._layout.parameter_bytes if world > 1 else 0.0
        gathering = _Gathering(set(parameters), size)
        self._course.communication[moment] += size
        self._live += sum(self._elements[p] for p in parameters)
        for parameter in parameters:
            self._coming[parameter] = gathering

    def _arrive(self, parameter: int, moment: int) -> None:
        """Waiting for one copies all that came with it out of their buffer; a parameter that came alone is the buffer."""
        gathering = self._coming.pop(parameter)
        if not gathering.copied:
            gathering.copied = True
            size = float(sum(self._elements[p] for p in gathering.members) * self._layout.parameter_bytes)
            if len(gathering.members) == 1:
                gathering.buffer_bytes -= size
                size = 0.0
            self._course.communication[moment] += size
        gathering.members.discard(parameter)
        self._whole.add(parameter)
        if not gathering.members:
            self._course.communication[moment] -= gathering.buffer_bytes

    def _release(self, moment: int, step: int) -> None:
        for parameter in self._visits[step][2]:
            if self._is_small[parameter] or parameter not in self._whole or self._needed_soon(parameter, step):
                continue
            self._whole.discard(parameter)
            self._live -= self._elements[parameter]
            self._course.communication[moment] -= self._elements[parameter] * self._layout.parameter_bytes

    def _needed_soon(self, parameter: int, step: int) -> bool:
        later = [use for use in self._uses[parameter] if use > step]
        if self._fetched_for[parameter] > step:
            return True
        return bool(later) and self._passed[later[0]] - self._passed[step + 1] < self._layout.reuse
