"""Everything on every rank: one process, and DDP."""

from __future__ import annotations

from typing import final

from scalekit.planning.memory.layouts.base import Layout, MemoryTimeline
from scalekit.planning.profiling.step_config import AccumulationPhase
from scalekit.planning.profiling.tracing import Trace


@final
class Replicated(Layout):
    """One process, nothing sharded. A gradient is the tensor that autograd made."""

    def held(self) -> dict[str, float]:
        return {
            "parameters": self.parameter_total(),
            "optimizer_state": self.profile.trained_elements * self.moment_bytes,
        }

    def course(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        return self.as_autograd_makes_them(trace, turn)

    def update(self) -> dict[str, float]:
        return {"gradients": self.gradient_total()}


@final
class Bucketed(Layout):
    """DDP: gradients live in the reducer's buckets, which stand all the time (`gradient_as_bucket_view`)."""

    def held(self) -> dict[str, float]:
        return {
            "parameters": self.parameter_total(),
            "gradients": self.gradient_total(),
            "optimizer_state": self.profile.trained_elements * self.moment_bytes,
        }

    def course(self, trace: Trace, turn: AccumulationPhase) -> MemoryTimeline:
        """While gradients accumulate they are the parameters' own; the last micro-batch moves them into the buckets."""
        if self.setting.accumulation == 1:
            return MemoryTimeline.empty(trace)
        course = self.as_autograd_makes_them(trace, AccumulationPhase.FIRST)
        if turn is AccumulationPhase.MIDDLE:
            course.gradients[:] = self.gradient_total()
        elif turn is AccumulationPhase.LAST:
            course.gradients = self.gradient_total() - course.gradients
        return course
