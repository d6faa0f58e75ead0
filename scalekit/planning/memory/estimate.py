"""Memory: a profile and a strategy give the most bytes that one rank needs, what they are, and when in the step that is.

The trace says which activations live when. A strategy (`layouts`) adds what it keeps through the whole step and what
it gathers, reduces and frees on the way. The peak is the highest point of the sum over one optimizer step: the first
micro-batch, a later one where gradients accumulate, and the update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalekit.planning.memory.layouts import MemoryTimeline, layout
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import StepConfig
from scalekit.planning.profiling.tracing import Event, Trace

ITEMS = (
    "parameters",
    "master_weights",
    "gradients",
    "optimizer_state",
    "activations",
    "communication",
    "head_and_temporaries",
    "allocator_and_context",
)
"""What memory is made of, in the order in which tables and pictures show it.

parameters: as held between steps, with buffers. master_weights: DeepSpeed's own float32 copy. gradients, optimizer_state: as
their names say. activations: what blocks keep for the backward pass. communication: gathered parameters, and the buffers of
collectives. head_and_temporaries: logits, the loss, and what lives for a moment only. allocator_and_context: what
a GPU's driver and the caching allocator take beside the tensors, and a process on a CPU where a probe has measured it.
"""

CONTEXT_BYTES = {"cuda": 600 * 2**20, "cpu": 0}
"""What a process takes beside tensors, unless a probe has measured it: on a GPU, a CUDA context, cuBLAS's workspaces and NCCL's
buffers. On a CPU it would be Python and its libraries, which are in the machine's memory already when one plans there."""

FRAGMENTATION = {"cuda": 0.03, "cpu": 0.0}
"""The share by which the caching allocator reserves more than it hands out at the peak."""


@dataclass(frozen=True)
class Memory:
    """The memory of one rank.

    Attributes:
        items: bytes of each of `ITEMS` at the peak.
        when: the moment of the peak, in words.
        host_bytes: in the host's memory, for what is offloaded.
    """

    items: Mapping[str, int]
    when: str
    host_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The sum of the items."""
        return sum(self.items.values())


def predict(profile: Profile, setting: StepConfig) -> Memory:
    """The peak of one rank; of states alone where the profile has no trace."""
    engine = layout(profile, setting)
    held = dict.fromkeys(ITEMS, 0.0) | engine.held()
    host = engine.host_bytes()
    moments = [({**held, **engine.update()}, "in the optimizer's update")]
    if profile.problem is None:
        trace = profile.at(setting.micro_batch_size, setting.recompute, engine.computes_with, engine.keeps_casts)
        tally = _Tally(trace, held)
        moments += [tally.peak(engine.course(trace, turn)) for turn in setting.phases]
    items, when = max(moments, key=lambda moment: sum(moment[0].values()))
    context = CONTEXT_BYTES[setting.kind] if setting.context_bytes is None else setting.context_bytes
    dynamic = sum(items.values()) - sum(held.values())
    items = {**items, "allocator_and_context": context + FRAGMENTATION[setting.kind] * dynamic}
    return Memory({name: round(items[name]) for name in ITEMS}, when, round(host))


class _Tally:
    """Adds a strategy's course to a trace's own storages."""

    def __init__(self, trace: Trace, held: Mapping[str, float]) -> None:
        self._trace, self._held = trace, held
        events = np.arange(len(trace.kinds))
        made, freed = (np.full(len(trace.storage_bytes), len(events)) for _ in range(2))
        for kind, moment in ((Event.ALLOCATE, made), (Event.FREE, freed)):
            at = trace.kinds == kind
            moment[trace.subjects[at]] = events[at]
        gradients = trace.kinds == Event.GRADIENT
        storages = trace.handed[trace.subjects[gradients]]
        freed[storages[storages >= 0]] = events[gradients][storages >= 0]  # from here on the strategy has it
        self._made, self._freed = made, freed
        self._half = int(np.flatnonzero(trace.kinds == Event.BACKWARD)[0])

    def peak(self, course: MemoryTimeline) -> tuple[dict[str, float], str]:
        """The items at the highest point, and when that is."""
        sizes = self._trace.storage_bytes
        change = np.zeros(len(self._trace.kinds) + 1)
        np.add.at(change, self._made, sizes)
        np.add.at(change, self._freed, -sizes)
        total = np.cumsum(change)[:-1] + course.gradients + course.communication + course.spikes
        moment = int(np.argmax(total))
        alive = (self._made <= moment) & (self._freed > moment)
        kept = alive & self._kept_by_blocks
        items = dict(self._held)
        items["gradients"] += course.gradients[moment]
        items["communication"] += course.communication[moment] + course.spikes[moment]
        items["activations"] += float(sizes[kept].sum())
        items["head_and_temporaries"] += float(sizes[alive & ~kept].sum())
        return items, self._describe(moment)

    @property
    def _kept_by_blocks(self) -> NDArray[np.bool_]:
        """Storages that outlive the forward pass and were made before the last block's end, or, without blocks, in it."""
        trace = self._trace
        ends = [np.flatnonzero((trace.kinds == Event.LEAVE) & (trace.subjects == b)) for b in trace.blocks[-1:]]
        last = int(ends[0][0]) if ends and len(ends[0]) else self._half
        return (self._made <= last) & (self._freed > self._half)

    def _describe(self, moment: int) -> str:
        trace = self._trace
        is_forward = moment <= self._half
        kind = Event.ENTER if is_forward else Event.ENTER_BACKWARD
        passed = [
            (at[0], place)
            for place, block in enumerate(trace.blocks)
            if len(at := np.flatnonzero((trace.kinds == kind) & (trace.subjects == block))) and at[0] <= moment
        ]
        name = "forward" if is_forward else "backward"
        if abs(moment - self._half) <= 1:
            return "at the end of the forward pass"
        if not passed:
            return f"in the {name} pass, " + ("before the first block" if is_forward else "in the head and the loss")
        return f"in the {name} pass of block {max(passed)[1] + 1} of {len(trace.blocks)}, or after it"
