"""DeepSpeed's ZeRO-3: everything in parts, parameters gathered module by module, ahead of their use."""

from __future__ import annotations

from typing import final

import numpy as np

from scalekit.planning.memory.layouts.base import MODULE_EVENTS, Layout, MemoryTimeline, chosen, reductions
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import AccumulationPhase, StepConfig
from scalekit.planning.profiling.tracing import Event, Parameter, Trace


@final
class Gathered(Layout):
    """DeepSpeed's ZeRO-3: every parameter in parts, gathered where a module needs it.

    As in deepspeed/runtime/zero: small parameters stay whole (`mark_persistent_parameters`); the bucket of gradients and the
    flat tensor of their parts stand all the time (stage3.py); what is gathered ahead, and what is kept because it is used again
    soon, follows partitioned_param_coordinator.py, with DeepSpeed's own defaults where the strategy's file has no others.
    """

    def __init__(self, profile: Profile, setting: StepConfig) -> None:
        super().__init__(profile, setting)
        self.persistence = setting.strategy.zero("stage3_param_persistence_threshold")
        self.ahead = setting.strategy.zero("stage3_prefetch_bucket_size")
        self.live = setting.strategy.zero("stage3_max_live_parameters")
        self.reuse = setting.strategy.zero("stage3_max_reuse_distance")
        self.bucket_elements = setting.strategy.bucket_elements(profile.trained_elements)
        self._part = profile.trained_elements / setting.world_size

    @property
    def gathers(self) -> bool:
        """Whether a rank makes whole parameters of parts; one rank's part is the whole, and used as it is."""
        return self.setting.world_size > 1 or self.offloads("parameters")

    def held(self) -> dict[str, float]:
        whole = sum(p.elements for p in self.profile.parameters if self.stays(p)) * self.parameter_bytes * self.gathers
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
        """ZeRO++'s copy of the parameters, sharded in each node (arXiv 2306.10209, section 4.2)."""
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
        """Whether a parameter is so small that it is never sharded again."""
        return parameter.elements <= self.persistence

    def course(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        course = MemoryTimeline.empty(trace)
        if self.gathers:
            _Fetches(self, trace, course).run()
        self._reduce(trace, course)
        return course

    def _reduce(self, trace: Trace, course: MemoryTimeline) -> None:
        """What is in a bucket is copied to be reduced."""
        for moment, elements in reductions(trace, self.bucket_elements):
            size = elements * self.parameter_bytes
            course.spikes[moment] = max(course.spikes[moment], size + self.reduction_copy(size))


class _Gathering:
    """Parameters that were gathered together: their common buffer stands until the last of them has been waited for."""

    def __init__(self, members: set[int], buffer_bytes: float) -> None:
        self.members, self.buffer_bytes, self.copied = members, buffer_bytes, False


class _Fetches:
    """DeepSpeed's coordinator of parameters, over the modules of one forward and backward pass."""

    def __init__(self, layout: Gathered, trace: Trace, course: MemoryTimeline) -> None:
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
        for moment, kind, subject in chosen(trace, MODULE_EVENTS):
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
        # What ends at a moment goes before what begins at it, except that a visit may do both at once.
        moments = [(start, 1, step, self._fetch) for step, (start, _, _) in enumerate(self._visits)]
        moments += [(end, 2 * (start == end), step, self._release) for step, (start, end, _) in enumerate(self._visits)]
        for moment, _, step, happens in sorted(moments, key=lambda entry: entry[:3]):
            happens(moment, step)
        self._course.communication = self._course.communication.cumsum()

    def _fetch(self, moment: int, step: int) -> None:
        owned = self._visits[step][2]
        self._gather({p for p in owned if p not in self._whole and p not in self._coming}, moment)
        for parameter in owned:
            if parameter in self._coming:
                self._arrive(parameter, moment)
        self._skip_to(step)
        limit = min(self._layout.live - self._live, self._layout.ahead)
        ahead: set[int] = set()
        size = 0.0
        while self._next < len(self._queue) and size < limit:
            parameter, used = self._queue[self._next]
            self._next += 1
            self._fetched_for[parameter] = max(self._fetched_for[parameter], used)
            if parameter not in self._whole and parameter not in self._coming and parameter not in ahead:
                ahead.add(parameter)
                size += self._elements[parameter]
        self._gather(ahead, moment)

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
