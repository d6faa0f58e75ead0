"""DeepSpeed's ZeRO-1 and ZeRO-2: the optimizer in parts, the gradients too."""

from __future__ import annotations

from typing import final

import numpy as np

from scalekit.planning.memory.layouts.base import Layout, MemoryTimeline, reductions
from scalekit.planning.profiling.profile import Profile
from scalekit.planning.profiling.step_config import AccumulationPhase, StepConfig
from scalekit.planning.profiling.tracing import Event, Trace


@final
class Partitioned(Layout):
    """DeepSpeed's ZeRO-1 and ZeRO-2: parameters whole in one flat tensor, master weights and moments in parts.

    As in deepspeed/runtime/zero/stage_1_and_2.py, where Lightning owns the accumulation: a bucket is made when the first
    gradient of a backward pass comes; reducing it makes a copy of what is in it. ZeRO-1 keeps every gradient and copies them
    into the bucket once the pass is over; while gradients accumulate it keeps them and the bucket. ZeRO-2 copies each
    gradient as it comes, and keeps its part of their sum.
    """

    def __init__(self, profile: Profile, setting: StepConfig) -> None:
        super().__init__(profile, setting)
        self._part = profile.trained_elements / setting.world_size
        self._gradient_part = self._part * self.parameter_bytes
        # Gradients are kept whole where a part begins or ends within one.
        self._surplus = max(0.0, self._reaching_into_a_part() - self._part) * self.parameter_bytes
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
        return {"gradients": self._gradient_part, "communication": self._gradient_part + self._surplus}

    def _reaching_into_a_part(self) -> int:
        """Elements of all parameters that lie in a rank's part, whole where they lie in another's too; the most of any rank."""
        ranks = np.arange(self.setting.world_size)
        total = np.zeros(len(ranks))
        for is_matrix in (True, False):  # the optimizer's groups, which decay or do not
            sizes = [p.elements for p in self.profile.parameters if p.trained and (len(p.shape) > 1) == is_matrix]
            borders = np.concatenate([[0], np.cumsum(sizes)])
            part = borders[-1] / len(ranks)
            first = np.searchsorted(borders, ranks * part, side="right") - 1
            last = np.searchsorted(borders, (ranks + 1) * part, side="left")
            total += borders[np.minimum(last, len(sizes))] - borders[np.minimum(first, len(sizes))]
        return int(total.max())

    def host_bytes(self) -> float:
        """Master weights, moments, the gradients that they meet, and the parameters on their way back."""
        if not self.offloads("optimizer"):
            return 0.0
        return self._part * (2 * self.master_bytes + self.moment_bytes + self.parameter_bytes)

    def _largest_bytes(self) -> float:
        return max((p.elements for p in self.profile.parameters if p.trained), default=0) * self.parameter_bytes

    def course(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        course = self.as_autograd_makes_them(trace, turn) if self._keeps_all else MemoryTimeline.empty(trace)
        bucket = self._bucket_elements * self.parameter_bytes
        came = np.flatnonzero(trace.kinds == Event.GRADIENT)
        if not len(came):
            return course
        if self._keeps_all:
            course.communication[0 if turn is not AccumulationPhase.FIRST else came[0] :] = bucket
        else:
            for moment, elements in reductions(trace, self._bucket_elements):
                course.spikes[moment] = elements * self.parameter_bytes
            if turn is not AccumulationPhase.FIRST and not self.offloads("optimizer"):
                course.gradients += self._gradient_part
                course.communication += self._surplus
            course.communication[came[0] :] += bucket
        return course
